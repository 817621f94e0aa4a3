"""What does a step cost the device alone, without the Python that asks for it? Steps replayed from a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .contestants import CONTESTANTS, LR
from .interleave import contest, stopwatch
from .intervals import quartiles
from .parameters import parameter_set
from .step import COPY, entries_of, streams

BASES = ("SGD", "Adam")
METHODS = (*BASES, "SGD-G", "Adam-G", "PSI-SGD")


def measure_captured(name: str, device: torch.device, *, quick: bool = False, **options: Any) -> dict[str, Any]:
    """Time fused steps of one parameter set as graphs, in turns with a copy of a large tensor.

    Args:
        name: As for `parameter_set`.
        device: A CUDA device.
        quick: A small copy, to see that everything works.
        options: As for `contest`.
    """
    weights_of = parameter_set(name)
    weights = weights_of.weights(device)
    grads = weights_of.gradients(weights)
    entries = entries_of(device, quick)
    runners = {method: _replayed(_optimizer(method, weights, grads)) for method in METHODS}
    runners[COPY] = streams(entries, device)[COPY]
    found = contest(runners, BASES, company=(COPY,), measure=stopwatch(device), **options)
    told: dict[str, Any] = {"name": name, "parameters": weights_of.parameters, "rounds": found.rounds, "results": []}
    for method in METHODS:
        bytes_moved = CONTESTANTS[f"{method} fused"].bytes_per_parameter * weights_of.parameters
        told["results"].append(
            {
                "name": method,
                "seconds": quartiles(list(found.seconds[method].values())),
                "ratios": {base: found.ratio(method, base).told() for base in BASES},
                "share_of_copy": found.ratio(method, COPY).into(bytes_moved / (8 * entries)).told(),
            }
        )
    return told


def _optimizer(method: str, weights: list[torch.Tensor], grads: list[torch.Tensor]) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = CONTESTANTS[f"{method} fused"].build(weights, grads)
    if method == "Adam":  # torch's asks to be told
        optimizer = torch.optim.Adam(optimizer.param_groups[0]["params"], lr=LR, fused=True, capturable=True)
    return optimizer


def _replayed(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A captured step; the graph works on the optimizer's tensors, which live as long as what is returned."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()

    def replay(optimizer: torch.optim.Optimizer = optimizer) -> None:
        graph.replay()

    return replay
