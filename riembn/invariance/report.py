"""What was found out about every parameter, as lists, as param groups, and as a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    import pandas

__all__ = ["Split", "Verdict"]


@dataclass(frozen=True)
class Verdict:
    """What is known about one parameter.

    Attributes:
        name, parameter: As in ``model.named_parameters()``.
        invariant: Whether its weight vectors are scale-invariant (or, with the paper's rule, chosen).
        reason: Why; for an invariant weight, what a weight vector is.
        error: How much the output (or the loss) moves, relative to its size, per unit of log-scale: the
            largest value over the weight vectors. Rounding for an invariant weight; None if not measured.
        own_eps: The same with the network's own eps, at its own parameters.
        row_dim, conv_groups, channels_per_row: The layout of the weight vectors, see `riembn.geometry.rows`.
        rows: How many weight vectors; 0 for a parameter that is not invariant, and for a bias that its
            weight's vectors go on in.
        partner: For a weight that is invariant only together with its bias, the name of the bias; for that
            bias, the weight's. Both are `invariant`.
    """

    name: str
    parameter: nn.Parameter
    invariant: bool
    reason: str
    error: float | None = None
    own_eps: float | None = None
    row_dim: int = 0
    conv_groups: int = 1
    channels_per_row: int | None = 1
    rows: int = 0
    partner: str = ""

    @property
    def granularity(self) -> str:
        """What one weight vector spans: "channel", "4 channels", "whole tensor"; "" in the rest.

        With " + bias" where the bias belongs to it; and "its weight's" for that bias.
        """
        if not self.invariant:
            return ""
        if self.partner and not self.rows:
            return "its weight's"
        if self.channels_per_row is None:
            span = "whole tensor"
        else:
            span = "channel" if self.channels_per_row == 1 else f"{self.channels_per_row} channels"
        return f"{span} + bias" if self.partner else span


@dataclass(frozen=True)
class Split:
    """The parameters of a model, divided into those on the manifold and the rest; printing it gives a table.

    Attributes:
        verdicts: One for every parameter, in the order of ``model.named_parameters()``.
        rule: The rule that decided.
        change: Largest relative change of the output when all invariant weight vectors were multiplied at
            once by independent random factors in [64, 1024], without eps; None if nothing was measured.
        own_eps_change: The same for factors in [1/4, 4] and the network's own eps: what eps costs.
    """

    verdicts: tuple[Verdict, ...]
    rule: str
    change: float | None = None
    own_eps_change: float | None = None

    @property
    def invariant(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters whose weight vectors belong on the manifold, biases that are part of them too."""
        return [(v.name, v.parameter) for v in self.verdicts if v.invariant]

    @property
    def rest(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of everything else."""
        return [(v.name, v.parameter) for v in self.verdicts if not v.invariant]

    def groups(self) -> list[dict[str, Any]]:
        """The invariant parameters as param groups for SGDG, AdamG or PSISGD, one group a layout.

        Weights that are invariant only together with their bias have groups of their own, with ``joint=True``
        and each weight followed by its bias.
        """
        named = {v.name: v.parameter for v in self.verdicts}
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for v in self.verdicts:
            if v.rows:
                layout: dict[str, Any] = {
                    "row_dim": v.row_dim,
                    "conv_groups": v.conv_groups,
                    "channels_per_row": v.channels_per_row,
                }
                if v.partner:
                    layout["joint"] = True
                group = groups.setdefault(tuple(layout.values()), {"params": [], **layout})
                group["params"] += [v.parameter, named[v.partner]] if v.partner else [v.parameter]
        return list(groups.values())

    def rebind(self, model: nn.Module) -> Split:
        """The same verdicts on the parameters that ``model`` has now under the same names.

        Args:
            model: The network that was measured, after its parameters were replaced, as
                `torch.distributed.fsdp.fully_shard` does; of one in a wrapper that changes names
                (DistributedDataParallel, `torch.compile`), the network inside.

        Returns:
            A new Split.

        Raises:
            ValueError: If a parameter is missing, or has another shape.
        """
        found = dict(model.named_parameters())
        for v in self.verdicts:
            if v.name not in found or found[v.name].shape != v.parameter.shape:
                raise ValueError(
                    f"Split.rebind: {type(model).__name__} has no parameter {v.name!r} of shape "
                    f"{tuple(v.parameter.shape)}; give the network that was measured, without its wrapper."
                )
        return replace(self, verdicts=tuple(replace(v, parameter=found[v.name]) for v in self.verdicts))

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a parameter; ``parameters`` counts its numbers, the other columns are as in `Verdict`."""
        import pandas

        columns = [
            "name",
            "shape",
            "parameters",
            "invariant",
            "granularity",
            "rows",
            "reason",
            "error",
            "own_eps",
        ]
        return pandas.DataFrame(
            [
                (v.name, tuple(v.parameter.shape), v.parameter.numel(), v.invariant, v.granularity, v.rows)
                + (v.reason, v.error, v.own_eps)
                for v in self.verdicts
            ],
            columns=columns,
        )

    def __str__(self) -> str:
        header = ("parameter", "shape", "granularity", "invariant", "reason", "error", "own eps")
        lines = [
            (
                v.name,
                "×".join(map(str, v.parameter.shape)) or "scalar",
                v.granularity,
                "yes" if v.invariant else "no",
                v.reason,
                _number(v.error),
                _number(v.own_eps),
            )
            for v in self.verdicts
        ]
        widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
        rows = [
            "  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in (header, tuple("─" * w for w in widths), *lines)
        ]
        return "\n".join([*rows, "", self._summary()])

    def _summary(self) -> str:
        chosen = sum(p.numel() for _, p in self.invariant)
        total = chosen + sum(p.numel() for _, p in self.rest)
        share = 100 * chosen / total if total else 0.0
        text = (
            f'rule "{self.rule}": {len(self.invariant)} of {len(self.verdicts)} parameters, '
            f"{sum(v.rows for v in self.verdicts)} weight vectors, {share:.1f} % of {total:,} numbers"
        )
        if self.change is None:
            return text
        return (
            f"{text}\nrescaled at once by random factors, the output moves by {self.change:.1e} without eps "
            f"(factors 64 to 1024), by {self.own_eps_change:.1e} with the network's own (1/4 to 4)"
        )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
