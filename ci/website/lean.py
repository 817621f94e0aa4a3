"""Leave out of a site what none of its pages can ask for."""

from __future__ import annotations

import re
from pathlib import Path

# Of MathJax: tex-chtml.js holds all but its fonts and the packages that a rare command loads.
_MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2", "input/tex/extensions")
# Of the rest: maps for debuggers, translations, and the second of two forms of a font.
_NEVER = re.compile(r"\.map$|^locales$|/all-packages\.js$|/webfonts/.*\.ttf$")
_ICON = re.compile(
    r'"?(?P<name>[\w-]+)"?:\[\d+,\d+,\[(?P<others>[^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\["[^"]*","[^"]*"\])\],?'
)


def unneeded(folder: str, names: list[str]) -> set[str]:
    """What of a folder is not copied to the site, as ``shutil.copytree`` asks."""
    _, _, inside = f"{folder}/".partition("/_static/")
    return {name for name in names if _is_unneeded(f"{inside}{name}")}


def _is_unneeded(path: str) -> bool:
    """Of a path below ``_static``."""
    if _NEVER.search(path):
        return True
    first, _, part = path.partition("/")
    return first == "mathjax" and bool(part) and not any(
        part.startswith(kept) or kept.startswith(f"{part}/") for kept in _MATHJAX
    )


def keep_used_icons(site: Path) -> None:
    """Take out of the script of two thousand icons, which every page loads, those that no page shows."""
    script = site / "_static" / "scripts" / "fontawesome.js"
    if not script.is_file():
        return
    asking = [*site.glob("*.html"), *site.glob("book/*.html"), *site.glob("_static/**/*.js")]
    used = {
        name
        for file in asking
        if file != script
        for name in re.findall(r"\bfa-([a-z0-9-]+)", file.read_text(encoding="utf-8"))
    }

    def kept(icon: re.Match[str]) -> str:
        return icon[0] if used & {icon["name"], *re.findall(r'"([^"]+)"', icon["others"])} else ""

    script.write_text(_ICON.sub(kept, script.read_text(encoding="utf-8")), encoding="utf-8")
