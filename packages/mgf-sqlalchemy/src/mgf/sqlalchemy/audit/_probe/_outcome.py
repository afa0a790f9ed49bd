"""How an attack went."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

Result: TypeAlias = Literal["held", "leaked", "not_proven", "not_applicable"]


class Outcome(NamedTuple):
    """How an attack went, and why; empty where that goes without saying."""

    result: Result
    reason: str = ""


HELD: Final = Outcome("held")
NOT_APPLICABLE: Final = Outcome("not_applicable")

# After the name of a command.
NOT_REACHED: Final = "does not reach a tenant's own rows"


def leaked(how: str) -> Outcome:
    """Return that another tenant's rows were had."""
    return Outcome("leaked", how)


def not_proven(reason: str) -> Outcome:
    """Return that nothing was shown."""
    return Outcome("not_proven", reason)
