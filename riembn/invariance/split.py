"""Which weights can be rescaled without changing what the network computes?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from riembn.invariance.candidates import candidates
from riembn.invariance.exact import TINY, TooFewValues
from riembn.invariance.granularity import TOLERANCE, Weight
from riembn.invariance.probe import LossError, Probe, one_line
from riembn.invariance.reasons import Reasons
from riembn.invariance.report import Split, Verdict

__all__ = ["split"]

# The verdict asks for any factor: large ones, so that what saturates (ReLU6) does. What eps costs depends on how
# far scales drift: a factor of four either way.
_FAR, _NEAR = (64.0, 1024.0), (0.25, 4.0)


@torch.inference_mode(False)
def split(
    model: nn.Module,
    example_input: Any,
    *,
    rule: str = "invariant",
    loss: Callable[[Any], Tensor] | None = None,
) -> Split:
    r"""Divide a model's parameters into scale-invariant weights, which belong on the manifold, and the rest.

    .. math:: L(\ldots, c_i w_i, \ldots) = L(\ldots, w_i, \ldots) \quad\text{for every } c_i > 0

    A weight vector is scale-invariant when the training-mode output (or loss) does not change as it is
    multiplied by a positive factor. One pass with gradients proposes the vectors, because
    :math:`\langle w_i, \partial L/\partial w_i\rangle = 0` for every invariant one; a second multiplies all
    of them by independent random factors and decides. Only what fails there is narrowed down. The
    measurement is made in float64 on a copy without eps, dropout and stochastic depth, and with parameters
    moved off special values (a bias that happens to start at zero). The model is left as it was. Two more
    passes at the network's own parameters and eps tell what its eps costs.

    Args:
        model: Any module whose copy can run. Left in evaluation mode it is measured in training mode; in
            training mode its own flags count, so a BatchNorm frozen by ``.eval()`` is no normalization.
        example_input: One batch of any size: a tensor, a tuple of positional arguments, a dict of keyword
            arguments. A batch too small for the network's BatchNorm is completed by noisy copies.
        rule: "invariant" measures. "paper" takes what Cho and Lee's release takes, every convolution with
            more inputs a row than rows, and runs nothing.
        loss: Maps the model's output to a scalar. Without it the whole output must not change, which is
            enough for every loss and necessary for a generic one.

    Returns:
        A `Split`. Its granularity is the finest that is invariant: one vector an output channel in front of
        BatchNorm, one a group in front of GroupNorm, the whole tensor in front of LayerNorm. A weight that is
        invariant only together with its bias is listed with it, and their vectors with the bias's entries:
        in front of LayerNorm, or with a ReLU before BatchNorm. A weight that is invariant in some vectors
        only, or whose vectors have one entry, is in the rest.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: For an unknown rule; if the model cannot be copied, fails on the example, gives no or
            non-finite floating-point output; if it contains no normalization.

    Source: definition and joint test derived here; the paper's rule as in the code released with Cho and Lee
    (2017), arXiv:1709.09603.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"split: model is a {type(model).__name__}; give a torch.nn.Module.")
    if rule == "paper":
        return Split(tuple(_paper(model)), rule)
    if rule != "invariant":
        raise ValueError(
            f'split: rule={rule!r}; it is "invariant" (measured) or "paper" (the released code).'
        )
    for name, p in model.named_parameters():
        if hasattr(p, "placements"):  # a DTensor; the class itself takes half a second to import
            raise ValueError(
                f"split: {name!r} lies in parts on several devices; measure the network before fully_shard, and "
                "give the Split to riembn.build_optimizer."
            )
    probe, gradients, outputs = _prepare(model, example_input, loss, eps=TINY, factors=_FAR, generic=True)
    reasons = Reasons(outputs, probe.parameters)
    del outputs
    named = dict(model.named_parameters())
    found = candidates(model)
    weights = [Weight(c, named, probe.parameters, gradients) for c in found if not c.refusal]
    for weight in weights:
        weight.propose(probe)
    passed, change = _confirm([w for w in weights if w.layout is not None], [], probe)
    if not passed and not probe.normalizes:
        raise ValueError(
            "split: the model contains no normalization and none of its weights is scale-invariant; put a "
            "BatchNorm (or another normalization) behind its layers, or train it with torch.optim.SGD."
        )
    chosen = [w for w in passed if not w.unfit()]
    own, own_gradients, _ = _prepare(model, example_input, loss, eps=None, factors=_NEAR, generic=False)
    own_change = own.change(_moved(chosen, own))
    verdicts = {n: Verdict(n, p, False, "a bias, shift or scale") for n, p in named.items()}
    verdicts |= {c.name: Verdict(c.name, named[c.name], False, c.refusal) for c in found}
    for weight in weights:
        verdicts |= _judge(weight, reasons, own, own_gradients)
    return Split(tuple(verdicts.values()), rule, change, own_change)


