"""What holds of one thing, and so of those that it leads to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping
    from typing import TypeVar

    Thing = TypeVar("Thing", bound=Hashable)
    Value = TypeVar("Value")


def spread(found: dict[Thing, Value], onward: Mapping[Thing, Iterable[Thing]]) -> None:
    """Give what is led to, however far, the value of what leads there; none that it has is lost."""
    todo = list(found)
    while todo:
        one = todo.pop()
        for further in onward.get(one, ()):
            if further not in found:
                found[further] = found[one]
                todo.append(further)
