"""The parameters that a chapter of the book received, and the records that it is drawn from.

A chapter declares its parameters once, as annotated assignments in the cell tagged ``parameters``::

    profile: str = "laptop"  # smoke (digits, minutes), laptop (committed records), paper (full size)
    thresholds: list[float] = [0.05, 0.1, 0.5]  # clipping thresholds, loss per radian

and its first code cell after that calls ``chapter.check(globals())``.
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import types
import typing
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_origin

PROFILES = ("smoke", "laptop", "paper")


def check(namespace: dict[str, Any], **choices: Iterable[Any]) -> None:
    """Refuse parameters that the chapter does not have, and values of the wrong type.

    papermill injects whatever it is given: for an unknown name it only warns, and it enforces no type. This
    call compares what was injected with the annotations of the parameters cell. Text given for a parameter
    that is not text (``-p thresholds "[0.1, 0.5]"`` arrives as a string) is read as a Python literal and put
    back in ``namespace``; whole numbers given for ``float`` become ``float``. Cells run by hand are never
    complained of.

    Args:
        namespace: ``globals()`` of the notebook, right after its parameters cell.
        choices: The accepted values of a parameter, by its name; of each entry, if the parameter is a list.
            ``profile`` is always one of smoke, laptop, paper.

    Numbers have to be finite. ``seeds`` are two or more, each once, since one seed has no interval; ``jobs`` is 1 or
    more, or -1 for one a core.

    Raises:
        ParameterError: Which parameter, what was given, what is accepted. Nothing in ``namespace`` is changed. In a
            notebook it is shown as that one line.
    """
    _show_in_one_line()
    _refuse_another_clone()
    declared = {name: _type(hint) for name, hint in namespace.get("__annotations__", {}).items()}
    unknown = [name for name in _injected(namespace) if name not in declared]
    if unknown:
        raise ParameterError(f"unknown parameter {unknown[0]!r}: this chapter accepts {', '.join(declared)}.")
    allowed: dict[str, Iterable[Any]] = {"profile": PROFILES, **choices}
    accepted = {}
    for name, hint in declared.items():
        try:
            accepted[name] = _accept(namespace[name], hint, tuple(allowed.get(name, ())))
            _check_counts(name, accepted[name])
        except ValueError as reason:
            raise ParameterError(f"parameter {name!r} = {namespace[name]!r}: {reason}.") from None
    namespace.update(accepted)


class ParameterError(ValueError):
    """A parameter of a chapter that is not accepted."""


def _check_counts(name: str, value: Any) -> None:
    """What seeds and jobs have to be beyond their type."""
    if name == "seeds" and (len(value) < 2 or len(set(value)) < len(value) or min(value) < 0):
        raise ValueError("expected two or more whole numbers from 0 on, each once: one seed has no interval")
    if name == "jobs" and (value == 0 or value < -1):
        raise ValueError("expected 1 or more, or -1 for one a core")


def _show_in_one_line() -> None:
    """Let a notebook show a `ParameterError` without the frames that raised it."""
    from IPython.core.getipython import get_ipython

    if (shell := get_ipython()) is None:
        return

    def show(shell: Any, kind: type, error: Exception, frames: Any, tb_offset: Any = None) -> list[str]:
        told = [f"{kind.__name__}: {error}"]
        shell._showtraceback(kind, error, told)
        return told

    shell.set_custom_exc((ParameterError,), show)


def _refuse_another_clone() -> None:
    """A page says which commit it was made from: the package has to be that of the repository it stands in."""
    own = Path(__file__).resolve().parents[2]
    try:
        root = repository("check").resolve()
    except ValueError:
        return  # a notebook elsewhere, with the package installed
    if (root / "riembn").is_dir() and root != own:
        raise ParameterError(
            f"this chapter stands in {root}, but the kernel imports riembn from {own}; start it from {root}/.venv, or "
            f"with PYTHONPATH={root}."
        )


def records(profile: str) -> Path:
    """The folder where the chapters of one profile keep the records of their runs.

    Args:
        profile: ``"laptop"`` and ``"paper"`` share the committed ``book/records``; ``"smoke"`` has a
            folder of its own under ``_build``: its runs are only there to show that everything works.

    Returns:
        The folder, relative where the working folder is the root of the repository. It may not exist yet.

    Raises:
        ValueError: Another profile, or a working folder outside the repository.
    """
    if profile not in PROFILES:
        raise ValueError(f"records: profile {profile!r} is not one of {', '.join(PROFILES)}.")
    return _in_repository("records", "_build/records/smoke" if profile == "smoke" else "book/records")


def benchmarks(command: str, device: str) -> dict[str, dict[str, Any]]:
    """What ``ci/bench`` measured and git keeps, by device.

    Args:
        command: ``"step"`` or ``"train"``.
        device: The one that the chapter is drawn from; it comes first.

    Returns:
        The contents of ``book/benchmarks/COMMAND-DEVICE.json`` for each device, such as ``cpu``.

    Raises:
        ValueError: If nothing was measured on ``device``, or the working folder is outside the repository.
    """
    folder = _in_repository("benchmarks", "book/benchmarks")
    found = {path.stem.partition("-")[2]: path for path in sorted(folder.glob(f"{command}-*.json"))}
    if device not in found:
        measured = ", ".join(found) or "none"
        raise ValueError(
            f"benchmarks: ci/bench {command} has no record of device {device!r}; there are: {measured}."
        )
    order = [device, *(name for name in found if name != device)]
    return {name: json.loads(found[name].read_text(encoding="utf-8")) for name in order}


def repository(caller: str) -> Path:
    """The root of the repository that the working folder lies in."""
    here = Path.cwd()
    for root in (here, *here.parents):
        if (root / "_toc.yml").is_file() and (root / "book").is_dir():
            return root
    raise ValueError(f"{caller}: {here} is not inside the repository; run it from its root.")


def _in_repository(caller: str, name: str) -> Path:
    """A folder of the repository, relative where the working folder is the repository's root."""
    root = repository(caller)
    return Path(name) if root == Path.cwd() else root / name


