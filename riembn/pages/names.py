"""What a page calls the columns of a record, the fields of a configuration, and their values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from riembn.pages.palette import look

MEASURES = {
    "test_error": "test error, %",
    "validation_error": "validation error, %",
    "train_error": "training error, %",
    "train_loss": "training loss, augmented",
    "clean_loss": "training loss",
    "test_loss": "test loss",
    "early_error": "early error, %",
    "early_loss": "early training loss",
    "early_angle": "early angle a step, radians",
    "early_spread": "spread of the early angles",
    "rise": "largest rise, points",
    "angle": "angle a step, radians",
    "angle_rms": "angle a step, rms, radians",
    "cosine": "cosine of two rows, rms",
    "weight_norm": "length of a row",
}
"""Columns of a record as the axes of a figure name them."""

FIELDS = {"grad_clip": "threshold ν", "alpha": "strength α", "lr": "learning rate"}
"""Fields of a configuration as the axes of a figure name them."""

SYMBOLS = {"grad_clip": "ν", "alpha": "α", "lr": "η"}
"""Fields as a sentence names them."""

UNITS = {"grad_clip": "loss per radian"}
"""Units of fields."""


def value_text(value: Any) -> str:
    """A field's value as a reader knows it: none for no bound."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "none"
    if isinstance(value, Mapping):  # options of an optimizer
        return ", ".join(f"{name} {value_text(one)}" for name, one in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting_text(field: str, value: Any) -> str:
    """A field with its value, or the name of a method, as a sentence has it."""
    if field == "method":
        return look(value).label
    text = value_text(value)
    if field == "options" and text != "none":
        return text  # which names what it sets
    return f"no {FIELDS.get(field, field)}" if text == "none" else f"{SYMBOLS.get(field, field)} = {text}"


def axis_text(field: str) -> str:
    """The name of a field with its unit, for an axis; nothing for methods, whose names stand there."""
    return "" if field == "method" else ", ".join(filter(None, [FIELDS.get(field, field), UNITS.get(field)]))


def field_text(field: str, value: Any) -> str:
    """A field's value, or the name of a method, as a reader knows it."""
    return look(value).label if field == "method" else value_text(value)
