"""What the README says runs, and what it names is there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_trains():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    tree = compile(code, "README", "exec")
    namespace = {}
    exec(tree, namespace)
    model, optimizer = namespace["model"], namespace["optimizer"]
    assert optimizer.parts[0].param_groups[0]["params"][0] is model[0].weight
    norms = model[0].weight.detach().flatten(1).norm(dim=1)
    assert (norms - 1).abs().max() < 1e-6


def test_the_front_page_shows_the_same_example():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    cells = json.loads((ROOT / "book" / "intro.ipynb").read_text(encoding="utf-8"))["cells"]
    assert code in "\n".join("".join(cell["source"]) for cell in cells)


@pytest.mark.parametrize("name", re.findall(r"^    (riembn/\S+|book|ci) ", README, flags=re.M))
def test_every_folder_it_names_exists(name):
    assert (ROOT / name).is_dir()


@pytest.mark.parametrize("name, given", re.findall(r"papermill (book/\S+\.ipynb) \S+ -p (\w+)", README))
def test_papermill_commands_name_real_chapters_and_parameters(name, given):
    import papermill

    assert given in papermill.inspect_notebook(str(ROOT / name))


def test_the_training_command_resolves():
    (command,) = re.findall(r"^    \.venv/bin/python (-m riembn train .*)$", README, flags=re.M)
    done = subprocess.run(
        [sys.executable, *command.split(), "--dry-run"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "vgg-11" in done.stdout and "digits" in done.stdout


def test_commands_are_executable():
    for name in ("ci/book", "ci/test", "ci/bench"):
        assert (ROOT / name).stat().st_mode & 0o111, name
        assert f"    {name} " in README
