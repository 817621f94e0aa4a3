"""Render the staged pages as a site, with every warning an error; what did not change is not rendered again."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from website.contents import BookError, pages
from website.digest import package_digest
from website.ebook import readable
from website.finish import finish
from website.lean import unneeded
from website.processes import marked


def render(root: Path, python: Sequence[str]) -> tuple[Path, bool]:
    """Build the site and put it in the place of the present one if it came out without a warning.

    Args:
        root: Of the repository.
        python: What comes before the name of a module to have it run.

    Returns:
        ``_build/html``, and whether anything was rendered: nothing is, where nothing changed.
    """
    build = root / "_build"
    site, work, stamp = build / "html", build / "site", build / "html.inputs"
    config = yaml.safe_dump(_config(root), allow_unicode=True)
    staged = sorted((build / "book").rglob("*"))
    inputs = _digest(root, config + package_digest(root), [*staged, root / "book" / "times.json"])
    if site.is_dir() and stamp.is_file() and stamp.read_text(encoding="utf-8") == inputs:
        return site, False
    _keep_doctrees(work, _structure(root, config))
    try:
        _sphinx(root, config, work, "html", python)
        rendered = work / "_build" / "html"
        if not rendered.is_dir():
            raise BookError("The renderer ended without a site.")
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)  # so that the warnings of pages that did not change come again
        raise
    new = build / "html.new"
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(rendered, new, ignore=unneeded)
    finish(root, new)
    stamp.unlink(missing_ok=True)
    shutil.rmtree(site, ignore_errors=True)
    new.rename(site)
    stamp.write_text(inputs, encoding="utf-8")
    return site, True


def epub(root: Path) -> Path:
    """Build the staged pages as one ePub, ``_build/epub/riembn.epub``."""
    work, target = root / "_build" / "site-epub", root / "_build" / "epub" / "riembn.epub"
    config = _config(root)
    # Records and tables of numbers are files of the site; a book has no place for them and leaves them out.
    config["sphinx"]["config"]["suppress_warnings"].append("epub.unknown_project_files")
    shutil.rmtree(work, ignore_errors=True)
    try:
        _sphinx(root, yaml.safe_dump(config, allow_unicode=True), work, "epub", [sys.executable, "-m"])
        (made,) = work.rglob("*.epub")
        readable(made, config["sphinx"]["config"]["mathjax3_config"]["tex"]["macros"])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _sphinx(root: Path, config: str, work: Path, builder: str, python: Sequence[str]) -> None:
    build = root / "_build"
    file = build / "_config.yml"
    if not file.is_file() or file.read_text(encoding="utf-8") != config:
        file.write_text(config, encoding="utf-8")
    command = [
        *(*python, "website.renderer", "build", str(build)),
        *("--config", str(file), "--toc", str(root / "_toc.yml"), "--path-output", str(work)),
        *("-W", "-n", "--keep-going", "-q", "--builder"),
        *(["html"] if builder == "html" else ["custom", "--custom-builder", builder]),
    ]
    modules = os.pathsep.join([str(root), str(Path(__file__).parents[1])])
    environment = {**os.environ, **marked(root), "SOURCE_DATE_EPOCH": _date(root), "PYTHONPATH": modules}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    warnings = [line for line in said.splitlines() if re.search(r"\b(WARNING|ERROR|CRITICAL)\b", line)]
    if done.returncode or warnings:
        shown = [line.replace(f"{build}/", "") for line in warnings] or said.strip().splitlines()[-15:]
        head = f"The site has {len(warnings) or 'unknown'} problems:"
        raise BookError("\n".join([head, *(f"  {one}" for one in shown)]))


def _keep_doctrees(work: Path, structure: str) -> None:
    """Start from nothing if something changed that stands on every page: titles, contents, settings, this code."""
    mark = work / "structure"
    if not mark.is_file() or mark.read_text(encoding="utf-8") != structure:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        mark.write_text(structure, encoding="utf-8")


def _structure(root: Path, config: str) -> str:
    titles = [page.document + page.title for page in pages(root)]
    return _digest(root, "\n".join([config, *titles]), sorted((root / "_build" / "book" / "_static").glob("*.*")))


def _digest(root: Path, said: str, files: list[Path]) -> str:
    """Of files below ``_build``, of the contents, the requirements and the code of this package."""
    here = Path(__file__).parent
    whole = hashlib.sha256(said.encode())
    common = (root / name for name in ("_toc.yml", "requirements.txt", "book/moved.txt"))
    for file in [*sorted(here.glob("*.py")), *common, *files]:
        if file.is_file():
            whole.update(f"\0{file}\0".encode() + file.read_bytes())
    return whole.hexdigest()


def _config(root: Path) -> dict[str, Any]:
    """``_config.yml``; where the book is to be published (BOOK_URL) it also names its own address."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    sphinx = config["sphinx"]["config"]
    sphinx |= {"project": config["title"], "version": metadata.version("riembn")}  # an ePub has to have them
    if address := os.environ.get("BOOK_URL"):
        address = address.rstrip("/") + "/"
        config["html"]["baseurl"] = address
        sphinx["extensions"] += ["sphinx_sitemap"]
        sphinx |= {"ogp_site_url": address, "sitemap_url_scheme": "{link}"}
        sphinx["ogp_image"] = f"{address}_static/card.png"
        sphinx["notfound_urls_prefix"] = urlsplit(address).path
    return dict(config)


def _date(root: Path) -> str:
    log = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=root, capture_output=True, text=True, check=False
    )
    return log.stdout.strip() or "0"
