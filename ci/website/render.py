"""How do staged pages become a site, with every warning an error?"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from website.contents import BookError

# What a page of this book can need of MathJax; the rest of the tree is four times the size of the site.
MATHJAX_KEPT = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions", "ui", "a11y/assistive-mml.js")


def render(root: Path) -> Path:
    """Build the site next to the present one and put it in its place if it came out without a warning.

    Returns:
        ``_build/html``.
    """
    build = root / "_build"
    site, new = build / "html", build / "site"
    shutil.rmtree(new, ignore_errors=True)
    config = build / "_config.yml"
    config.write_text(yaml.safe_dump(_config(root), allow_unicode=True), encoding="utf-8")
    command = [
        *(sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(build)),
        *("--config", str(config), "--toc", str(root / "_toc.yml"), "--path-output", str(new)),
        *("-W", "-n", "--keep-going", "-q"),
    ]
    # "Last updated" is then the date of the commit, and the same pages give the same site.
    date = {"SOURCE_DATE_EPOCH": _date(root)}
    done = subprocess.run(
        command, cwd=root, env={**os.environ, **date}, capture_output=True, text=True, check=False
    )
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    warnings = [line for line in said.splitlines() if re.search(r"\b(WARNING|ERROR|CRITICAL)\b", line)]
    if done.returncode or warnings or not (new / "_build" / "html").is_dir():
        shown = [line.replace(f"{build}/", "") for line in warnings] or said.strip().splitlines()[-15:]
        raise BookError(
            "\n".join(
                [f"The site has {len(warnings) or 'unknown'} problems:", *(f"  {one}" for one in shown)]
            )
        )
    _trim_mathjax(new / "_build" / "html")
    shutil.rmtree(site, ignore_errors=True)
    (new / "_build" / "html").rename(site)
    shutil.rmtree(new)
    return site


def _config(root: Path) -> dict[str, object]:
    """``_config.yml``; where the book is to be published (BOOK_URL) it also names its own address."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    if address := os.environ.get("BOOK_URL"):
        address = address.rstrip("/") + "/"
        config["html"]["baseurl"] = address
        sphinx = config["sphinx"]["config"]
        sphinx["extensions"] += ["sphinx_sitemap"]
        sphinx |= {"ogp_site_url": address, "sitemap_url_scheme": "{link}"}
        sphinx["notfound_urls_prefix"] = urlsplit(address).path
    return dict(config)


def _date(root: Path) -> str:
    log = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=root, capture_output=True, text=True, check=False
    )
    return log.stdout.strip() or "0"


def _trim_mathjax(site: Path) -> None:
    tree = site / "_static" / "mathjax"
    for file in sorted(tree.rglob("*")):
        inside = file.relative_to(tree).as_posix()
        if file.is_file() and not inside.startswith(MATHJAX_KEPT):
            file.unlink()
    for folder in sorted(tree.rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
