"""How is a field's value written as text, on a command line?"""

from __future__ import annotations

import re
import types
import typing
from typing import Any

from .config import RunConfig

__all__ = ["value_of", "written"]


def written(value: Any) -> str:
    """The text of a value of `RunConfig.as_dict`: what `value_of` reads."""
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def value_of(field: str, text: str) -> Any:
    """The value of a field from its text: ``none`` where it may be None; ``4:7`` or ``4,7`` for drops.

    Only the type is checked; whether the value is accepted, `RunConfig` says.

    Raises:
        ValueError: If the text is no value of the field's type.
    """
    kinds = _KINDS[field]
    try:
        if text.lower() == "none" and (type(None) in kinds or tuple in kinds):
            return () if tuple in kinds else None
        if tuple in kinds:
            return tuple(int(epoch) for epoch in re.split("[,:]", text))
        if bool in kinds:
            return {"true": True, "false": False}[text.lower()]
        if int in kinds:
            return int(text)
        return float(text) if float in kinds else text
    except (ValueError, KeyError):
        expected = next(what for kind, what in _EXPECTED.items() if kind in kinds)
        raise ValueError(f"{field}={text!r} is not accepted; give {expected}") from None


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types a field's annotation names: (int, NoneType) for ``int | None``, (tuple,) for a tuple."""
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        return typing.get_args(hint)
    return (origin or hint,)


_KINDS = {name: _kinds(hint) for name, hint in typing.get_type_hints(RunConfig).items()}
_EXPECTED = {
    tuple: "whole numbers such as 4:7",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}
