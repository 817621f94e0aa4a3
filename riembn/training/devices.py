"""The devices on which one run is computed, and what of it falls to this one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from ..optim.rows.sharded import cut_as, keep_part, whole

_T = TypeVar("_T")


def check_device(device: torch.device | str | None) -> None:
    """Raise ValueError unless torch has the device."""
    if device is None:
        return
    try:
        if torch.empty(1, device=device).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"train: device={str(device)!r} cannot be had ({reason}); give 'cpu', or leave it out."
        ) from None


def is_first() -> bool:
    """Whether this process is the one that speaks and writes for all that `torchrun` started."""
    return not _launched() or os.environ.get("RANK") == "0"


def _launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def joined(device: torch.device | str | None, *, shard: bool) -> Iterator[Devices]:
    """The devices of this run: one, or as many as `torchrun` has started processes.

    Args:
        device: Where this process computes; None takes its GPU if there is one.
        shard: Cut weights and optimizer over the devices, instead of a copy on each.

    Raises:
        ValueError: If there is one process, and so nothing to shard.
    """
    distributed = torch.distributed
    present = distributed.is_available() and distributed.is_initialized()
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if not present and not _launched():
        if shard:
            raise ValueError(
                "train: shard=True cuts a network over several processes, and this is one; start them with "
                "torchrun --nproc-per-node N -m riembn train …"
            )
        yield Devices(chosen)
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(chosen)
    if not present:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    yield Devices(chosen, distributed.get_rank(), distributed.get_world_size(), shard=shard)
    if not present:  # not after an error: the others may wait, and torchrun ends them
        distributed.destroy_process_group()


class Devices:
    """The devices that share a run, each with one process; with a count of one everything here is as without.

    Args:
        device: Where this process computes.
        rank: Its number; process 0 reads and writes files for all.
        count: How many there are.
        shard: Whether each keeps its rows of every weight (FSDP) or all of them (DDP).
    """

    def __init__(self, device: torch.device, rank: int = 0, count: int = 1, *, shard: bool = False) -> None:
        self.device, self.rank, self.count, self.shard = device, rank, count, shard

    @property
    def first(self) -> bool:
        return self.rank == 0

    def pieces(self, parts: int) -> tuple[range, int]:
        """Which equal pieces of a batch this device computes, and how many there are.

        A batch has ``parts`` parts. Each device computes as many of them; where there are more devices than
        parts, several share one.
        """
        total = max(parts, self.count)
        each = total // self.count
        return range(self.rank * each, (self.rank + 1) * each), total

    def check(self, *, batch_size: int, parts: int, dropout: float) -> None:
        """Raise ValueError unless the parts of a batch can be divided among the devices."""
        n = self.count
        if (parts % n and n % parts) or batch_size % max(parts, n):
            raise ValueError(
                f"train: {n} devices cannot share batches of batch_size={batch_size} in accumulate={parts} parts; "
                "let one of the two divide the other, and both the batch."
            )
        if dropout and n > parts:
            raise ValueError(
                f"train: {n} devices that share accumulate={parts} parts would drop other values than one device; "
                f"give accumulate={n} or a multiple, or dropout=0."
            )

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network as it is to be called in training; sharding replaces its parameters."""
        if self.count == 1:
            return model
        if not self.shard:
            ids = [self.device] if self.device.type == "cuda" else None
            return nn.parallel.DistributedDataParallel(model, device_ids=ids)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # what FSDP takes
        for module in model.modules():
            if isinstance(module, nn.Conv2d):  # as it was: faster, and dropout draws in the order of memory
                module.register_forward_hook(_channels_last)
        mesh = init_device_mesh(self.device.type, (self.count,))
        for child in model.children():
            for block in child if isinstance(child, nn.ModuleList) else [child]:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    def summing(self, wrapped: nn.Module, now: bool) -> AbstractContextManager:
        """Whether the passes inside sum gradients over the devices, or keep them for the next ones."""
        if self.count == 1:
            return nullcontext()
        if self.shard:
            wrapped.set_requires_gradient_sync(now)  # type: ignore[operator]
            return nullcontext()
        return nullcontext() if now else wrapped.no_sync()  # type: ignore[operator]

    def total(self, value: Tensor) -> Tensor:
        """The sum over the devices, on all of them."""
        return self._reduced(value, "SUM")

    def least(self, value: Tensor) -> Tensor:
        """The smallest of the devices, on all of them."""
        return self._reduced(value, "MIN")

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace floating-point tensors by their means over the devices."""
        kept = [t for t in tensors if t.is_floating_point()]
        if self.count > 1 and kept:
            flat = self.total(torch.cat([t.flatten() for t in kept])).div_(self.count)
            for t, mean in zip(kept, flat.split([t.numel() for t in kept]), strict=True):
                t.copy_(mean.view_as(t))

    def from_first(self, make: Callable[[], _T]) -> _T:
        """What process 0 makes, on all of them; an error that it raises is raised on all, so that none waits."""
        if self.count == 1:
            return make()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = make()
            except Exception as error:
                box[1] = error
        torch.distributed.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def _reduced(self, value: Tensor, operation: str) -> Tensor:
        if self.count == 1:
            return value
        value = value.clone()
        torch.distributed.all_reduce(value, op=getattr(torch.distributed.ReduceOp, operation))
        return value


def _channels_last(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.contiguous(memory_format=torch.channels_last)


def gathered(state: Any) -> Any:
    """A state dict with all of every tensor: the same, however the network lies on devices."""
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list):
        return [gathered(value) for value in state]
    return whole(state)


@torch.no_grad()
def load_model(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what `gathered` made of ``model.state_dict()``."""
    for name, t in model.state_dict().items():
        keep_part(t, state[name].to(t.device))


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load what `gathered` made of ``optimizer.state_dict()``."""
    cut = {}
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for p, number in zip(group["params"], saved["params"], strict=True):
            if number in state["state"]:
                kept = state["state"][number]
                cut[number] = {key: cut_as(p, value, group) for key, value in kept.items()}
    optimizer.load_state_dict({**state, "state": cut})
