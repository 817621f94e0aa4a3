"""Does a module that is forked from a process with its imports done behave as one that Python was started for?"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[1] / "website" / "preloaded.py"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the book is built by forking on Linux alone")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preloaded")
    modules = {
        "greet": "import os, sys; print(sys.argv[1:], os.environ['OF'], os.getcwd(), input(), file=sys.stderr)",
        "leave": "import sys; sys.exit(int(sys.argv[1]))",
        "fail": "raise ValueError('as it happens')",
        "child": "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', 'exit(7)']).returncode)",
        # within `try`, for the interrupt may come before print has returned
        "wait": "import os, time\ntry:\n    print(os.getpid(), flush=True)\n    time.sleep(600)\n"
        "except KeyboardInterrupt:\n    print('interrupted')",
        "loaded": "import sys; print('torch' in sys.modules, any('website' in entry for entry in sys.path))",
    }  # fmt: skip
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    started = [sys.executable, str(SCRIPT), str(folder / "socket")]
    server = subprocess.Popen(started, env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"})
    while not (folder / "socket").exists():
        assert server.poll() is None
        time.sleep(0.02)
    yield started
    server.kill()
    server.wait()


def test_arguments_streams_folder_and_environment_are_those_of_who_asked(python, tmp_path):
    done = subprocess.run(
        [*python, "greet", "one", "two"], cwd=tmp_path, env={**os.environ, "OF": "him"}, input="hello\n",
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == f"['one', 'two'] him {tmp_path} hello\n" and not done.stdout and not done.returncode


def test_it_finds_modules_where_who_asked_does(python, tmp_path):
    (tmp_path / "elsewhere.py").write_text("print('found')", encoding="utf-8")
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(tmp_path)])
    done = subprocess.run(
        [*python, "elsewhere"], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout == "found\n"


def test_it_has_its_imports_and_not_the_scripts_folder(python):
    done = subprocess.run([*python, "loaded"], capture_output=True, text=True)
    assert done.stdout == "True False\n"


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [("leave 5", 5, ""), ("fail", 1, "ValueError: as it happens"), ("child", 7, ""), ("none_such", 1, "none_such")],
)
def test_exit_code(python, asked, code, said):
    done = subprocess.run([*python, *asked.split()], capture_output=True, text=True)
    assert done.returncode == code and said in done.stderr


@pytest.fixture
def waiting(python):
    with subprocess.Popen([*python, "wait"], stdout=subprocess.PIPE, text=True) as asked:
        yield asked, psutil.Process(int(asked.stdout.readline()))


def test_an_interrupt_reaches_it(waiting):
    asked, _ = waiting
    asked.send_signal(signal.SIGINT)
    said, _ = asked.communicate(timeout=30)
    assert said == "interrupted\n" and asked.returncode == 0


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_who_asked(waiting, ending):
    asked, forked = waiting
    asked.send_signal(ending)
    asked.wait(timeout=30)
    gone, _ = psutil.wait_procs([forked], timeout=30)
    assert gone


def test_killed_it_is_no_success(waiting):
    asked, forked = waiting
    forked.kill()
    assert asked.wait(timeout=30) == 1
