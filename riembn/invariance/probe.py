"""How does what a network computes answer when its weights are rescaled?"""

from __future__ import annotations

import contextlib
import copy
import inspect
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from riembn.invariance.exact import Exact

__all__ = ["LossError", "Probe", "one_line"]

Loss = Callable[[Any], Tensor]
_HOOKS = re.compile(r"_(forward|backward)(_pre)?_hooks(_with_kwargs|_always_called)?$")
_RANDOM_DEPTH = re.compile("drop|stochastic", re.IGNORECASE)
_EPS_NAMES = ("eps", "epsilon", "variance_epsilon", "layer_norm_eps")


class LossError(TypeError):
    """What the loss gives is no loss."""


class Probe:
    """A float64 copy of a model, in training mode, whose parameters can be rescaled and restored.

    Dropout and stochastic depth are off, and every evaluation starts from the same buffers and random state.
    The model given, its gradients, buffers, hooks and flags, and the caller's random state are left alone.

    Args:
        model: Its own flags are kept if it is in training mode (a frozen BatchNorm stays frozen); a model in
            evaluation mode is measured with everything in training mode.
        example_input: A tensor, a tuple of positional arguments, a dict of keyword arguments, or whatever the
            model takes as its one argument.
        loss: Maps the model's output to a scalar tensor; None compares the whole output.
        eps: For every normalization; None keeps the model's own.
        factors: Smallest and largest factor for a vector.
        generic: Move parameters and inputs off special values (zeros, constants) at which a weight can be
            scale-invariant by accident: a bias that starts at zero, a residual branch scaled by zero.
        copies: How many noisy copies of the example to stack along the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Any,
        loss: Loss | None,
        *,
        eps: float | None,
        factors: tuple[float, float],
        generic: bool,
        copies: int = 1,
    ) -> None:
        self.loss, self.eps, self.range = loss, eps, factors
        self._generator = torch.Generator().manual_seed(0)
        self.model = _copy(model)
        if not model.training:
            self.model.train()
        for module in self.model.modules():
            _quiet(module, eps)
        if generic:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.copy_(self._off_special_values(parameter))
        self.parameters = dict(self.model.named_parameters())
        self._values = {n: p.detach().clone() for n, p in self.parameters.items()}
        self._buffers = {n: b.detach().clone() for n, b in self.model.named_buffers()}
        on_cpu = any(p.device.type == "mps" for p in model.parameters())  # mps knows no float64
        self._input = _map(example_input, lambda t: self._input_tensor(t.cpu() if on_cpu else t, generic))
        if copies > 1:
            self._input = _map(self._input, lambda t: self._stack(t, copies))
        self.normalizes, self.cut = False, False
        self._reference: list[Tensor] = []

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape of ``like``, from the probe's own generator."""
        return torch.randn(like.shape, generator=self._generator, dtype=like.dtype).to(like.device)

    def factors(self, rows: int) -> Tensor:
        """Independent positive factors, log-uniform in the probe's range.

        Continuous, so that no two of them cancel by chance: a pair of layers that only share a scale cannot
        pass. Powers of two would be free of rounding, but collide.
        """
        low, high = self.range
        return low * (high / low) ** torch.rand(rows, generator=self._generator, dtype=torch.float64)

    def outputs(self) -> list[Tensor]:
        """The loss, or each floating-point tensor of the output, at the present parameters."""
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self._buffers[name])
        mode = Exact(self.eps)
        with _same_randomness(self.model), _eager(self.model), mode:
            # A clone, because a model may work on its input in place.
            args, kwargs = _arguments(self.model, _map(self._input, torch.clone))
            value = self.model(*args, **kwargs)
            tensors = _tensors(value) if self.loss is None else [_scalar(self.loss(value))]
        self.normalizes = mode.normalizations > 0 or any(map(_is_normalization, self.model.modules()))
        self.cut = self.cut or (torch.is_grad_enabled() and mode.cut)
        return [t.double() for t in tensors]

    def gradients(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Gradients of a random linear functional of the output (relative to its size), and the output.

        The loss takes the place of the functional where there is one. A parameter the output does not depend
        on has no entry. The output still carries its graph.
        """
        with torch.enable_grad():
            outputs = self.outputs()
            self._reference = [t.detach() for t in outputs]
            live = [t for t in outputs if t.requires_grad]
            scalars = [
                (t / _size(t) if t.numel() == 1 else t * self.noise(t) / _size(t)).sum().real for t in live
            ]
            names = [n for n, p in self.parameters.items() if p.requires_grad]
            if not scalars or not names:
                return {}, outputs
            grads = torch.autograd.grad(
                sum(scalars, torch.zeros((), dtype=torch.float64, device=scalars[0].device)),
                [self.parameters[n] for n in names],
                allow_unused=True,
            )
        return {n: g for n, g in zip(names, grads, strict=True) if g is not None}, outputs

    @torch.no_grad()
    def change(self, values: Mapping[str, Tensor]) -> float:
        """Largest relative change of an output when the named parameters take other values, this one time.

        Infinite if that makes an output non-finite. `gradients` must have been called: it sets the reference.
        """
        for name, value in values.items():
            self.parameters[name].copy_(value)
        try:
            moved = self.outputs()
        finally:
            for name in values:
                self.parameters[name].copy_(self._values[name])
        gaps = [float((a - b).norm() / _size(b)) for a, b in zip(moved, self._reference, strict=True)]
        return max((gap if gap == gap else float("inf") for gap in gaps), default=0.0)

    def _off_special_values(self, tensor: Tensor) -> Tensor:
        zero, constant = tensor == 0, _is_constant(tensor)
        if not tensor.is_floating_point() or not (constant or bool(zero.any())):
            return tensor
        noise = (
            torch.rand(tensor.shape, generator=self._generator, dtype=tensor.dtype).to(tensor.device) + 0.5
        )
        return noise / tensor[0].numel() ** 0.5 if constant else torch.where(zero, 0.1 * noise, tensor)

    def _input_tensor(self, tensor: Tensor, generic: bool) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.detach().clone()
        tensor = tensor.detach().double()
        if generic and _is_constant(tensor):
            tensor = tensor + self.noise(tensor)
        # With a gradient, a shortcut that carries the bare input is seen in the graph as well.
        return tensor.clone().requires_grad_()

    def _stack(self, tensor: Tensor, copies: int) -> Tensor:
        if tensor.dim() == 0:
            return tensor
        if not tensor.is_floating_point():
            return torch.cat([tensor] * copies)
        spread = tensor.detach().std(unbiased=False).clamp_min(1e-3)
        more = [tensor.detach() + spread * self.noise(tensor) for _ in range(copies - 1)]
        return torch.cat([tensor.detach(), *more]).requires_grad_()


def _copy(model: nn.Module) -> nn.Module:
    if any(nn.parameter.is_lazy(p) for p in model.parameters()):
        raise ValueError(
            "split: the model has uninitialized (lazy) parameters; run it once on the example first."
        )
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError(
            "split: a scripted module hides its eps and dropout; give the module it was made from."
        )
    # What a forward pass left behind as an attribute (a weight computed by a hook, a map kept to be looked at)
    # cannot be copied as part of its graph, and is computed anew.
    left = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    try:
        twin = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in left})
    except Exception as error:
        raise ValueError(
            f"split: the model cannot be copied ({one_line(error)}). Give a module that copy.deepcopy accepts; "
            "of a model wrapped for several devices, the module inside."
        ) from error
    if any(p.device.type == "mps" for p in twin.parameters()):
        twin = twin.cpu()
    return twin.double()


def _quiet(module: nn.Module, eps: float | None) -> None:
    """No hooks of the user's, no dropout, and the eps asked for, in this module alone."""
    for name, hooks in vars(module).items():
        if _HOOKS.match(name) and isinstance(hooks, dict):
            # Pruning and hook-based spectral norm compute weights in hooks of torch's own: those stay.
            for key in [k for k, h in hooks.items() if not type(h).__module__.startswith("torch.nn.utils")]:
                del hooks[key]
        elif isinstance(hooks, Tensor) and hooks.is_floating_point() and not isinstance(hooks, nn.Parameter):
            setattr(module, name, hooks.double())  # a constant kept as a plain attribute
    if _RANDOM_DEPTH.search(type(module).__name__):
        module.training = False
    if eps is not None:
        for name in _EPS_NAMES:
            if isinstance(vars(module).get(name), float):
                setattr(module, name, eps)


def _map(value: Any, f: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, Mapping):
        return {k: _map(v, f) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(v, f) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(_map(v, f) for v in value)
    return value


def _arguments(model: nn.Module, given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How the example goes into forward: spread out where the signature takes it, else as one argument."""
    forward = inspect.signature(model.forward)
    with contextlib.suppress(TypeError):
        if isinstance(given, tuple):
            forward.bind(*given)
            return given, {}
        if isinstance(given, Mapping):
            forward.bind(**given)
            return (), dict(given)
    return (given,), {}


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() and value.numel() else []
    if isinstance(value, Mapping):
        value = value.values()
    elif hasattr(value, "__dataclass_fields__"):
        value = vars(value).values()
    elif not isinstance(value, Sequence) or isinstance(value, str):
        return []
    return [tensor for item in value for tensor in _tensors(item)]


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
        raise LossError(f"loss gives a {type(loss).__name__}{shape}; it is to give a scalar tensor")
    return loss


def _size(tensor: Tensor) -> Tensor:
    norm = tensor.detach().norm()
    return torch.where(norm > 0, norm, torch.ones_like(norm))


def _is_constant(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())


def _is_normalization(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() or any(name in vars(module) for name in _EPS_NAMES)


def one_line(error: BaseException) -> str:
    """The error's type and the first line of its message."""
    message = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {message[0]}"


def _eager(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Compiled parts run uncompiled: compiling them for a few passes in float64 would only cost time."""
    compiled = any(hasattr(module, "_orig_mod") for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()


@contextlib.contextmanager
def _same_randomness(model: nn.Module) -> Iterator[None]:
    """The same random numbers in every evaluation, float64 by default; then the caller's own state again."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    python_state, default = random.getstate(), torch.get_default_dtype()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(0)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(0)
            random.seed(0)
            if numpy:
                numpy.random.seed(0)
            torch.set_default_dtype(torch.float64)
            yield
    finally:
        torch.set_default_dtype(default)
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)
