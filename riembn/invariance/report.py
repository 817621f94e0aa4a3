"""What was found out about every parameter, as a mapping, as param groups, as tables, and in a file."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from riembn.geometry import Layout
from riembn.invariance.refusals import flat_pieces, refuse_flat
from riembn.invariance.statistics import Statistics

if TYPE_CHECKING:
    import pandas

_FEW = 60  # parameters that a full table is printed for
_NOTICEABLE = 0.1  # change of the output by eps alone that is worth a word


@dataclass(frozen=True, eq=False)
class Entry:
    """What is known about one parameter.

    Attributes:
        name, parameter: As in ``model.named_parameters()``.
        invariant: Whether its weight rows are scale-invariant (or, with the paper's rule, chosen).
        reason: Why; for an invariant weight, what a weight row is.
        error: How much the output (or the loss) moves, relative to its size, per unit of log-scale: the
            largest value over the weight rows. Rounding for an invariant weight; None if not measured.
        own_eps: The same with the network's own eps, at its own parameters.
        layout: How the weight rows lie, see `riembn.geometry.Layout`.
        rows: How many weight rows; 0 for a parameter that is not invariant, and for a bias that its
            weight's rows go on in.
        partner: For a weight that is invariant only together with its bias, the name of the bias; for that
            bias, the weight's. Both are `invariant`.
    """

    name: str
    parameter: nn.Parameter
    invariant: bool
    reason: str
    error: float | None = None
    own_eps: float | None = None
    layout: Layout = Layout()
    rows: int = 0
    partner: str = ""

    @property
    def granularity(self) -> str:
        """What one weight row spans: "channel", "4 channels", "whole tensor"; "" in the rest.

        With " + bias" where the bias belongs to it; and "its weight's" for that bias.
        """
        if not self.invariant:
            return ""
        if self.partner and not self.rows:
            return "its weight's"
        size = self.layout.channels_per_row
        span = "whole tensor" if size is None else "channel" if size == 1 else f"{size} channels"
        return f"{span} + bias" if self.partner else span

    def __repr__(self) -> str:
        return f"<{self.name} {_shape(self)}: {self.granularity or 'no'}, {self.reason}>"


@dataclass(frozen=True, eq=False, repr=False)
class Split(Mapping[str, Entry]):
    """The parameters of a model, divided into those on the manifold and the rest.

    A mapping of names to entries, in the order of ``model.named_parameters()``. Printing it gives a table.

    Attributes:
        entries: One for every parameter.
        rule: The rule that decided.
        change: Largest relative change of the output when all invariant weight rows were multiplied at
            once by independent random factors in [64, 1024], without eps; None if nothing was measured.
        own_eps_change: The same for factors in [1/4, 4] and the network's own eps: what eps costs.
        random: Whether forward draws random numbers that change the output, dropout and stochastic depth aside:
            the verdicts then hold in the random states that were looked at.
        statistics: What the running statistics of a trained network become with unit rows; None if not measured.
    """

    entries: tuple[Entry, ...]
    rule: str
    change: float | None = None
    own_eps_change: float | None = None
    random: bool = False
    statistics: Statistics | None = None

    def __getitem__(self, name: str) -> Entry:
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def invariant(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters whose weight rows belong on the manifold, biases that are part of them too."""
        return [(e.name, e.parameter) for e in self.entries if e.invariant]

    @property
    def rest(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of everything else."""
        return [(e.name, e.parameter) for e in self.entries if not e.invariant]

    @property
    def share(self) -> float:
        """Share of the model's numbers that are on the manifold, between 0 and 1."""
        total = sum(e.parameter.numel() for e in self.entries)
        return sum(p.numel() for _, p in self.invariant) / max(total, 1)

    def groups(self) -> list[dict[str, Any]]:
        """The invariant parameters as param groups for SGDG, AdamG or PSISGD, one group a layout.

        Weights that are invariant only together with their bias have groups of their own, with ``joint=True``
        and each weight followed by its bias.
        """
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for e in self.entries:
            if e.rows:
                layout: dict[str, Any] = e.layout._asdict()
                if e.partner:
                    layout["joint"] = True
                group = groups.setdefault(tuple(layout.values()), {"params": [], **layout})
                group["params"] += [e.parameter, self[e.partner].parameter] if e.partner else [e.parameter]
        return list(groups.values())

    def filter(self, keep: str | Callable[[Entry], bool]) -> Split:
        """Some of the parameters alone: what their groups hold, what a table of them says.

        Args:
            keep: A pattern of names as in a shell ("layer1.*", "*.conv?.weight"), or a function of an entry.
                A weight and the bias that belongs to its rows stay together.

        Returns:
            A Split of what is kept; its changes are still those of the whole network.
        """
        kept = {
            e.name
            for e in self.entries
            if (fnmatch.fnmatchcase(e.name, keep) if isinstance(keep, str) else keep(e))
        }
        return replace(self, entries=tuple(e for e in self.entries if {e.name, e.partner} & kept), statistics=None)

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
        return replace(self.from_dict(self.to_dict(), model), statistics=self.statistics)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the parameters and statistics themselves, in plain values that JSON can hold."""
        return {
            "rule": self.rule,
            "change": self.change,
            "own_eps_change": self.own_eps_change,
            "random": self.random,
            "entries": [
                {
                    "name": e.name,
                    "shape": list(e.parameter.shape),
                    **{key: getattr(e, key) for key in ("invariant", "reason", "error", "own_eps")},
                    **{"layout": e.layout._asdict(), "rows": e.rows, "partner": e.partner},
                }
                for e in self.entries
            ],
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], model: nn.Module) -> Split:
        """What `to_dict` gave, for the parameters of ``model``.

        Raises:
            ValueError: If a parameter is missing, or has another shape.
        """
        refuse_flat(model, "Split.rebind")
        found, entries = dict(model.named_parameters()), []
        for values in map(dict, saved["entries"]):
            name, shape = values["name"], tuple(values.pop("shape"))
            if name not in found or tuple(found[name].shape) != shape:
                advice = flat_pieces(found[name]) if name in found else ""
                advice = advice or "give the network that was measured, without its wrapper."
                raise ValueError(
                    f"Split.rebind: {type(model).__name__} has no parameter {name!r} of shape {shape}; {advice}"
                )
            entries.append(Entry(parameter=found[name], **values | {"layout": Layout.of(values["layout"])}))
        return cls(**dict(saved) | {"entries": tuple(entries)})

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a parameter; ``parameters`` counts its numbers, the other columns are as in `Entry`."""
        import pandas

        return pandas.DataFrame(
            [
                (e.name, tuple(e.parameter.shape), e.parameter.numel(), e.invariant, e.granularity, e.rows)
                + (e.reason, e.error, e.own_eps)
                for e in self.entries
            ],
            columns=["name", "shape", "parameters", "invariant", "granularity", "rows"]
            + ["reason", "error", "own_eps"],
        )

    def table(self) -> str:
        """One line a parameter."""
        return _table((e.name, [e]) for e in self.entries)

    def summary(self) -> str:
        """One line for all parameters whose names differ in numbers alone and whose verdicts are the same.

        The names are patterns for `filter`; their errors are the largest.
        """
        alike: dict[tuple[str, ...], list[Entry]] = {}
        for e in self.entries:
            pattern = re.sub(r"\d+", "*", e.name)
            alike.setdefault((pattern, e.granularity, re.sub(r"\d+", "*", e.reason)), []).append(e)
        return _table(
            (entries[0].name if len(entries) == 1 else f"{pattern} (×{len(entries)})", entries)
            for (pattern, *_), entries in alike.items()
        )

    def caution(self) -> str:
        """A sentence if eps takes much of the invariance away; empty if not."""
        if not self.own_eps_change or self.own_eps_change < _NOTICEABLE:
            return ""
        worst = max((e for e in self.entries if e.invariant), key=lambda e: e.own_eps or 0.0)
        return (
            f"eps is not small beside the variances: rescaling the invariant weights by factors of 1/4 to 4 moves the "
            f"output by {self.own_eps_change:.2f}, most at {worst.name!r}; a smaller eps makes them invariant"
        )

    def __repr__(self) -> str:
        return f"<Split: {self._totals()}>"

    def __str__(self) -> str:
        text = [self.table() if len(self) <= _FEW else self.summary(), "", self._totals()]
        if self.invariant and self.change is not None:
            text.append(
                f"rescaled at once by random factors, the output moves by {self.change:.1e} without eps "
                f"(factors 64 to 1024), by {self.own_eps_change or 0.0:.1e} with the network's own (1/4 to 4)"
            )
        if self.random:
            text.append("forward draws random numbers; the verdicts hold in the random states that were looked at")
        return "\n".join([*text, self.caution()]).rstrip("\n")

    def _totals(self) -> str:
        total = sum(e.parameter.numel() for e in self.entries)
        return (
            f'rule "{self.rule}": {len(self.invariant)} of {len(self)} parameters, '
            f"{sum(e.rows for e in self.entries)} weight rows, {100 * self.share:.1f} % of {total:,} numbers"
        )


def _table(alike: Iterable[tuple[str, list[Entry]]]) -> str:
    header = ("parameter", "shape", "granularity", "invariant", "reason", "error", "own eps")
    lines = [
        (
            name,
            " … ".join(dict.fromkeys(_shape(e) for e in (entries[0], entries[-1]))),
            entries[0].granularity,
            "yes" if entries[0].invariant else "no",
            entries[0].reason,
            _largest(e.error for e in entries),
            _largest(e.own_eps for e in entries),
        )
        for name, entries in alike
    ]
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in (header, tuple("─" * w for w in widths), *lines)
    )


def _shape(entry: Entry) -> str:
    return "×".join(map(str, entry.parameter.shape)) or "scalar"


def _largest(values: Iterable[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{max(known):.1e}" if known else ""
