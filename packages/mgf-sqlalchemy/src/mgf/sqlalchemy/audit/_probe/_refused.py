"""UPDATE and DELETE that a table's own trigger refuses, whatever they are about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mgf.sqlalchemy.audit._checks.policies import commands, has_floor, is_canonical
from mgf.sqlalchemy.audit._probe._outcome import HELD, NOT_REACHED, Outcome, not_proven

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mgf.sqlalchemy.audit._probe._ground import Ground
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
    ground: Ground, target: Target, name: str, outcome: Outcome, before: Mapping[str, Outcome]
) -> Outcome:
    """Return how an attack went where a trigger kept it from being decided by policies.

    It is held off if those policies are canonical, so that the catalogs say what the attack cannot
    show, and if they were seen to hold the role off from reading. A trigger may refuse some rows,
    or at some times, and so is no protection itself.

    Args:
        ground: the tables.
        target: a relation.
        name: of the attack.
        outcome: of the attack.
        before: outcomes of those before it.
    """
    command = _COMMANDS.get(name)
    if command is None or outcome.result != "not_proven" or not outcome.reason.startswith(_SIGNS):
        return outcome
    if not _has_trigger(ground, target, command):
        return outcome
    if before.get("read") == HELD and _is_canonical(ground, target, command):
        return HELD
    return not_proven(
        f"{outcome.reason}: a trigger refuses {command} before policies have a say; REVOKE "
        f"{command} where nobody may, or disable the trigger where it is probed"
    )


def _has_trigger(ground: Ground, target: Target, command: str) -> bool:
    tables = {target.relation.oid}
    if target.relation.oid in ground.owned:
        tables.update(ground.routed_by(target.relation.oid))
    return any(
        one.tgrelid in tables and one.type & _FOR[command] and one.enabled != "D"
        for one in ground.subject.snapshot.triggers
    )


def _is_canonical(ground: Ground, target: Target, command: str) -> bool:
    subject, relation = ground.subject, target.relation
    concerned = [
        one
        for one in relation.policies
        if not one.restrictive and subject.applies(one) and command in commands(one)
    ]
    return all(
        is_canonical(subject, relation, one) or has_floor(subject, relation, one)
        for one in concerned
    )
