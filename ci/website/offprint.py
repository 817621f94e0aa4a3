"""The book away from the web: a PDF of each page through the machine's Chromium, and one ePub."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from website.contents import BookError, Page
from website.processes import marked

QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""Options of a browser that shows nothing on a screen and asks nothing of the network."""


def chromium() -> str | None:
    """The browser's program, if there is one; BROWSER_PROGRAM names another than the system's."""
    named = os.environ.get("BROWSER_PROGRAM")
    return named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def print_pages(root: Path, site: Path, pages: Sequence[Page]) -> Path:
    """Print every page to ``_build/pdf``, as a reader's browser would."""
    program = chromium()
    if program is None:
        raise BookError("--pdf: there is no Chromium on this machine (Debian: apt-get install chromium).")
    folder = root / "_build" / "pdf"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for page in pages:
        target = folder / f"{page.name}.pdf"
        with tempfile.TemporaryDirectory() as profile:
            done = subprocess.run(
                [
                    *(program, *QUIET, f"--user-data-dir={profile}", "--virtual-time-budget=20000"),
                    *("--no-pdf-header-footer", f"--print-to-pdf={target}"),
                    (site / f"{page.document}.html").as_uri(),
                ],
                env={**os.environ, **marked(root)},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        if done.returncode or not target.is_file():
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise BookError(f"--pdf: {page.name} could not be printed: {last[0]}")
    return folder
