"""How does an optimizer's step become one launch? As a CUDA graph."""

from __future__ import annotations

import torch
from torch.optim.optimizer import Optimizer

__all__ = ["GraphedStep"]

WARM_UP = 3


class GraphedStep:
    """The step of an optimizer, recorded as a CUDA graph and replayed.

    The first steps are taken as they are: they make the optimizer's state and compile its kernels. The graph
    holds the addresses of gradients and the learning rates as they were: gradients are to be zeroed in place
    (``zero_grad(set_to_none=False)``), and a change of rates records it anew.

    Args:
        optimizer: One whose step reads no tensor's value on the host, and whose other numbers change with the
            rates only.

    Not yet run on a GPU.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rates: list[float] = []
        self._taken = 0

    def __call__(self) -> None:
        """Take one step."""
        if self._taken < WARM_UP:
            self._optimizer.step()
            self._taken += 1
            return
        rates = [group["lr"] for group in self._optimizer.param_groups]
        if self._graph is None or rates != self._rates:
            self._check()
            self._graph, self._rates = torch.cuda.CUDAGraph(), rates
            with torch.cuda.graph(self._graph):  # records, and computes nothing
                self._optimizer.step()
        self._graph.replay()

    def _check(self) -> None:
        counts = [state["step"] for state in self._optimizer.state.values() if "step" in state]
        if any(not count.is_cuda for count in counts):
            raise ValueError(
                "train: cuda_graphs=True does not go with an optimizer whose step count is on the host, "
                "where a graph would keep it as it was; leave it out, or install triton."
            )
