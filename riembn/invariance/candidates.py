"""Finds the parameters that hold weight rows, and the layouts in which those may lie."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from riembn.geometry import Layout

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LINEAR = (nn.Linear, nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class Candidate:
    """A parameter of two or more dimensions.

    Attributes:
        name: As in ``model.named_parameters()``.
        layouts: How its rows may lie, the reading of its own layer first.
        bias: Name of the bias added to its output, if there is one.
        convolution: Whether a convolution owns it.
        refusal: Why it is not to be measured; empty if it is.
    """

    name: str
    layouts: tuple[Layout, ...]
    bias: str | None
    convolution: bool
    refusal: str


def candidates(model: nn.Module) -> list[Candidate]:
    """Every parameter of two or more dimensions, once each, in the model's order."""
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    modules = dict(model.named_modules(remove_duplicate=False))
    return [
        _candidate(parameter, aliases[id(parameter)], modules)
        for parameter in model.parameters()
        if parameter.dim() > 1
    ]


def _candidate(parameter: nn.Parameter, names: list[str], modules: dict[str, nn.Module]) -> Candidate:
    # A parametrization puts a list of its own between a layer and its parameter.
    paths = [f".{name}".partition(".parametrizations.")[0].lstrip(".") for name in names]
    paths = [p if p != n else n.rpartition(".")[0] for p, n in zip(paths, names, strict=True)]
    owners = [modules[path] for path in paths]
    natural = {
        _layout(owner) for owner in owners if isinstance(owner, (*_CONVOLUTIONS, *_TRANSPOSED, *_LINEAR))
    }
    # A parameter of no known layer may be read along either dimension, and a known one otherwise than its
    # layer does: an embedding in front of BatchNorm has one row a feature, not one a token.
    layouts = [*natural, *(layout for layout in (Layout(0), Layout(1)) if layout not in natural)]
    biased = [
        path for path, owner in zip(paths, owners, strict=True) if getattr(owner, "bias", None) is not None
    ]
    refusal = ""
    if any(isinstance(owner, nn.Bilinear) for owner in owners):
        refusal = "refused: a bilinear form, not one row for one input"
    elif len(natural) > 1:
        refusal = f"refused: shared by layers that read its rows differently ({', '.join(names)})"
    elif parameter.numel() == 0:
        refusal = "empty"
    elif parameter.is_complex():
        refusal = "refused: complex, and only real weights are measured"
    elif any(isinstance(owner, nn.Embedding | nn.EmbeddingBag) and owner.sparse for owner in owners):
        refusal = "refused: its gradients are sparse (sparse=True), and those of rows on a sphere are not"
    return Candidate(
        name=names[0],
        layouts=tuple(layouts),
        bias=f"{biased[0]}.bias".lstrip(".") if biased else None,
        convolution=any(isinstance(owner, (*_CONVOLUTIONS, *_TRANSPOSED)) for owner in owners),
        refusal=refusal,
    )


def _layout(module: nn.Module) -> Layout:
    return Layout(1, module.groups) if isinstance(module, _TRANSPOSED) else Layout(0)
