"""What the README says runs, and what it names is there."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import riembn
from riembn.__main__ import _parser

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_the_example_trains():
    code, fine_tuning = CODE
    tree = compile(code, "README", "exec")
    namespace = {}
    exec(tree, namespace)
    model, optimizer = namespace["model"], namespace["optimizer"]
    assert optimizer.parts[0].param_groups[0]["params"][0] is model[0].weight
    norms = model[0].weight.detach().flatten(1).norm(dim=1)
    assert (norms - 1).abs().max() < 1e-6

    exec(compile(fine_tuning, "README", "exec"), namespace)
    optimizer = namespace["optimizer"]
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model[0].weight)] == pytest.approx(0.02) and rates[id(model[4].weight)] == 0.1
    assert rates.keys() == {id(p) for p in model.parameters()} and len(model) == 6


def test_the_front_page_shows_the_same_example():
    code, _ = CODE
    cells = json.loads((ROOT / "book" / "intro.ipynb").read_text(encoding="utf-8"))["cells"]
    assert code in "\n".join("".join(cell["source"]) for cell in cells)


@pytest.mark.parametrize("name", re.findall(r"^    (riembn/\S+|book|ci) ", README, flags=re.M))
def test_everything_it_names_exists(name):
    assert (ROOT / name).exists()


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


def test_the_rest_is_most_of_a_pre_activation_network():
    model = riembn.models.build("wrn-10-1", num_classes=10, in_channels=1, width=0.5)
    found = riembn.split(model, torch.randn(4, 1, 32, 32))
    rest = sum(p.numel() for _, p in found.rest)
    assert 0.6 < rest / sum(p.numel() for p in model.parameters()) < 0.75


@pytest.mark.parametrize("line", re.findall(r"-m riembn (.+)$", README, flags=re.M))
def test_every_command_it_shows_is_understood(line):
    assert _parser().parse_args(shlex.split(line))
