"""Which weights can be rescaled without changing what the network computes?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from riembn.invariance.candidates import candidates
from riembn.invariance.exact import TINY, TooFewValues
from riembn.invariance.probe import Probe, one_line
from riembn.invariance.reason import Reasons
from riembn.invariance.report import Split, Verdict
from riembn.invariance.weight import TOLERANCE, Weight

__all__ = ["split"]


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
            training mode its own flags count, so a BatchNorm frozen by ``.eval()`` is no normalisation.
        example_input: One batch of any size: a tensor, a tuple of positional arguments, a dict of keyword
            arguments. A batch too small for the network's BatchNorm is completed by noisy copies.
        rule: "invariant" measures. "paper" takes what Cho and Lee's release takes, every convolution with
            more inputs a row than rows, and runs nothing.
        loss: Maps the model's output to a scalar. Without it the whole output must not change, which is
            enough for every loss and necessary for a generic one.

    Returns:
        A `Split`. Its granularity is the finest that is invariant: one vector an output channel in front of
        BatchNorm, one a group in front of GroupNorm, the whole tensor in front of LayerNorm. Weights that
        are invariant only together with their bias, or whose vectors have one entry, are in the rest.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: For an unknown rule; if the model cannot be copied, fails on the example, gives no or
            non-finite floating-point output; if it contains no normalisation.

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
    probe, gradients, outputs = _prepare(model, example_input, loss, eps=TINY, generic=True)
    reasons = Reasons(outputs, probe.parameters)
    del outputs
    named = dict(model.named_parameters())
    found = {c.name: c for c in candidates(model)}
    weights = {
        name: Weight(c, named[name], probe.parameters[name].detach(), gradients.get(name))
        for name, c in found.items()
        if not c.refusal
    }
    for weight in weights.values():
        weight.propose(probe)
        if probe.cut and weight.layout is None and not weight.refusal:
            # Part of the graph is detached, so a gradient may deny what rescaling would show.
            weight.propose_by_rescaling(probe)
    _confirm([w for w in weights.values() if w.layout is not None], [], probe)
    accepted = [w for w in weights.values() if w.layout is not None]
    if not accepted and not probe.normalizes:
        raise ValueError(
            "split: the model contains no normalisation and none of its weights is scale-invariant; put a "
            "BatchNorm (or another normalisation) behind its layers, or train it with torch.optim.SGD."
        )
    change = probe.change({w.name: w.rescaled(probe) for w in accepted})
    own, own_gradients, _ = _prepare(model, example_input, loss, eps=None, generic=False)
    own_change = own.change({w.name: w.rescaled(own) for w in accepted})
    verdicts = []
    for name, parameter in named.items():
        if name not in weights:
            reason = found[name].refusal if name in found else "a bias, shift or scale"
            verdicts.append(Verdict(name, parameter, False, reason))
            continue
        w = weights[name]
        error = w.slope(gradients.get(name), w.value)
        own_error = w.slope(own_gradients.get(name), own.parameters[name].detach())
        if w.layout is None:
            reason = w.refusal or _why_not(w, probe, gradients, reasons)
            verdicts.append(Verdict(name, parameter, False, reason, error, own_error))
        else:
            reason = f"in front of {reasons.normalization(name)}"
            rows = len(w.layout.rows(w.value))
            verdicts.append(
                Verdict(name, parameter, True, reason, error, own_error, **vars(w.layout), rows=rows)
            )
    return Split(tuple(verdicts), rule, change, own_change)


def _prepare(
    model: nn.Module,
    example_input: Any,
    loss: Callable[[Any], Tensor] | None,
    *,
    eps: float | None,
    generic: bool,
) -> tuple[Probe, dict[str, Tensor], list[Tensor]]:
    """A probe that runs, with its gradients and output; a batch too small for BatchNorm is widened once."""
    copies = 1
    while True:
        probe = Probe(model, example_input, loss, eps=eps, generic=generic, copies=copies)
        try:
            gradients, outputs = probe.gradients()
            break
        except TooFewValues as error:
            if copies > 1 or loss is not None or error.kind != "BatchNorm" or error.values == 0:
                raise ValueError(
                    f"split: {error}, too few to normalise: its output would hardly depend on the weights. "
                    "Give an example_input of more samples (four or more) or of larger images."
                ) from None
            copies = math.ceil(4 / error.values)
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


def _confirm(pending: list[Weight], kept: list[Weight], probe: Probe) -> list[Weight]:
    """What passes when all pending weights are rescaled at once beside those kept; halves where that fails."""
    change = probe.change({w.name: w.rescaled(probe) for w in kept + pending}) if pending else 0.0
    if change <= TOLERANCE:
        return pending
    if len(pending) == 1:
        pending[0].layout = None
        pending[0].refusal = f"flat to first order only: rescaling moves the output by {change:.1e}"
        return []
    half = len(pending) // 2
    left = _confirm(pending[:half], kept, probe)
    return left + _confirm(pending[half:], kept + left, probe)


def _why_not(weight: Weight, probe: Probe, gradients: dict[str, Tensor], reasons: Reasons) -> str:
    bias = weight.candidate.bias
    if bias in gradients and bias is not None:
        jointly = weight.jointly(probe.parameters[bias].detach(), gradients[bias])
        if jointly:
            return jointly
    return weight.partly() or reasons.obstacle(weight.name)


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
            yield Verdict(name, parameter, True, reason, **vars(layout), rows=fan_out)
        else:
            yield Verdict(name, parameter, False, reason)
