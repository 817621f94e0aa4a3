"""How does a chapter get run, and what is said when it fails?"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat

from website.contents import BookError, Page
from website.digest import code_digest, records_digest

AT_ONCE = 2
# Seconds a cell may take. A laptop cell may train what is missing from the records, a paper cell all of it.
CELL_LIMIT = {"smoke": 600, "laptop": 4 * 3600, "paper": None}


def executed(root: Path, page: Page, profile: str) -> Path:
    """Where the chapter lies as papermill left it."""
    return root / "_build" / "executed" / profile / f"{page.name}.ipynb"


def is_current(root: Path, page: Page, profile: str) -> bool:
    """Whether the chapter was run to its end, from what it is now."""
    done = executed(root, page, profile)
    if not done.is_file():
        return False
    told = json.loads(done.read_text(encoding="utf-8"))["metadata"].get("riembn", {})
    now = {"code": code_digest(root, page, profile), "records": records_digest(root, profile)}
    return told.get("digest") == now


def run(root: Path, chapters: Sequence[Page], profile: str) -> None:
    """Run chapters through papermill, each in a process of its own, and keep what ran to its end."""
    if not chapters:
        return
    if profile == "smoke":
        shutil.rmtree(root / "_build" / "records" / "smoke", ignore_errors=True)  # everything afresh
    code = {page: code_digest(root, page, profile) for page in chapters}
    told = {"profile": profile, "environment": _environment(root)}
    ended: list[Page] = []
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool, _processes() as running:
            waiting = {pool.submit(_run_one, root, page, profile, running): page for page in chapters}
            try:
                for done in as_completed(waiting):
                    print(f"  {waiting[done].name:<20} {done.result():6.1f} s", flush=True)
                    ended.append(waiting[done])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        # The records are looked at last: a chapter may have trained some that another one reads as well.
        records = records_digest(root, profile)
        for page in ended:
            _keep(executed(root, page, profile), {"digest": {"code": code[page], "records": records}, **told})


def environment() -> dict[str, str]:
    """The environment of a chapter: this Python's own kernel, one thread, nothing of the user's settings."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MPLBACKEND")}
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    kernel = {"JUPYTER_PATH": str(Path(sys.prefix, "share", "jupyter")), "JUPYTER_PREFER_ENV_PATH": "1"}
    ours = {"IPYTHONDIR": str(Path("_build/ipython").resolve()), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    return {**kept, **one, **kernel, **ours, "PYTHONHASHSEED": "0"}


def command(source: str, output: str, profile: str) -> list[str]:
    """The call of papermill, from the root of the repository."""
    limit = CELL_LIMIT[profile]
    return [
        *(sys.executable, "-m", "papermill", source, output, "-p", "profile", profile),
        *("--cwd", ".", "--no-progress-bar", "--autosave-cell-every", "30"),
        *(("--execution-timeout", str(limit)) if limit else ()),
    ]


def _run_one(root: Path, page: Page, profile: str, running: list[subprocess.Popen[str]]) -> float:
    target = executed(root, page, profile)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    output = _unfinished(target)
    output.unlink(missing_ok=True)
    started = time.monotonic()
    process = subprocess.Popen(
        command(str(page.source.relative_to(root)), str(output.relative_to(root)), profile),
        cwd=root,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    running.append(process)
    said, _ = process.communicate()
    # The exit code alone is to be trusted: after a timeout the notebook calls all of its cells completed.
    if process.returncode:
        raise BookError(_failure(page, output, said, time.monotonic() - started, root))
    return time.monotonic() - started


def _failure(page: Page, output: Path, said: str, seconds: float, root: Path) -> str:
    """One line on what went wrong, then the end of the traceback and where to look."""
    cells = nbformat.read(output, as_version=4).cells if output.is_file() else []
    added = {"papermill-error-cell-tag", "injected-parameters"}  # by papermill: not counted by who wrote it
    code = [c for c in cells if c.cell_type == "code" and not added & set(c.metadata.get("tags", []))]
    for place, cell in enumerate(code, 1):
        for error in (out for out in cell.outputs if out.output_type == "error"):
            if error.ename == "KeyboardInterrupt":
                continue
            trace = _plain("\n".join(error.traceback)).splitlines()
            shown = [f"    {line}" for line in trace if line.strip(" -")][-12:]
            head = f"{page.name}: code cell {place} failed: {error.ename}: {error.evalue}"
            return "\n".join([head, *shown, f"  All of it: {output.relative_to(root)}"])
    if "Timeout" in said:
        return f"{page.name}: a cell ran for longer than allowed and was stopped after {seconds:.0f} s."
    last = [line for line in _plain(said).splitlines() if line.strip()] or ["no message"]
    return f"{page.name}: papermill failed: {last[-1].strip()}"


def _keep(target: Path, told: dict[str, Any]) -> None:
    """Make a chapter that ran to its end the one that counts, with what is known about its run."""
    notebook = nbformat.read(_unfinished(target), as_version=4)
    notebook.metadata["riembn"] = told
    nbformat.write(notebook, _unfinished(target))
    _unfinished(target).replace(target)


def _environment(root: Path) -> dict[str, Any]:
    """Device, versions and commit, asked of the Python that runs the chapters."""
    ask = (
        "import json, torch; from riembn.training.machine import environment; "
        "print(json.dumps(environment(torch.device('cuda' if torch.cuda.is_available() else 'cpu'))))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", ask], cwd=root, env=environment(), capture_output=True, text=True, check=False
    )
    if answer.returncode:
        last = answer.stderr.strip().splitlines()[-1:]
        raise BookError(f"The package cannot be imported: {' '.join(last)}")
    return dict(json.loads(answer.stdout))


def _unfinished(target: Path) -> Path:
    return target.with_suffix(".unfinished.ipynb")


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@contextmanager
def _processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes started inside; those still alive at the end are stopped, and their kernels follow."""
    started: list[subprocess.Popen[str]] = []
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
