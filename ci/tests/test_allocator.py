"""A training process keeps the memory that it frees."""

import os
import platform
import subprocess
import sys

import pytest

from riembn.training.freed_memory import DECIDE, keep_freed_memory

CODE = """
import resource, torch
from riembn.training.freed_memory import keep_freed_memory
told = keep_freed_memory()
def step():
    kept = [torch.ones(1 << 20) for _ in range(8)]  # eight blocks of 4 MiB, free again at the end
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(int(told), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_stays_unless_the_environment_decides():
    told, faults = {}, {}
    for name, extra in (("ours", {}), ("theirs", {"MALLOC_TRIM_THRESHOLD_": "131072"})):
        plain = {name: value for name, value in os.environ.items() if name not in DECIDE}
        done = subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=plain | extra
        )
        told[name], faults[name] = map(int, done.stdout.split())
    assert told == {"ours": 1, "theirs": 0}
    assert 20 * faults["ours"] < faults["theirs"]  # 80 blocks of 1,024 pages, unless pages are larger


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
