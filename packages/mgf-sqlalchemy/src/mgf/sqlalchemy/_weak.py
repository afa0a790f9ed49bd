"""Collections that keep nothing alive."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

_T = TypeVar("_T")


# Entries beyond which those of things that are gone are looked for.
_FEW = 8


class WeakList(Generic[_T]):
    """A few things, each once, in the order of adding, as long as somebody else holds them.

    By identity, and much cheaper for a handful than ``weakref.WeakSet``: every transaction of
    every session goes through two of them.
    """

    __slots__ = ("_refs",)

    def __init__(self, things: Iterable[_T] = ()) -> None:
        self._refs = {id(thing): weakref.ref(thing) for thing in things}

    def __contains__(self, thing: object) -> bool:
        ref = self._refs.get(id(thing))
        return ref is not None and ref() is thing

    def __len__(self) -> int:
        """Return at least how many are still there, and 0 only when none is."""
        return len(self._refs)

    def living(self) -> list[_T]:
        """Return what is still there."""
        return [thing for ref in self._refs.values() if (thing := ref()) is not None]

    def add(self, thing: _T) -> None:
        """Add a thing, unless it is there."""
        if len(self._refs) > _FEW:
            self._refs = {id(other): weakref.ref(other) for other in self.living()}
        self._refs[id(thing)] = weakref.ref(thing)

    def discard(self, thing: _T) -> None:
        """Remove a thing, if it is there."""
        self._refs.pop(id(thing), None)
