"""What `ci/test` says of a test that kills its process."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

SCRIPT = (Path(__file__).parents[1] / "test").read_text()


def test_a_test_that_dies_is_named(tmp_path: Path) -> None:
    found = re.search(r"-m pytest (.*) \"\$@\"$", SCRIPT, re.MULTILINE)
    assert found, "ci/test does not call pytest"
    tests = "import os\nimport pytest\n\n\ndef test_dies():\n    os.abort()\n"
    tests += '\n\n@pytest.mark.parametrize("i", range(6))\ndef test_after(i):\n    pass\n'
    for name in ("test_one.py", "test_two.py"):
        (tmp_path / name).write_text(tests)
    command = [sys.executable, "-m", "pytest", *shlex.split(found[1]), "-p", "no:cacheprovider", "--rootdir", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout[-2000:]
    assert re.search(r"^FAILED test_(one|two)\.py::test_dies", done.stdout, re.MULTILINE)
    assert "INTERNALERROR" not in done.stdout
