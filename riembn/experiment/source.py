"""A hash of code that is not the package's own, so that a run of edited code is another run."""

from __future__ import annotations

import ast
import functools
import hashlib
import linecache
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

_OWN = ("riembn", "torch", "torchvision")
_LIBRARIES = {Path(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_FEW = 1000  # numbers of a tensor that are told one by one


def is_foreign(function: Any) -> bool:
    """Whether a function or class is neither this package's nor torch's, whose versions a record names.

    One with arguments filled in (`functools.partial`) is: they are nobody else's.
    """
    return isinstance(function, functools.partial) or not _is_own(_module(function))


def code_digest(function: Any) -> str:
    """Sixteen hexadecimal digits of the source of a function or class, and of what it uses of its author's.

    That is: what it names of its own module, and of modules beside it that are not installed; what it holds from
    where it was made (closures, defaults, decorators, attributes and bases of a class, arguments of a
    `functools.partial`); and the values of the variables that it reads. Where there is no source (an interactive
    prompt), the compiled code stands for it.
    """
    first = function
    while isinstance(first, functools.partial):
        first = first.func
    found = _Found(_module(first))
    text = found.told(function)
    return hashlib.sha256("\n".join([text, *sorted(found.texts.values())]).encode()).hexdigest()[:16]


def _module(thing: Any) -> str:
    return getattr(thing, "__module__", None) or ""


def _is_own(module: str) -> bool:
    return module.partition(".")[0] in _OWN


def _unhooked(thing: Any) -> Any:
    """A method without what torch wraps around ``step``, for its profiler, when a class has its first instance."""
    return vars(thing)["__wrapped__"] if getattr(thing, "hooked", False) is True else thing


class _Found:
    """The texts of functions and classes that were met, by their ids; ``home`` is the module they start from."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.texts: dict[int, str] = {}
        self._inside: set[int] = set()

    def told(self, value: Any) -> str:
        """A value as text that is the same in every process; what it is made of is added to ``texts``."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return repr(value)
        if isinstance(value, torch.Tensor):
            return repr(value.tolist()) if value.numel() <= _FEW else f"{value.dtype} {tuple(value.shape)}"
        if isinstance(value, types.FunctionType | type):
            value = _unhooked(value)
            self._add(value)
            return f"{value.__module__}.{value.__qualname__}"
        if id(value) in self._inside:  # it holds itself
            return type(value).__name__
        self._inside.add(id(value))
        try:
            return self._told_by_parts(value)
        finally:
            self._inside.discard(id(value))

    def _told_by_parts(self, value: Any) -> str:
        if isinstance(value, functools.partial):
            return f"partial({self.told([value.func, value.args, value.keywords])})"
        if isinstance(value, types.MethodType):
            return f"{self.told(value.__func__)} of {self.told(value.__self__)}"
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self.told, value))}]"
        if isinstance(value, set | frozenset):
            return f"{{{', '.join(sorted(map(self.told, value)))}}}"
        if isinstance(value, Mapping):
            return f"{{{', '.join(sorted(f'{self.told(k)}: {self.told(v)}' for k, v in value.items()))}}}"
        kind = type(value)
        held = vars(value) if self._is_followed(_module(kind)) and hasattr(value, "__dict__") else {}
        return f"{self.told(kind)}({self.told(dict(held))})"

    def _is_followed(self, module: str) -> bool:
        """Whether what a module holds may change without a version: the first one's, and others not installed."""
        if module in (self.home, "__main__"):
            return not _is_own(module)
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None or _is_own(module):
            return False
        return not any(Path(file).is_relative_to(library) for library in _LIBRARIES)

    def _add(self, thing: Any) -> None:
        if id(thing) in self.texts or not self._is_followed(_module(thing)):
            return
        self.texts[id(thing)] = ""  # it may name itself
        lines = list(self._of_class(thing) if isinstance(thing, type) else self._of_function(thing))
        self.texts[id(thing)] = "\n".join([thing.__qualname__, *lines])

    def _of_class(self, thing: type) -> Iterator[str]:
        yield self.told(thing.__bases__)
        for name, member in vars(thing).items():
            bare = _unhooked(member)
            if bare is not member and any(_unhooked(getattr(base, name, None)) is bare for base in thing.__bases__):
                continue  # inherited
            if isinstance(member, property):
                yield f"{name} = {self.told([member.fget, member.fset, member.fdel])}"
            elif isinstance(member, classmethod | staticmethod | functools.cached_property):
                yield f"{name} = {self.told(getattr(member, '__func__', None) or vars(member)['func'])}"
            elif not name.startswith("__") or isinstance(member, types.FunctionType):
                yield f"{name} = {self.told(member)}"

    def _of_function(self, function: types.FunctionType) -> Iterator[str]:
        code = function.__code__
        yield _text(code)
        yield self.told([function.__defaults__, function.__kwdefaults__])
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # not filled yet
                yield f"{name} = {self.told(cell.cell_contents)}"
        names = sorted(_names(code))
        for name in names:
            used = function.__globals__.get(name)
            if isinstance(used, types.ModuleType):
                inside = vars(used) if self._is_followed(used.__name__) else {}
                yield from (f"{name}.{part} = {self.told(inside[part])}" for part in names if part in inside)
            elif name in function.__globals__:
                yield f"{name} = {self.told(used)}"


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*inner)


def _text(code: types.CodeType) -> str:
    """Source where there is some, without what changes nothing (comments, layout); else compiled code."""
    source = "".join(linecache.getlines(code.co_filename))
    return _definitions(source).get((code.co_firstlineno, code.co_name)) or _compiled(code)


@functools.lru_cache(maxsize=64)
def _definitions(source: str) -> dict[tuple[int, str], str]:
    """The functions of a source, by first line and name."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a notebook's cell with magic commands
        return {}
    return {
        (min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]), node.name): ast.dump(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }


def _compiled(code: types.CodeType) -> str:
    def constant(value: Any) -> str:
        if isinstance(value, types.CodeType):
            return _compiled(value)
        return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)

    return f"{code.co_name} {code.co_code.hex()} {code.co_names} {[constant(c) for c in code.co_consts]}"
