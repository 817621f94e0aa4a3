"""A float64 copy of a model that can be evaluated again and again from the same state, with its weights rescaled."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from riembn.geometry import Layout
from riembn.invariance.copying import copied_model, one_line
from riembn.invariance.exact import Exact, widened
from riembn.invariance.example import arguments, enough_samples, first_samples, mapped, tensors
from riembn.invariance.heap import Heap
from riembn.invariance.offload import Offload
from riembn.invariance.patches import Patches
from riembn.invariance.radial import Radial, radial
from riembn.invariance.state import EPS_NAMES, State, random_state

Loss = Callable[[Any], Tensor]
Edit = Callable[[Tensor], None]
"""Changes a parameter in place."""

_LEAST_STEP = 2**20  # bytes: to give fewer back takes longer than they are worth
_RANDOM_DEPTH = re.compile("drop|stochastic", re.IGNORECASE)


class LossError(TypeError):
    """What the loss gives is no loss."""


class Twin:
    """A float64 copy of a model, in training mode; each evaluation starts from the same state.

    Parameters, buffers, attributes of modules and random generators are set back before each. Dropout and
    stochastic depth are off. The model given, its gradients, buffers, hooks and flags, and the caller's random
    state are left alone; forward hooks are part of what a model computes, so copies of them run.

    Args:
        model: Its own flags are kept if it is in training mode (a frozen BatchNorm stays frozen); a model in
            evaluation mode is measured with everything in training mode.
        example_input: A tensor, a tuple of positional arguments, a dict of keyword arguments, or whatever the
            model takes as its one argument.
        loss: Maps the model's output to a scalar tensor; None compares the whole output.
        layouts: Of which parameters the gradient is wanted, and how their rows may lie.

    Attributes:
        generic: Whether parameters and inputs are moved off special values (zeros, constants) at which a weight
            can be scale-invariant by accident: a bias that starts at zero, a residual branch scaled by zero.
        eps: Whether normalizations have their own eps.
        samples: How many of the example's are used; None for all.
        offloads: Whether what the gradient needs waits in a file.
        copies: How many noisy copies of the example are stacked along the batch.
        passes: How often the copy has run.
        normalizes: Whether anything met so far looks like a normalization.
        draws: Whether random numbers were drawn.
        cut: Whether a gradient may not tell the truth, because a value left the graph.
    """

    def __init__(
        self, model: nn.Module, example_input: Any, loss: Loss | None, layouts: Mapping[str, tuple[Layout, ...]]
    ) -> None:
        self.generic, self.eps, self.through, self.offloads, self.copies = True, False, True, True, 1
        self.passes, self.normalizes, self.draws, self.cut, self._differentiates = 0, False, False, False, False
        self._loss, self._layouts, self._given = loss, layouts, example_input
        self.samples = enough_samples(example_input)
        self._own = dict(model.named_parameters())
        self._on_cpu = any(p.device.type == "mps" for p in self._own.values())
        self.model = copied_model(model)
        if not model.training:
            self.model.train()
        for module in self.model.modules():
            if _RANDOM_DEPTH.search(type(module).__name__):
                module.training = False
        self.parameters = dict(self.model.named_parameters())
        self._state = State(self.model)
        self._heap = Heap(max(sum(p.nbytes for p in self.parameters.values()) / 8, _LEAST_STEP))
        self._heap.trim()
        for parameter in self.parameters.values():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.requires_grad_()  # a frozen one can be unfrozen later

    def run(
        self, edits: Mapping[str, Edit] | None = None, *, state: int = 0, gradients: bool = False
    ) -> tuple[list[Tensor], dict[str, Radial]]:
        """The loss, or each tensor of the output; and what the gradients say of every parameter.

        Gradients are those of a random linear functional of the output, relative to its size (of the loss, if
        there is one). A parameter on which the output does not depend has no entry.

        Args:
            edits: Changes some parameters, this one time.
            state: Which state the random generators start from.
            gradients: Whether to compute them; otherwise the second value is empty.
        """
        self.passes += 1
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self._state.restore(state, eps=self.eps)
            for name, parameter in self.parameters.items():
                parameter.grad = None  # forward may have computed one
                self._set(parameter, self._own[name])
                if edits and name in edits:
                    edits[name](parameter)
        example = self._example(generator)
        mode = Exact(eps=self.eps, through=gradients and self.through, heap=self._heap)
        offload = Offload(self._heap) if gradients and self.offloads else contextlib.nullcontext()
        with (
            torch.set_grad_enabled(gradients or self._differentiates),
            random_state(self.model, state) as drawn,
            _eager(self.model),
            offload,
        ):
            with mode:
                args, kwargs = arguments(self.model, example)
                value = self.model(*args, **kwargs)
                outputs = tensors(value) if self._loss is None else [_scalar(self._loss, value)]
            found = self._gradients(outputs, generator, mode) if gradients else {}
        self.normalizes = (
            self.normalizes or mode.normalizations > 0 or any(map(_is_normalization, self.model.modules()))
        )
        self.draws = self.draws or drawn() or self._state.drew()
        self.cut = self.cut or (gradients and mode.cut)
        self._differentiates = self._differentiates or mode.differentiates
        self._heap.trim()
        return [widened(t) for t in outputs], found

    def _gradients(self, outputs: list[Tensor], generator: torch.Generator, mode: Exact) -> dict[str, Radial]:
        scalars = []
        for t in outputs:
            noise = torch.ones(1) if t.numel() == 1 else torch.randn(t.shape, generator=generator, dtype=t.dtype)
            if t.requires_grad:
                scalars.append((t * noise.to(t.device) / size(t)).sum())
        if not scalars:
            return {}
        found: dict[str, Radial] = {}
        # Hooks only as long as they are needed: they hold the copy in memory, which would wait for Python's collector.
        hooks = []
        for name, parameter in self.parameters.items():
            parameter.grad = None
            if parameter.requires_grad:
                hooks.append(parameter.register_post_accumulate_grad_hook(self._collector(name, found)))
        total = sum(scalars[1:], scalars[0])
        try:
            # In one thread and in the mode, because checkpointed parts are computed again on the way; by the engine
            # itself, because Tensor.backward leaves a mode that it is called in.
            with torch.autograd.set_multithreading_enabled(False), Patches(self._heap), mode:
                Variable._execution_engine.run_backward(
                    (total,), (torch.ones_like(total),), False, False, (), allow_unreachable=True, accumulate_grad=True
                )
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _collector(self, name: str, found: dict[str, Radial]) -> Callable[[Tensor], None]:
        def collect(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            with torch._C.DisableTorchFunction(), torch.no_grad():
                part = radial(parameter, gradient, self._layouts.get(name, ()))
                found[name] = found[name] + part if name in found else part
            del gradient
            self._heap.look(freed=parameter.nbytes)

        return collect

    def _set(self, parameter: Tensor, own: Tensor) -> None:
        parameter.copy_(own)
        if not self.generic or not parameter.is_floating_point():
            return
        zero, constant = parameter == 0, _is_constant(parameter)
        if constant or bool(zero.any()):
            generator = torch.Generator().manual_seed(parameter.numel())
            noise = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype).to(parameter.device)
            noise += 0.5
            if constant:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter[zero] = 0.1 * noise[zero]

    def _example(self, generator: torch.Generator) -> Any:
        def prepared(tensor: Tensor) -> Tensor:
            tensor = widened(tensor.detach().cpu() if self._on_cpu else tensor.detach())
            if not tensor.is_floating_point():
                return torch.cat([tensor] * self.copies) if self.copies > 1 and tensor.dim() else tensor.clone()
            if self.generic and _is_constant(tensor):
                tensor = tensor + noise(tensor)
            if self.copies > 1 and tensor.dim():
                spread = tensor.std(unbiased=False).clamp_min(1e-3)
                tensor = torch.cat([tensor, *(tensor + spread * noise(tensor) for _ in range(self.copies - 1))])
            # A clone, because a model may work on its input in place. With a gradient, a shortcut that carries the
            # bare input is seen in the graph as well.
            return tensor.clone().requires_grad_()

        def noise(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)

        return mapped(first_samples(self._given, self.samples), prepared)


def _scalar(loss: Loss, output: Any) -> Tensor:
    try:
        value = loss(output)
    except TypeError as error:
        raise LossError(
            f"loss fails on the model's output ({one_line(error)}); it is called with the output alone: give "
            "lambda output: F.cross_entropy(output, targets)"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise LossError(f"loss gives a {type(value).__name__}{shape}; it is to give a scalar tensor")
    return value


def size(tensor: Tensor) -> Tensor:
    """Norm of a tensor; 1 if it is zero."""
    norm = tensor.detach().norm()
    return torch.where(norm > 0, norm, torch.ones_like(norm))


def _is_constant(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())


def _is_normalization(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() or any(name in vars(module) for name in EPS_NAMES)


def _eager(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Compiled parts run uncompiled: compiling them for a few passes in float64 would only cost time."""
    compiled = any(hasattr(module, "_orig_mod") for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
