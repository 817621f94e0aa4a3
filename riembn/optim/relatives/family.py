"""Who is related to whom: pairs of methods whose steps are the same, or nearly, and at which settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pandas
import torch
from torch import Tensor, nn

from ...geometry import sphere
from ..adam_g import AdamG
from ..psi_sgd import PSISGD
from ..sgd_g import SGDG
from . import adam_srt, adamp, cayley, hyperball, lars, muon, nero, oblique, pbwn, radial_brake, rotational

KINDS = (
    "length free",
    "growth is held back",
    "steps in units of the length",
    "the angle is set",
    "flat step, then length one",
    "along a curve",
)
"""What a method does about the length of a row."""

MEMBERS: dict[str, tuple[int, str]] = {
    "SGD": (2014, KINDS[0]),
    "Adam": (2014, KINDS[0]),
    "LARS": (2017, KINDS[2]),
    "AdamSRT": (2020, KINDS[2]),
    "PSI-SGD": (2021, KINDS[2]),
    "SGDP": (2020, KINDS[1]),
    "AdamP": (2020, KINDS[1]),
    "Radial brake": (2026, KINDS[1]),
    "Rotational": (2023, KINDS[3]),
    "Hyperball": (2026, KINDS[3]),
    "PBWN": (2017, KINDS[4]),
    "Nero": (2021, KINDS[4]),
    "Muon": (2024, KINDS[0]),
    "Muon rows": (2024, KINDS[4]),
    "Oblique SGD": (2025, KINDS[4]),
    "SGD-G": (2017, KINDS[5]),
    "Adam-G": (2017, KINDS[5]),
    "Cayley SGD": (2020, KINDS[5]),
}
"""Year of the first public version and kind, by name; for SGD, which is older, the year of Adam."""

Make = Callable[..., torch.optim.Optimizer]  # called with parameters and lr


class Meeting(NamedTuple):
    """Two methods whose first steps from a unit row, against a tangent gradient of length one, agree."""

    one: str
    other: str
    setting: str
    """In words: where they agree."""
    order: int | None
    """The power of the angle that their gap falls with; None where there is no gap."""
    make_one: Make
    make_other: Make

    def gap(self, y: Tensor, g: Tensor, lr: float) -> float:
        """The angle between the directions of both after one step, in radians; shapes ``(1, fan_in)``, float64."""
        ends = (direction_after(make, y, g, lr) for make in (self.make_one, self.make_other))
        return float(sphere.distance(*ends).max())


def gaps(y: Tensor, g: Tensor, lr: float) -> pandas.DataFrame:
    """One row a meeting: both names, the setting, the gap at ``lr`` and at half of it, and their ratio.

    The ratio is left out where the gap is below 1e-8: rounding, and what methods add to a divisor.
    """
    rows = [(m.one, m.other, m.setting, m.gap(y, g, lr), m.gap(y, g, lr / 2)) for m in MEETINGS]
    table = pandas.DataFrame(rows, columns=["method", "beside", "where", "gap", "half the rate"])
    table["ratio"] = (table["gap"] / table["half the rate"]).where(table["gap"] > 1e-8)
    return table


def direction_after(make: Make, y: Tensor, g: Tensor, lr: float) -> Tensor:
    """Where the rows ``y`` point after one step of a new optimizer; ``y`` and ``g`` are not changed."""
    p = nn.Parameter(y.clone())
    optimizer = make([p], lr=lr)
    p.grad = g.clone()
    optimizer.step()
    return nn.functional.normalize(p.detach(), dim=1)


def _adam_srt(params: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return adam_srt.AdamSRT(params, lr / math.sqrt(params[0].shape[1]), eps=0.0)


def _rotational(params: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return rotational.RotationalSGD(params, lr, momentum=0.0, weight_decay=lr / 2, center=False)


def _muon(params: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    one = torch.eye(1, dtype=torch.float64)  # a single row has one singular value, here 1
    return muon.MuonRows(params, lr / float(muon.newton_schulz(one, 3)), momentum=0.0)


_muon_free = partial(muon.Muon, momentum=0.6, steps=3, weight_decay=0.0)
_plain: dict[str, Any] = {"momentum": 0.0}
_hyperball, _pbwn = partial(hyperball.HyperballSGD, **_plain), partial(pbwn.PBWN, **_plain)
_sgd_g, _adam_g = partial(SGDG, grad_clip=None), partial(AdamG, grad_clip=None, eps=0.0)

MEETINGS = (
    Meeting("PBWN", "SGD-G", "no momentum, no clip", 3, _pbwn, _sgd_g),
    Meeting("Cayley SGD", "SGD-G", "one row, no clip", 3, partial(cayley.CayleySGD, iterations=50), _sgd_g),
    Meeting("Nero", "Adam-G", "β₁ 0, no centering, no clip", 3, partial(nero.Nero, center=False), _adam_g),
    Meeting("AdamSRT", "Adam-G", "first step, rate over √n", 3, _adam_srt, _adam_g),
    Meeting("PBWN", "PSI-SGD", "no momentum", None, _pbwn, PSISGD),
    Meeting("Oblique SGD", "PBWN", "no momentum", None, partial(oblique.ObliqueSGD, **_plain), _pbwn),
    Meeting(
        "Radial brake", "PSI-SGD", "brake shut", None, partial(radial_brake.RadialBrakeSGD, outward=0.0), PSISGD
    ),
    Meeting(
        "Radial brake",
        "SGD",
        "brake open",
        None,
        partial(radial_brake.RadialBrakeSGD, outward=1.0),
        torch.optim.SGD,
    ),
    Meeting("SGDP", "SGD", "never projected", None, partial(adamp.SGDP, delta=0.0), torch.optim.SGD),
    Meeting("AdamP", "Adam", "never projected", None, partial(adamp.AdamP, delta=0.0), torch.optim.Adam),
    Meeting(
        "LARS", "Hyperball", "by row", None, partial(lars.LARS, trust=1.0, by_row=True, **_plain), _hyperball
    ),
    Meeting("Rotational", "Hyperball", "first step, its angle", None, _rotational, _hyperball),
    Meeting("Muon rows", "Hyperball", "one row, its factor", None, _muon, _hyperball),
    Meeting("Muon", "Muon rows", "first step, no decay", None, _muon_free, muon.MuonRows),
)
"""Every method but SGD and Adam meets another; those two are the plain ends."""
