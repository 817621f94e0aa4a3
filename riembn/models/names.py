"""The table of networks, and one network by its name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from ..open_table import OpenTable
from .resnet import DEPTHS, resnet
from .vgg import vgg
from .wide_resnet import wide_resnet

Make = Callable[..., nn.Module]

# Of the package's own: which arguments each takes, spelled in one way only, and how an error says that.
_ARGUMENTS = {
    "vgg": (r"11|13|16|19", "vgg-11, vgg-13, vgg-16, vgg-19"),
    "resnet": ("|".join(map(str, sorted(DEPTHS))), ", ".join(f"resnet-{depth}" for depth in sorted(DEPTHS))),
    "wrn": (
        r"(?P<depth>[1-9]\d*)-(?P<widen>0\.\d*[1-9]|[1-9]\d*(\.\d*[1-9])?)",
        "wrn-DEPTH-WIDEN with DEPTH 10, 16, 22, …",
    ),
}


def _own_argument(key: str, argument: str) -> re.Match[str] | None:
    found = re.fullmatch(_ARGUMENTS[key][0], argument)
    if found and key == "wrn" and (int(found["depth"]) < 10 or int(found["depth"]) % 6 != 4):
        return None
    return found


def _vgg(depth: str, *, num_classes: int, in_channels: int, width: float = 1.0) -> nn.Module:
    return vgg(int(depth), num_classes, width, in_channels)


def _resnet(depth: str, *, num_classes: int, in_channels: int, width: float = 1.0) -> nn.Module:
    return resnet(int(depth), num_classes, width, in_channels)


def _wrn(
    sizes: str, *, num_classes: int, in_channels: int, width: float = 1.0, dropout: float = 0.0
) -> nn.Module:
    depth, widen = sizes.split("-")
    return wide_resnet(int(depth), float(widen) * width, num_classes, dropout, in_channels)


class Networks(OpenTable[Make]):
    """Names of networks, and what makes them: ``networks["mixer"] = make_mixer`` adds one.

    A name is ``KEY`` or ``KEY-ARGUMENT``: ``mixer`` is made by ``make_mixer(num_classes=…, in_channels=…)``,
    ``mixer-8`` by ``make_mixer("8", num_classes=…, in_channels=…)``, with ``width=`` and ``dropout=`` too if it
    has parameters of these names besides. Where two keys fit a name, the longer one counts.

    Raises:
        ValueError: When the package's own entry would be replaced, or a name is spelled as none may be.
        TypeError: When an entry cannot be called.
    """

    def __setitem__(self, key: str, make: Make) -> None:
        if not callable(make):
            raise TypeError(f"riembn: network {key!r} is {make!r}; give a function or class that makes it.")
        family, _, argument = str(key).partition("-")
        if family in self._own and _own_argument(family, argument):
            raise ValueError(f"riembn: network {key!r} is the package's own; choose another name.")
        super().__setitem__(key, make)

    @property
    def accepted(self) -> str:
        """The names there are, as errors say them."""
        added = [key + _suffix(make) for key, make in self._added.items()]
        return ", ".join([text for _, text in _ARGUMENTS.values()] + added)

    def resolve(self, name: str) -> tuple[str, Make, str | None]:
        """Key, what makes the network, and its argument; None if the name has none.

        Raises:
            ValueError: In one line, ``network=… is not accepted; give …``, if there is no such name.
        """
        text = name if isinstance(name, str) else ""
        keys = [key for key in self if text == key or text.startswith(key + "-")]
        for key in sorted(keys, key=len, reverse=True):
            argument = text[len(key) + 1 :] or None
            if key in self._own:
                fits = argument is not None and _own_argument(key, argument) is not None
            else:
                fits = re.fullmatch(r"[a-z0-9._-]+", text) is not None and _can_be_called(self[key], argument)
            if fits:
                return key, self[key], argument
        raise ValueError(f"network={name!r} is not accepted; give {self.accepted}.")

    def check(self, name: str) -> None:
        """Refuse what names no network, as `resolve` does."""
        self.resolve(name)

    def takes(self, name: str) -> frozenset[str]:
        """Which of ``width`` and ``dropout`` the network of a name can be given."""
        _, make, argument = self.resolve(name)
        signature = inspect.signature(make)
        filled = signature.bind_partial(*_positional(argument)).arguments  # may be called "width" itself
        return frozenset({"width", "dropout"} & (signature.parameters.keys() - filled.keys()))


def _positional(argument: str | None) -> list[str]:
    return [] if argument is None else [argument]


def _can_be_called(make: Make, argument: str | None) -> bool:
    try:
        inspect.signature(make).bind(*_positional(argument), num_classes=2, in_channels=1)
    except TypeError:
        return False
    return True


def _suffix(make: Make) -> str:
    """What stands behind the key in the names of an added network."""
    if not _can_be_called(make, "1"):
        return ""
    return "[-ARGUMENT]" if _can_be_called(make, None) else "-ARGUMENT"


networks = Networks("network", {"vgg": _vgg, "resnet": _resnet, "wrn": _wrn})


def build(
    network: str, *, num_classes: int, in_channels: int, width: float = 1.0, dropout: float = 0.0
) -> nn.Module:
    """The network of a name, with fresh weights.

    Args:
        network: A name of `riembn.networks`: ``"vgg-13"`` is ``vgg(13)``, ``"resnet-20"`` is ``resnet(20)``,
            ``"wrn-28-10"`` is ``wide_resnet(28, 10)``; the last number may be a decimal, ``"wrn-16-0.5"``.
        num_classes: Size of the output.
        in_channels: Channels of the images.
        width: Factor on the channels; for a WRN on top of the name's own.
        dropout: Probability, where the network has dropout: a WRN.

    Raises:
        ValueError: If the name is unknown, or the network does not take an argument.
        TypeError: If what is made is no ``torch.nn.Module``.
    """
    try:
        _, make, argument = networks.resolve(network)
    except ValueError as error:
        raise ValueError(f"build: {error}") from None
    settings: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels}
    takes = networks.takes(network)
    for name, value, neutral in (("width", width, 1.0), ("dropout", dropout, 0.0)):
        if name in takes:
            settings[name] = value
        elif value != neutral:
            raise ValueError(f"build: {name}={value!r} with {network!r}, which takes no {name}; give {neutral:g}.")
    model = make(*_positional(argument), **settings)
    if not isinstance(model, nn.Module):
        raise TypeError(f"build: network {network!r} was made as {type(model).__name__}; return a torch.nn.Module.")
    return model
