"""A hash of code that is not the package's own, so that a run of edited code is another run."""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import inspect
import linecache
import types
from collections.abc import Iterator
from typing import Any

__all__ = ["code_digest", "is_foreign"]

_OWN = ("riembn", "torch", "torchvision")


def is_foreign(function: Any) -> bool:
    """Whether a function or class is neither this package's nor torch's, whose versions a record names."""
    function = _unwrapped(function)
    return (getattr(function, "__module__", None) or "").partition(".")[0] not in _OWN


def code_digest(function: Any) -> str:
    """Sixteen hexadecimal digits of the source of a function or class, and of what it uses of its own module.

    Where there is no source (an interactive prompt), the compiled code stands for it.
    """
    seen: dict[int, str] = {}
    _collect(function, getattr(_unwrapped(function), "__module__", None), seen)
    return hashlib.sha256("\n".join(sorted(seen.values())).encode()).hexdigest()[:16]


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _collect(thing: Any, module: str | None, seen: dict[int, str]) -> None:
    """The text of ``thing`` and of everything of ``module`` that it names."""
    if isinstance(thing, functools.partial):
        seen[id(thing)] = f"{thing.args!r} {sorted(thing.keywords.items())!r}"
        thing = thing.func
    if id(thing) in seen or getattr(thing, "__module__", None) != module:
        return
    functions = list(_functions(thing))
    seen[id(thing)] = _text(thing, functions)
    for base in getattr(thing, "__bases__", ()):
        _collect(base, module, seen)
    for function in functions:
        for name in _names(function.__code__):
            used = function.__globals__.get(name)
            if isinstance(used, bool | int | float | str | tuple | type(None)) and not hasattr(builtins, name):
                if name in function.__globals__:
                    seen[hash((name, module))] = f"{name} = {used!r}"
            elif isinstance(used, type | types.FunctionType | functools.partial):
                _collect(used, module, seen)


def _functions(thing: Any) -> Iterator[types.FunctionType]:
    """A function itself, or the methods of a class."""
    if isinstance(thing, types.FunctionType):
        yield inspect.unwrap(thing)
    elif isinstance(thing, type):
        for member in vars(thing).values():
            member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if isinstance(member, types.FunctionType):
                yield inspect.unwrap(member)


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*inner)


def _text(thing: Any, functions: list[types.FunctionType]) -> str:
    """Source where there is some, without what changes nothing (comments, layout); else compiled code."""
    for function in functions:
        lines = "".join(linecache.getlines(function.__code__.co_filename))
        try:
            tree = ast.parse(lines)
        except SyntaxError:  # a notebook's cell with magic commands
            break
        line = function.__code__.co_firstlineno
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == thing.__name__:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if first <= line <= (node.end_lineno or line):
                    return ast.dump(node)
    return "\n".join([repr(getattr(thing, "__qualname__", thing)), *map(_compiled, functions)])


def _compiled(function: types.FunctionType) -> str:
    def told(code: types.CodeType) -> str:
        constants = [told(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
        return f"{code.co_code.hex()} {code.co_names} {constants}"

    return f"{function.__name__} {told(function.__code__)} {function.__defaults__!r}"
