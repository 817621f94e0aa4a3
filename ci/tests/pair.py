"""Two processes that a test module starts once: each calls every check, and a test asks how one of them went."""

import traceback
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

WORLD = 2


class Checks:
    """Functions that both processes call in turn, until one of them fails."""

    def __init__(self):
        self.found = {}

    def __call__(self, check):
        self.found[check.__name__] = check
        return check

    def outcomes(self, folder):
        """What each process says of each check that it came to: None, or what went wrong."""
        torch.multiprocessing.spawn(_run, (str(folder), list(self.found.values())), nprocs=WORLD)
        return [torch.load(folder / f"rank{rank}") for rank in range(WORLD)]


def ask(outcomes, name):
    for outcome in outcomes:
        if name not in outcome:
            pytest.fail("an earlier one failed, and the processes stopped there")
        assert outcome[name] is None, outcome[name]


def _run(rank, folder, checks):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/rendezvous", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    outcomes = {}
    for check in checks:
        torch.manual_seed(0)
        try:
            check()
            outcomes[check.__name__] = None
        except Exception:
            outcomes[check.__name__] = traceback.format_exc()
            break  # the processes may be out of step now
    torch.save(outcomes, f"{folder}/rank{rank}")
    dist.destroy_process_group()
