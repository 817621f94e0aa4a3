"""A browser that is on the machine, for the tests that look at the site as a reader does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from website.offprint import QUIET, chromium  # noqa: E402


def missing() -> str | None:
    """Why there is no browser here; None if there is one."""
    if not chromium():
        return "no Chromium on this machine (Debian: apt-get install chromium)"
    try:
        import axe_playwright_python  # noqa: F401
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed"
    return None


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium with a profile of its own, which asks nothing of the network."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium(), args=list(QUIET))
        try:
            yield started
        finally:
            started.close()


def axe_script() -> str:
    """axe-core, which checks accessibility, as a script for a page."""
    import axe_playwright_python

    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
