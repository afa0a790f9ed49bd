"""UPDATE and DELETE that a table's own trigger refuses, whatever they are about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mgf.sqlalchemy.audit._probe._outcome import NOT_REACHED, Outcome, not_proven

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgf.sqlalchemy.audit._probe._field import Field
    from mgf.sqlalchemy.audit._probe._target import Target

_COMMANDS: Final = {
    "upsert": "UPDATE",
    "move": "UPDATE",
    "blind-update": "UPDATE",
    "blind-delete": "DELETE",
}
# Bits of tgtype (PostgreSQL, src/include/catalog/pg_trigger.h).
_FOR: Final = {"DELETE": 8, "UPDATE": 16}
# Of class P0 is what a trigger raises; one that returns NULL leaves the row as it was.
_SIGNS: Final = ("P0", *(f"{command} {NOT_REACHED}" for command in _FOR))


def judge(
    field: Field, target: Target, name: str, outcome: Outcome, again: Callable[[], Outcome]
) -> Outcome:
    """Return how an attack went where a trigger kept policies from being asked.

    It is made again without triggers, where the login may switch them off. A trigger may refuse
    some rows, or at some times, and so is no protection itself; what it keeps from happening is no
    leak either.

    Args:
        field: what attacks are made with.
        target: a table.
        name: of the attack.
        outcome: of the attack.
        again: makes it again.
    """
    command = _COMMANDS.get(name)
    if command is None or outcome.result != "not_proven" or not outcome.reason.startswith(_SIGNS):
        return outcome
    if not _has_trigger(field, target, command):
        return outcome
    what = f"{outcome.reason}: a trigger refuses {command} before policies have a say"
    remedy = f"REVOKE {command} where nobody may"
    if not field.session.may_do_without_triggers():
        return not_proven(
            f"{what}, and {field.session.login!r} may not switch it off; {remedy}, or log in as a "
            "superuser and name the role"
        )
    with field.session.without_triggers():
        outcome = again()
    if outcome.result == "leaked":
        return not_proven(f"{what}; without it, {outcome.reason}; {remedy}")
    return outcome


def _has_trigger(field: Field, target: Target, command: str) -> bool:
    ground, tables = field.seeder.ground, {target.relation.oid}
    if target.relation.oid in ground.owned:
        tables.update(ground.routed_by(target.relation.oid))
    return any(
        one.tgrelid in tables and one.type & _FOR[command] and one.enabled != "D"
        for one in ground.subject.snapshot.triggers
    )
