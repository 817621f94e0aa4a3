"""When do ci/book and ci/test set .venv up, and when do they leave it alone?"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Stands in for Python: notes down what it is asked, makes a .venv that holds itself, and fails to install on demand.
STAND_IN = """#!/usr/bin/env bash
case "$*" in
  "-m venv --clear "*) echo venv >>"$LOG"; rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
  "-m pip install -qq triton"*) echo triton >>"$LOG"; [[ -z "${NO_TRITON:-}" ]] ;;
  "-m pip install "*) echo pip >>"$LOG"; [[ -z "${BROKEN:-}" ]] ;;
  "-c "*torch.version.cuda*) exit "${TORCH_BRINGS_TRITON:-0}" ;;
  "-c "*) exit "${UNSUPPORTED:-0}" ;;
esac
"""


class Checkout:
    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "ci").mkdir(parents=True)
        shutil.copy(ROOT / "ci" / "environment.sh", root / "ci")
        (root / "requirements.txt").write_text("torch\n")
        (root / "pyproject.toml").write_text("[project]\n")
        (root / "python").write_text(STAND_IN)
        (root / "python").chmod(0o755)

    def setup(self, **environment: str) -> tuple[int, list[str], str]:
        """Exit status, what Python was asked for, and what was said."""
        log = self.root / "log"
        log.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", "-c", f"set -euo pipefail; source {self.root}/ci/environment.sh"],
            cwd="/",
            env={**os.environ, "LOG": str(log), "PYTHON": str(self.root / "python"), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        asked = log.read_text().split() if log.exists() else []
        return done.returncode, asked, done.stdout + done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "repository")


def test_missing_environment_is_made_once(checkout: Checkout) -> None:
    status, asked, said = checkout.setup()
    assert (status, asked) == (0, ["venv", "pip", "triton", "pip"])
    assert said.startswith("Making .venv with ") and said.count("\n") == 1
    assert checkout.setup() == (0, [], "")


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml"])
def test_changed_requirements_bring_it_up_to_date(checkout: Checkout, name: str) -> None:
    checkout.setup()
    (checkout.root / name).write_text("changed\n")
    assert checkout.setup() == (0, ["pip", "triton", "pip"], "Requirements changed: bringing .venv up to date\n")
    assert checkout.setup() == (0, [], "")


def test_install_that_did_not_finish_does_not_count(checkout: Checkout) -> None:
    status, asked, _ = checkout.setup(BROKEN="1")
    assert status != 0 and asked == ["venv", "pip"]
    assert checkout.setup()[:2] == (0, ["venv", "pip", "triton", "pip"])


def test_moved_checkout_is_set_up_again(checkout: Checkout, tmp_path: Path) -> None:
    checkout.setup()
    checkout.root = checkout.root.rename(tmp_path / "moved")
    assert checkout.setup()[:2] == (0, ["pip", "triton", "pip"])


def test_triton_is_installed_where_torch_brings_none(checkout: Checkout) -> None:
    assert checkout.setup(TORCH_BRINGS_TRITON="1")[:2] == (0, ["venv", "pip", "pip"])


def test_machine_without_triton_does_without(checkout: Checkout) -> None:
    status, asked, said = checkout.setup(NO_TRITON="1")
    assert (status, asked) == (0, ["venv", "pip", "triton", "pip"]) and "tests will be skipped" in said
    assert checkout.setup() == (0, [], "")


def test_linked_environment_is_left_alone(checkout: Checkout, tmp_path: Path) -> None:
    (checkout.root / ".venv").symlink_to(tmp_path / "elsewhere")
    assert checkout.setup() == (0, [], "")


def test_unsupported_python_is_refused(checkout: Checkout) -> None:
    status, asked, said = checkout.setup(UNSUPPORTED="1")
    assert status == 1 and asked == []
    assert said.startswith("No Python 3.11, 3.12 or 3.13 with venv found")
