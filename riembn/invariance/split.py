"""Divides a network's parameters into weights that can be rescaled without changing the output, and the rest."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from riembn.invariance.candidates import candidates
from riembn.invariance.copying import one_line
from riembn.invariance.exact import TooFewValues
from riembn.invariance.example import described, enough_samples, more_samples, slip
from riembn.invariance.granularity import Weight
from riembn.invariance.heap import Heap
from riembn.invariance.reasons import Reasons
from riembn.invariance.refusals import refuse
from riembn.invariance.report import Entry, Split
from riembn.invariance.statistics import are_fresh, carried_over
from riembn.invariance.trial import Trial
from riembn.invariance.twin import LossError, Twin

_ADVICE = (
    "Give what forward takes: a tensor, a tuple of positional arguments or a dict of keyword arguments, of four "
    "samples or more; all of it is computed in float64"
)


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

    A weight row is scale-invariant when the training-mode output (or loss) does not change as it is
    multiplied by a positive factor. One pass with gradients proposes the rows, because
    :math:`\langle w_i, \partial L/\partial w_i\rangle = 0` for every invariant one; a second multiplies all
    of them by independent random factors and decides. Only what fails there is narrowed down. The
    measurement is made in float64 on a copy without eps, dropout and stochastic depth, and with parameters
    moved off special values (a bias that happens to start at zero). The model is left as it was; its forward
    hooks run on the copy. Two more passes at the network's own parameters and eps tell what its eps costs.
    There are four passes in most networks, 16 at most. The copy takes twice the memory of float32 weights.
    What a forward pass in float64 keeps for its gradients waits in a temporary file (in ``TMPDIR``), or in
    memory where the disk has no room or the model is on a GPU. For 10 MB of weights and more, with four images of
    64 × 64, the process grew by less than five times the weights; with two of 224 × 224 by 3.5 times those of resnet18,
    and by 7.1 times those of mobilenet_v2, whose activations are large beside its weights.

    Of a network that draws random numbers in forward, several random states are looked at. An eps that is not
    known as one (in a normalization written by hand) stays; a weight that is invariant but for it counts, and
    its reason says how large that slope is. If the network's own eps takes much of the invariance away, a
    warning is logged.

    Args:
        model: Any module whose copy can run. Left in evaluation mode it is measured in training mode; in
            training mode its own flags count, so a BatchNorm frozen by ``.eval()`` is no normalization.
        example_input: One batch of any size: a tensor, a tuple of positional arguments, a dict of keyword
            arguments. Of a large one the first samples are used, as many as have 2**17 numbers in all (an
            integer counts as 64) and two at least; all of them where the model or the loss refuses those, or
            where they leave a weight without effect. A batch too small for the network's BatchNorm is completed
            by noisy copies.
        rule: "invariant" measures. "paper" takes what Cho and Lee's release takes, every convolution with
            more inputs a row than rows, and runs nothing.
        loss: Maps the model's output to a scalar. Without it the whole output must not change, which is
            enough for every loss and necessary for a generic one.

    Returns:
        A `Split`. Its granularity is the finest that is invariant: one row an output channel in front of
        BatchNorm, one a group in front of GroupNorm, the whole tensor in front of LayerNorm. A weight that is
        invariant only together with its bias is listed with it, and their rows with the bias's entries:
        in front of LayerNorm, or with a ReLU before BatchNorm. A weight that is invariant in some rows
        only, or whose rows have one entry, is in the rest.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: For an unknown rule; if the model cannot be copied or does not hold its weights whole, fails
            on the example, gives no or non-finite floating-point output, is not reproducible, or contains no
            normalization.

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
    refuse(model)
    result = _measured(model, example_input, loss)
    Heap(0).trim()  # of what the copy took
    if result.caution():
        logging.getLogger("riembn").warning("split: %s.", result.caution())
    return result


def _measured(model: nn.Module, example_input: Any, loss: Callable[[Any], Tensor] | None) -> Split:
    named, found = dict(model.named_parameters()), candidates(model)
    weights = [Weight(c, named) for c in found if not c.refusal]
    twin = Twin(model, example_input, loss, {w.name: w.candidate.layouts for w in weights})
    trial = Trial(twin, weights)
    _start(trial, example_input, widen=loss is None)
    trial.decide()
    if not (twin.normalizes or trial.reasons.divides or any(w.layout for w in weights)):
        raise ValueError(
            "split: the model contains no normalization and none of its weights is scale-invariant; put a "
            "BatchNorm (or another normalization) behind its layers, or train it with torch.optim.SGD."
        )
    entries = {n: Entry(n, p, False, "a bias, shift or scale") for n, p in named.items()}
    entries |= {c.name: Entry(c.name, named[c.name], False, c.refusal) for c in found}
    for weight in weights:
        entries |= _entries(weight, trial.reasons)
    result = Split(tuple(entries.values()), "invariant", trial.change, trial.own_change, trial.random)
    if result.invariant and not are_fresh(model):
        result = replace(result, statistics=carried_over(twin, result.entries))
    return result


def _entries(weight: Weight, reasons: Reasons) -> dict[str, Entry]:
    """What is known about a weight, and about its bias if that belongs to it."""
    name, layout, error, own_eps = weight.name, weight.layout, weight.slope(), weight.slope(own=True)
    refusal = weight.refusal or weight.unfit()
    if layout is None or refusal:
        refusal = refusal or str(weight.part or reasons.obstacle(name))
        return {name: Entry(name, weight.own[name], False, refusal, error, own_eps)}
    bias = next(iter(weight.names[1:]), "")
    reason = reasons.normalization(name) + (", together with its bias" if bias else "")
    if weight.fading:
        reason += f", but for an eps that cannot be switched off (slope {error:.0e})"
    found = Entry(name, weight.own[name], True, reason, error, own_eps, layout, weight.rows, bias)
    if not bias:
        return {name: found}
    of_bias = Entry(bias, weight.own[bias], True, f"joint with {name}", None, None, layout, 0, name)
    return {name: found, bias: of_bias}


def _start(trial: Trial, example_input: Any, *, widen: bool) -> None:
    """The first pass, in which a model tells whether it runs; a batch too small for BatchNorm is widened once."""
    twin = trial.twin
    while True:
        try:
            trial.look()
            if twin.samples is None or (_finite(trial) and all(w.reached and not w.silent for w in trial.weights)):
                break
            twin.samples = more_samples(twin.samples)  # others may lead where these do not
        except TooFewValues as error:
            if twin.samples:
                twin.samples = more_samples(twin.samples)
                continue
            if twin.copies > 1 or not widen or error.kind != "BatchNorm" or error.values == 0:
                raise ValueError(
                    f"split: {error}, too few to normalize: its output would hardly depend on the weights. "
                    "Give an example_input of more samples (four or more) or of larger images."
                ) from None
            twin.copies = math.ceil(4 / error.values)
        except LossError as error:
            raise TypeError(f"split: {error}.") from None
        except Exception as error:
            if twin.offloads:  # by hooks, which torch.func does not know
                twin.offloads = False
                continue
            if twin.samples:  # a size that is written down somewhere, or targets of the whole batch in the loss
                twin.samples, twin.offloads = more_samples(twin.samples), True
                continue
            if twin.through:  # what leaves the graph may be worked on in ways that gradients forbid
                twin.through, twin.samples, twin.offloads = False, enough_samples(example_input), True
                continue
            likely = slip(twin.model, example_input)
            if likely:
                raise ValueError(f"split: example_input is {described(example_input)}; {likely}.") from error
            raise ValueError(
                f"split: the model fails on {described(example_input)} ({one_line(error)}). {_ADVICE}."
            ) from error
    if not trial.own_outputs:
        raise ValueError(
            "split: the model's output holds no floating-point tensor; give loss=, a function of the output."
        )
    if not _finite(trial):
        raise ValueError(
            "split: the model gives a non-finite output (NaN or infinity) on example_input; nothing can be "
            "measured. Check the input's scale and the weights, or give loss= if infinite entries are meant."
        )


def _finite(trial: Trial) -> bool:
    return all(bool(t.isfinite().all()) for t in (*trial.own_outputs, *trial.outputs[0]))


def _paper(model: nn.Module) -> Iterator[Entry]:
    """Convolutions with more inputs a row than rows, as the released code chooses them."""
    found = {c.name: c for c in candidates(model)}
    for name, parameter in model.named_parameters():
        candidate = found.get(name)
        if candidate is None or not candidate.convolution:
            yield Entry(name, parameter, False, "not a convolution")
            continue
        layout = candidate.layouts[0]
        fan_out = layout.channels(parameter)
        fan_in = parameter.numel() // fan_out
        chosen = fan_in > fan_out
        reason = f"fan-in {fan_in} {'>' if chosen else '≤'} fan-out {fan_out}"
        if chosen:
            yield Entry(name, parameter, True, reason, layout=layout, rows=fan_out)
        else:
            yield Entry(name, parameter, False, reason)