def _judge(
    weight: Weight, reasons: Reasons, own: Probe, own_gradients: dict[str, Tensor]
) -> dict[str, Verdict]:
    """The verdict on a weight, and on its bias if that belongs to it."""
    name, layout = weight.name, weight.layout
    error = weight.slope(weight.values, weight.gradients)
    own_eps = weight.slope(own.parameters, own_gradients)
    refusal = weight.refusal or weight.unfit()
    if layout is None or refusal:
        refusal = refusal or weight.partly() or reasons.obstacle(name)
        return {name: Verdict(name, weight.own[name], False, refusal, error, own_eps)}
    reason, rows = f"in front of {reasons.normalization(name)}", len(layout.rows(weight.values[name]))
    bias = next(iter(weight.names[1:]), "")
    alone = Verdict(name, weight.own[name], True, reason, error, own_eps, **layout._asdict(), rows=rows)
    if not bias:
        return {name: alone}
    shared = replace(alone, reason=f"{reason}, together with its bias", partner=bias)
    of_bias = Verdict(bias, weight.own[bias], True, f"joint with {name}", partner=name, **layout._asdict())
    return {name: shared, bias: of_bias}


def _prepare(
    model: nn.Module,
    example_input: Any,
    loss: Callable[[Any], Tensor] | None,
    *,
    eps: float | None,
    factors: tuple[float, float],
    generic: bool,
) -> tuple[Probe, dict[str, Tensor], list[Tensor]]:
    """A probe that runs, with its gradients and output; a batch too small for BatchNorm is widened once."""
    copies = 1
    while True:
        probe = Probe(model, example_input, loss, eps=eps, factors=factors, generic=generic, copies=copies)
        try:
            gradients, outputs = probe.gradients()
            break
        except TooFewValues as error:
            if copies > 1 or loss is not None or error.kind != "BatchNorm" or error.values == 0:
                raise ValueError(
                    f"split: {error}, too few to normalize: its output would hardly depend on the weights. "
                    "Give an example_input of more samples (four or more) or of larger images."
                ) from None
            copies = math.ceil(4 / error.values)
        except LossError as error:
            raise TypeError(f"split: {error}.") from None
        except Exception as error:
            raise ValueError(
                f"split: the model fails on example_input ({one_line(error)}). Give what forward takes: "
                "a tensor, a tuple of positional arguments or a dict of keyword arguments, of four samples or more."
            ) from error
    if not outputs:
        raise ValueError(
            "split: the model's output holds no floating-point tensor; give loss=, a function of the output."
        )
    if not all(bool(t.isfinite().all()) for t in outputs):
        raise ValueError(
            "split: the model gives a non-finite output (NaN or infinity) on example_input; nothing can be "
            "measured. Check the input's scale and the weights, or give loss= if infinite entries are meant."
        )
    return probe, gradients, outputs


def _confirm(pending: list[Weight], kept: list[Weight], probe: Probe) -> tuple[list[Weight], float]:
    """What passes when all pending weights are rescaled at once beside those kept, and the change that leaves.

    Halves where that fails. A weight that fails alone loses its layout.
    """
    change = probe.change(_moved(kept + pending, probe)) if pending else 0.0
    if change <= TOLERANCE:
        return pending, change
    if len(pending) == 1:
        pending[0].reject()
        return [], 0.0
    half = len(pending) // 2
    left, left_change = _confirm(pending[:half], kept, probe)
    right, right_change = _confirm(pending[half:], kept + left, probe)
    return left + right, right_change if right else left_change


def _moved(weights: list[Weight], probe: Probe) -> dict[str, Tensor]:
    return {name: value for weight in weights for name, value in weight.moved(probe).items()}


def _paper(model: nn.Module) -> Iterator[Verdict]:
    """Convolutions with more inputs a row than rows, as the released code chooses them."""
    found = {c.name: c for c in candidates(model)}
    for name, parameter in model.named_parameters():
        candidate = found.get(name)
        if candidate is None or not candidate.convolution:
            yield Verdict(name, parameter, False, "not a convolution")
            continue
        layout = candidate.layouts[0]
        fan_out = layout.channels(parameter)
        fan_in = parameter.numel() // fan_out
        chosen = fan_in > fan_out
        reason = f"fan-in {fan_in} {'>' if chosen else '≤'} fan-out {fan_out}"
        if chosen:
            yield Verdict(name, parameter, True, reason, **layout._asdict(), rows=fan_out)
        else:
            yield Verdict(name, parameter, False, reason)
