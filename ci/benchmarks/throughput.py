"""How near does training come to the matrix rate of the device, and what takes the rest?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import riembn

from .interleave import contest, stopwatch
from .intervals import quartiles

NETWORK, BATCH = "wrn-28-10", 128
STEP, MATRIX = "training step", "matrix product"


def measure_throughput(
    device: torch.device,
    *,
    network: str = NETWORK,
    batch: int = BATCH,
    matrix: int = 8192,
    **options: Any,
) -> dict[str, Any]:
    """WRN-28-10 under SGD-G in bfloat16 autocast and channels_last memory, in turns with a large matrix product.

    The images are random and ready on the device. Operations are those of convolutions and matrix products, forward
    and backward, as torch counts them; weights stay in float32.

    Args:
        device: Where to train.
        network: As in `riembn.RunConfig`.
        batch: Images a step.
        matrix: Rows and columns of the factors.
        options: As for `contest`.

    Returns:
        Images a second, the share of the matrix rate, and the operations that took most of the time.
    """
    torch.manual_seed(0)
    model = riembn.models.build(network, num_classes=10, in_channels=3)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=device)
    optimizer = riembn.build_optimizer(model, images, "sgd-g")

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    left, right = (torch.randn(matrix, matrix, device=device, dtype=torch.bfloat16) for _ in range(2))
    with FlopCounterMode(display=False) as counter:
        step()
    operations, product = counter.get_total_flops(), 2 * matrix**3
    runners = {STEP: step, MATRIX: lambda: left @ right}
    found = contest(runners, [MATRIX], measure=stopwatch(device), **options)
    slower = found.ratio(STEP, MATRIX)
    rates = quartiles([batch / t for t in found.seconds[STEP].values()])
    return {
        "network": network,
        "batch": batch,
        "images_per_second": rates,
        "matrix_flops": product / quartiles(list(found.seconds[MATRIX].values()))["median"],
        "share": slower.into(operations / product).told(),
        "rounds": found.rounds,
        "operations": _profile(step, device),
    }


def _profile(step: Any, device: torch.device, rows: int = 15) -> list[dict[str, Any]]:
    """The operations (on a GPU: kernels) of five steps that took most time by themselves, and their share of it."""
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, *([kinds.CUDA] if device.type == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(5):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = profile.key_averages()
    if device.type == "cuda":
        events = _kernels(events)
    events = sorted(events, key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events)
    return [
        {"name": event.key[:80], "calls": event.count, "share": getattr(event, key) / total}
        for event in events[:rows]
    ]


def _kernels(events: Iterable[Any]) -> list[Any]:
    """What the device ran; the operations and named regions that launched it say the same time again."""
    cuda = torch.autograd.DeviceType.CUDA
    return [event for event in events if event.device_type == cuda and not event.is_user_annotation]