def _injected(namespace: dict[str, Any]) -> list[str]:
    """Names that papermill assigned: its cell begins with ``# Parameters`` and holds assignments only."""
    names: list[str] = []
    for source in namespace.get("In", []):
        if source.startswith("# Parameters"):
            assigned = [line.targets[0] for line in ast.parse(source).body if isinstance(line, ast.Assign)]
            names += [target.id for target in assigned if isinstance(target, ast.Name)]
    return names


def _type(hint: Any) -> Any:
    """A quoted annotation as the type it stands for."""
    return eval(hint, {**vars(builtins), **vars(typing)}) if isinstance(hint, str) else hint


def _accept(value: Any, hint: Any, choices: tuple[Any, ...]) -> Any:
    """``value`` as ``hint`` wants it, or a ValueError that says what is accepted."""
    if isinstance(value, str) and not _is_text(hint):
        value = _literal(value)
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inside:
            return None
        (hint,) = [kind for kind in inside if kind is not type(None)]
        return _accept(value, hint, choices)
    if origin is list or hint is list:
        if not isinstance(value, (list, tuple)) or not value:
            each = f", each {_name(inside[0])}" if inside else ""
            raise ValueError(f"expected a list with at least one entry{each}")
        return [_accept(entry, inside[0] if inside else type(entry), choices) for entry in value]
    if hint is tuple and type(value) is list:
        value = tuple(value)
    if hint is float and type(value) is int:
        value = float(value)
    if hint is float and type(value) is float and not math.isfinite(value):
        raise ValueError("expected a finite number")
    # `type() is`, because True is an int to isinstance and never meant as one here
    if type(value) is not hint:
        raise ValueError(f"expected {_name(hint)}, got {_name(type(value))}")
    if choices and value not in choices:
        raise ValueError(f"expected one of {', '.join(map(repr, choices))}")
    return value


def _is_text(hint: Any) -> bool:
    return hint is str or (get_origin(hint) in (typing.Union, types.UnionType) and str in get_args(hint))


def _literal(text: str) -> Any:
    for read in (ast.literal_eval, json.loads):
        with suppress(ValueError, SyntaxError):
            return read(text)
    return text


def _name(hint: Any) -> str:
    if kinds := get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else ():
        return " or ".join(map(_name, kinds))
    words = {float: "a number", int: "a whole number", str: "text", bool: "True or False", type(None): "None"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))
