"""Build the website: the command behind ci/book."""

from __future__ import annotations

import argparse
import functools
import http.server
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

from website.check import check
from website.contents import BookError, Page, pages, select
from website.execute import CELL_LIMIT, Python, forking, is_current, keep_times, run
from website.offprint import print_pages
from website.processes import alone
from website.render import epub, render
from website.stage import stage


def main(arguments: list[str], root: Path) -> int:
    """Run what changed, render, check; 0 if the site is whole."""
    asked = _arguments(arguments)
    try:
        book = pages(root)
        chapters = [page for page in book if page.is_chapter]
        named = select(asked.chapter, chapters)
        with alone(root):
            site = _build(root, book, chapters, named, asked.profile)
            if asked.keep_times:
                print(f"Times: {keep_times(root, chapters, asked.profile)}", flush=True)
            if asked.pdf:
                print(f"Pages in print: {print_pages(root, site, book)}", flush=True)
            if asked.epub:
                print(f"ePub: {epub(root)}", flush=True)
    except BookError as error:
        print(f"ci/book: {error}", file=sys.stderr)
        return 1
    print(f"The book: {site / 'index.html'}", flush=True)
    if asked.serve:
        _serve(site, asked.port)
    return 0


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ci/book",
        description="Run the chapters that changed and render the website to _build/html.",
        epilog="Named chapters are run again even if nothing changed.",
    )
    parser.add_argument("chapter", nargs="*", metavar="CHAPTER", help="such as 09-clipping")
    parser.add_argument(
        "--profile",
        choices=CELL_LIMIT,
        default="laptop",
        help="smoke: train everything afresh on digits, in minutes; laptop: read the committed records and "
        "train what is missing (default); paper: full size",
    )
    parser.add_argument(
        "--serve", action="store_true", help="serve the site on this machine when it is built"
    )
    parser.add_argument("--pdf", action="store_true", help="print every page to _build/pdf as well")
    parser.add_argument("--epub", action="store_true", help="make one ePub of all pages as well")
    parser.add_argument(
        "--keep-times", action="store_true", help="write down in book/times.json how long the chapters took"
    )
    parser.add_argument("--port", type=int, default=8000, help="for --serve (default 8000)")
    return parser.parse_args(arguments)


def _build(root: Path, book: list[Page], chapters: list[Page], named: list[Page], profile: str) -> Path:
    stale = [page for page in chapters if page in named or not is_current(root, page, profile)]
    with forking(root) if stale else nullcontext(Python()) as python:
        if stale:
            print(f"Running {len(stale)} of {len(chapters)} chapters, profile {profile}", flush=True)
            run(root, stale, profile, python)
        stage(root, book, profile)
        site, is_new = render(root, python.command)
    if is_new:
        check(root, book)
    return site


def _serve(site: Path, port: int) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)  # taken: any free one
    with server:
        print(f"Serving http://127.0.0.1:{server.server_address[1]} until Ctrl-C", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def command(root: Path) -> int:
    """``main`` as a process of its own: ended from outside, it ends what it has started, as Ctrl-C does."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    return main(sys.argv[1:], root)


if __name__ == "__main__":
    sys.exit(command(Path(__file__).resolve().parents[2]))
