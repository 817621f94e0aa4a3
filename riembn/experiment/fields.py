"""What a field of a configuration accepts, as a value and as text: each kind of field declared once."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


class Options(Mapping[str, Any]):
    """Named values that do not change: numbers, text, true or false, None, and lists of them."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = {name: _frozen(name, value) for name, value in sorted((values or {}).items())}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)

    def beside(self, defaults: Mapping[str, Any]) -> Options:
        """What differs from the defaults, numbers of the defaults' kind: a run has one name, however it is said."""
        known = {name: _frozen(name, value) for name, value in defaults.items() if _can_be_kept(value)}
        said = {name: _alike(value, known[name]) if name in known else value for name, value in self.items()}
        return Options({name: value for name, value in said.items() if name not in known or value != known[name]})

    def plain(self) -> dict[str, Any]:
        """As JSON holds them."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in self._values.items()}


def _can_be_kept(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_can_be_kept, value))
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def _alike(value: Any, default: Any) -> Any:
    """A number as a float or whole, as the default is."""
    if isinstance(value, tuple) and isinstance(default, tuple) and len(value) == len(default):
        return tuple(map(_alike, value, default))
    if isinstance(value, int | float) and not isinstance(value, bool):
        if type(default) is float or (type(default) is int and value == int(value)):
            return type(default)(value)
    return value


def _frozen(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(name, v) for v in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"option {name}={value!r} is not finite")
    if value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(f"option {name}={value!r} is no number, text, true, false, None or list of them")
    return value


@dataclass(frozen=True)
class Kind:
    """The values that a field accepts. `check` returns one as it is kept; `parse` reads it from text."""

    none: bool = False

    def check(self, field: str, value: Any) -> Any:
        """The value as a configuration keeps it, or a ValueError or TypeError that says what is accepted."""
        if value is None and self.none:
            return None
        return self._checked(field, value)

    def parse(self, field: str, text: str) -> Any:
        """The value of a text from a command line; whether it is in range, `check` says."""
        if self.none and text.lower() == "none":
            return None
        try:
            return self._parsed(text)
        except (ValueError, KeyError, SyntaxError):
            raise ValueError(f"{field}={text!r} is not accepted; give {self.accepted}") from None

    @property
    def accepted(self) -> str:
        raise NotImplementedError

    def _checked(self, field: str, value: Any) -> Any:
        raise NotImplementedError

    def _parsed(self, text: str) -> Any:
        return text

    def _or_none(self) -> str:
        return ", or None" if self.none else ""

    def refuse(self, field: str, value: Any, error: type[Exception] = ValueError) -> Exception:
        return error(f"RunConfig: {field}={value!r} is not accepted; give {self.accepted}.")


@dataclass(frozen=True)
class Number(Kind):
    """A finite number in a range."""

    low: float = 0
    high: float = math.inf
    open_low: bool = False

    @property
    def accepted(self) -> str:
        left, right = ("(" if self.open_low else "["), (")" if self.high == math.inf else "]")
        return f"a finite number in {left}{self.low:g}, {self.high:g}{right}{self._or_none()}"

    def _checked(self, field: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(field, value, TypeError)
        if not self.low <= value <= self.high or not math.isfinite(value) or (self.open_low and value == self.low):
            raise self.refuse(field, value)
        return float(value)

    def _parsed(self, text: str) -> float:
        return float(text)


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number of at least ``low``."""

    low: int = 0

    @property
    def accepted(self) -> str:
        return f"a whole number of at least {self.low}{self._or_none()}"

    def _checked(self, field: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(field, value, TypeError)
        if value < self.low:
            raise self.refuse(field, value)
        return value

    def _parsed(self, text: str) -> int:
        return int(text)


@dataclass(frozen=True)
class Name(Kind):
    """One of some names; ``known`` lists them, and may change while the program runs."""

    known: Callable[[], Iterator[str] | tuple[str, ...]] = tuple

    @property
    def accepted(self) -> str:
        return "one of " + ", ".join(self.known())

    def _checked(self, field: str, value: Any) -> str:
        if not isinstance(value, str) or value not in tuple(self.known()):
            raise self.refuse(field, value)
        return value


class Flag(Kind):
    """True or False."""

    accepted = "True or False"

    def _checked(self, field: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self.refuse(field, value, TypeError)
        return value

    def _parsed(self, text: str) -> bool:
        return {"true": True, "false": False}[text.lower()]


class Epochs(Kind):
    """Epochs in rising order."""

    accepted = "whole numbers of at least 1, each larger than the one before, e.g. (60, 120, 160)"

    def _checked(self, field: str, value: Any) -> tuple[int, ...]:
        if not isinstance(value, tuple | list) or any(isinstance(e, bool) or not isinstance(e, int) for e in value):
            raise self.refuse(field, value, TypeError)
        if any(after <= before for before, after in zip((0, *value), value, strict=False)):
            raise self.refuse(field, value)
        return tuple(value)

    def _parsed(self, text: str) -> tuple[int, ...]:
        return () if text.lower() == "none" else tuple(int(epoch) for epoch in re.split("[,:]", text))


class OptionsKind(Kind):
    """Named values for a function that is called with them."""

    accepted = "names and values such as {'beta3': 0.9, 'eps': 1e-3}, on a command line 'beta3=0.9;eps=1e-3'"

    def _checked(self, field: str, value: Any) -> Options:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise self.refuse(field, value, TypeError)
        try:
            return Options(value)
        except (TypeError, ValueError) as reason:
            raise type(reason)(f"RunConfig: {field}={value!r} is not accepted: {reason}.") from None

    def _parsed(self, text: str) -> Options:
        if text.lower() == "none":
            return Options()
        return Options(dict(_named(part) for part in re.split(r"[;:](?![^\[(]*[\])])", text)))


def _named(part: str) -> tuple[str, Any]:
    name, equals, value = part.partition("=")
    if not equals or not name.strip().isidentifier():
        raise ValueError(part)
    try:
        return name.strip(), ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if "=" in value:  # of another option, behind a comma
            raise ValueError(part) from None
        return name.strip(), {"true": True, "false": False, "none": None, "null": None}.get(value.lower(), value)


def listed(text: str) -> list[str]:
    """The values between commas; those within brackets are of one value."""
    return re.split(r",(?![^\[(]*[\])])", text)


def declared(kind: Kind, default: Any = dataclasses.MISSING) -> Any:
    """A field of a configuration: its kind, and its default if it has one."""
    return dataclasses.field(default=default, metadata={"kind": kind})


def written(value: Any) -> str:
    """The text of a value of `RunConfig.as_dict`: what `Kind.parse` reads."""
    if isinstance(value, Mapping):
        return ";".join(f"{name}={json.dumps(v)}" for name, v in value.items()) or "none"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
