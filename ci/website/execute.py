"""Run chapters through papermill, keep each as it ends, and say in one line what failed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from website.contents import BookError, Page
from website.digest import code_digest, package_digest, records, records_digest
from website.endings import used
from website.processes import marked, stop

AT_ONCE = 2
# Seconds a cell may take. A laptop cell may train what is missing from the records, a paper cell all of it.
CELL_LIMIT = {"smoke": 600, "laptop": 4 * 3600, "paper": None}


def executed(root: Path, page: Page, profile: str) -> Path:
    """Where the chapter lies as papermill left it, without the times that differ from run to run."""
    return root / "_build" / "executed" / profile / f"{page.name}.ipynb"


def times(root: Path, page: Page, profile: str) -> dict[str, float]:
    """Seconds that the chapter, and its slowest cell, took when it last ran; empty if it has not."""
    file = executed(root, page, profile).with_suffix(".times.json")
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def keep_times(root: Path, chapters: Sequence[Page], profile: str) -> Path:
    """Write ``book/times.json``: measured once and kept, so that two builds give the same pages."""
    file = root / "book" / "times.json"
    measured = {page.name: took for page in chapters if (took := times(root, page, profile))}
    told = {"machine": _environment(root, [sys.executable, "-m"])["cpu"], "profile": profile, "chapters": measured}
    file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return file


def is_current(root: Path, page: Page, profile: str) -> bool:
    """Whether the chapter was run to its end, from what it and its records are now."""
    done = executed(root, page, profile)
    if not done.is_file():
        return False
    notebook = nbformat.reads(done.read_text(encoding="utf-8"), as_version=4)
    told = notebook.metadata.get("riembn", {}).get("digest", {})
    if told.get("code") != code_digest(root, page, profile):
        return False  # another package made it: it may not say which runs it is drawn from
    return told.get("records") == records_digest(root, page, profile, used(notebook))


@dataclass(frozen=True)
class Python:
    """How a module is started: what comes before its name, and variables by which papermill finds its kernel."""

    command: Sequence[str] = (sys.executable, "-m")
    kernel: Mapping[str, str] = field(default_factory=dict)


def run(root: Path, chapters: Sequence[Page], profile: str, python: Python) -> None:
    """Run chapters through papermill, each in a process of its own; one that ran to its end is kept at once."""
    _forget_other_packages_runs(root)
    # Longest first, so that the two ends of the line meet.
    longest = sorted(chapters, key=lambda page: -times(root, page, profile).get("chapter", 1e9))
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(AT_ONCE) as kernels:
        told = pool.submit(_environment, root, python.command)
        waiting = {kernels.submit(_run_one, root, page, profile, python): page for page in longest}
        try:
            for done in as_completed(waiting):
                page = waiting[done]
                code, seconds = done.result()
                _keep(root, page, profile, code, seconds, told.result())
                print(f"  {page.name:<20} {seconds:6.1f} s", flush=True)
        except BaseException:
            kernels.shutdown(wait=False, cancel_futures=True)
            stop(root)
            raise


def _forget_other_packages_runs(root: Path) -> None:
    """Runs of profile smoke show that the code works: those of other code are trained again."""
    folder = records(root, "smoke")
    by = folder / "package"
    now = package_digest(root)
    if not by.is_file() or by.read_text(encoding="utf-8") != now:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        by.write_text(now, encoding="utf-8")


@contextmanager
def forking(root: Path) -> Iterator[Python]:
    """A Python with its imports behind it, on Linux: see `preloaded`."""
    if sys.platform != "linux":
        yield Python()
        return
    ours = environment(root)
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder, "socket")
        python = [sys.executable, str(Path(__file__).with_name("preloaded.py")), str(ready)]
        spec = Path(folder, "kernels", "python3", "kernel.json")
        spec.parent.mkdir(parents=True)
        started = [*python, "ipykernel_launcher", "-f", "{connection_file}"]
        spec.write_text(json.dumps({"argv": started, "display_name": "Python 3", "language": "python"}))
        with subprocess.Popen(python, cwd=root, env=ours | marked(root), stdin=subprocess.DEVNULL) as server:
            try:
                while not ready.exists():
                    if server.poll() is not None:
                        raise BookError(f"The process that imports for all chapters has ended ({server.returncode}).")
                    time.sleep(0.02)
                yield Python(python, {"JUPYTER_PATH": os.pathsep.join([folder, ours["JUPYTER_PATH"]])})
            finally:
                server.kill()


def environment(root: Path) -> dict[str, str]:
    """The environment of a chapter: this clone's package, this Python's own kernel, one thread, no user's settings."""
    kept = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    kernel = {"JUPYTER_PATH": str(Path(sys.prefix, "share", "jupyter")), "JUPYTER_PREFER_ENV_PATH": "1"}
    ours = {"IPYTHONDIR": str(root / "_build" / "ipython"), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    return {**kept, **one, **kernel, **ours, "PYTHONPATH": str(root), "PYTHONHASHSEED": "0"}


def _command(source: str, output: str, profile: str) -> list[str]:
    """The call of papermill, from the root of the repository."""
    limit = CELL_LIMIT[profile]
    return [
        *("papermill", source, output, "-p", "profile", profile),
        # else it writes the whole notebook before and after each cell, which takes longer than all else that it does
        *("--cwd", ".", "--no-progress-bar", "--no-request-save-on-cell-execute"),
        *(("--execution-timeout", str(limit)) if limit else ()),
    ]


def _run_one(root: Path, page: Page, profile: str, python: Python) -> tuple[str, float]:
    """Digest of the code that ran, and seconds; the notebook lies in ``_unfinished``."""
    code = code_digest(root, page, profile)
    target = executed(root, page, profile)
    target.parent.mkdir(parents=True, exist_ok=True)
    output = _unfinished(target)
    output.unlink(missing_ok=True)
    started = time.monotonic()
    process = subprocess.Popen(
        [*python.command, *_command(str(page.source.relative_to(root)), str(output.relative_to(root)), profile)],
        cwd=root,
        env={**environment(root), **marked(root), **python.kernel},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said, _ = process.communicate()
    # The exit code alone is to be trusted: after a timeout the notebook calls all of its cells completed.
    if process.returncode:
        raise BookError(_failure(page, output, said, time.monotonic() - started, root))
    return code, time.monotonic() - started


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


def _keep(
    root: Path, page: Page, profile: str, code: str, seconds: float, environment: dict[str, Any]
) -> None:
    """Make a chapter that ran to its end the one that counts, with what is known about its run."""
    target = executed(root, page, profile)
    notebook = nbformat.read(_unfinished(target), as_version=4)
    slowest = max((cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in notebook.cells), default=0)
    told = {"chapter": round(seconds, 1), "slowest cell": round(slowest, 1)}
    target.with_suffix(".times.json").write_text(json.dumps(told), encoding="utf-8")
    _same_each_time(notebook)
    notebook.metadata["riembn"] = {
        "profile": profile,
        "environment": environment,
        "digest": {"code": code, "records": records_digest(root, page, profile, used(notebook))},
    }
    nbformat.write(notebook, _unfinished(target))
    _unfinished(target).replace(target)


def _same_each_time(notebook: NotebookNode) -> None:
    """Take out what differs between two runs that show the same: times, ids, and how printed lines were cut."""
    about = notebook.metadata["papermill"]
    notebook.metadata["papermill"] = {name: about.get(name) for name in ("parameters", "exception")}
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"
        cell.metadata.pop("execution", None)
        if "papermill" in cell.metadata:
            cell.metadata["papermill"] = {"status": cell.metadata["papermill"].get("status")}
        outputs: list[NotebookNode] = []
        for out in cell.get("outputs", []):
            before = outputs[-1] if outputs else None
            if before and before.output_type == out.output_type == "stream" and before.name == out.name:
                before.text += out.text
            else:
                outputs.append(out)
        if cell.cell_type == "code":
            cell.outputs = outputs


def _environment(root: Path, python: Sequence[str]) -> dict[str, Any]:
    """Device, versions and commit, asked of the Python that runs the chapters."""
    command = [*python, "riembn.training.machine"]
    answer = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, check=False)
    if answer.returncode:
        last = answer.stderr.strip().splitlines()[-1:]
        raise BookError(f"The package cannot be imported: {' '.join(last)}")
    return dict(json.loads(answer.stdout))


def _unfinished(target: Path) -> Path:
    return target.with_suffix(".unfinished.ipynb")


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
