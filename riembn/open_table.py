"""Names that a fork can add to: of methods, networks and data sets."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Generic, TypeVar

_T = TypeVar("_T")


class OpenTable(MutableMapping[str, _T], Generic[_T]):
    """A mapping from names to what they stand for; the package's own entries cannot be replaced.

    Args:
        what: What a name stands for, as errors call it: "method", "network", "data set".
        own: The package's entries.

    Raises:
        ValueError: When an entry of the package is replaced or removed, or a name is not made of lower-case
            letters, digits, ``-``, ``_`` and ``.``.
        KeyError: For a name that is not there; says which are.
    """

    def __init__(self, what: str, own: dict[str, _T]) -> None:
        self.what = what
        self._own = dict(own)
        self._added: dict[str, _T] = {}

    def __getitem__(self, name: str) -> _T:
        for entries in (self._own, self._added):
            if name in entries:
                return entries[name]
        raise KeyError(f"no {self.what} {name!r}; there are {', '.join(self)}")

    def __setitem__(self, name: str, entry: _T) -> None:
        self._check_free(name)
        if not isinstance(name, str) or not name or set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-_."):
            raise ValueError(
                f"riembn: {self.what} name {name!r} is not accepted; give lower-case letters, digits, '-', '_', '.'."
            )
        self._added[name] = entry

    def __delitem__(self, name: str) -> None:
        self._check_free(name)
        del self._added[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._added

    def __len__(self) -> int:
        return len(self._own) + len(self._added)

    def __repr__(self) -> str:
        return f"<{self.what}s: {', '.join(self)}>"

    @property
    def added(self) -> dict[str, _T]:
        """The entries that are not the package's own: what the processes of a sweep have to be told."""
        return dict(self._added)

    def _check_free(self, name: str) -> None:
        if name in self._own:
            raise ValueError(f"riembn: {self.what} {name!r} is the package's own; choose another name.")
