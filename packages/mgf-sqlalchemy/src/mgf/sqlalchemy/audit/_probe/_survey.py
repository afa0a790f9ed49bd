"""Say what there is to attack, and how rows are written and told there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mgf.sqlalchemy.audit._probe import _control as control
from mgf.sqlalchemy.audit._probe._ground import Ground
from mgf.sqlalchemy.audit._probe._shapes import read_shapes
from mgf.sqlalchemy.audit._probe._target import Target
from mgf.sqlalchemy.rls._scratch import EMPTY_SEARCH_PATH, scratch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection

    from mgf.sqlalchemy.audit._probe._seeding import Seeder
    from mgf.sqlalchemy.audit._probe._shapes import Shape
    from mgf.sqlalchemy.audit._snapshot import Relation
    from mgf.sqlalchemy.audit._subject import Expectation

_ASKED = re.compile(r"current_setting\s*\(\s*'((?:[^']|'')+)'", re.IGNORECASE)
_UUID = re.compile(r"'([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})'", re.IGNORECASE)
_LITERAL = re.compile(r"'((?:[^']|'')*)'")
# What programs set to say yes.
_YES = ("on", "true", "1")


def survey(
    connection: Connection, expectation: Expectation, *, role: str, open_table: Relation | None
) -> Ground:
    """Return the tables with tenants' rows, and the shapes of what they hang together with.

    Args:
        connection: to ask.
        expectation: of the audit.
        role: that attacks.
        open_table: the negative control.
    """
    subject = expectation.subject
    relations = dict(subject.snapshot.relations)
    owned = dict(subject.tenants)
    for oid in _open_children(expectation):
        owned.setdefault(oid, None)
    if open_table is not None:
        relations[open_table.oid] = open_table
        owned[open_table.oid] = control.COLUMN
    needed = {*owned, *(one.confrelid for one in subject.snapshot.foreign_keys)}
    needed |= {one.oid for one in relations.values() if one.kind in "vm"}
    return Ground(
        subject, owned, shapes_of(connection, needed & set(relations), role=role), relations
    )


def shapes_of(connection: Connection, oids: Iterable[int], *, role: str) -> dict[int, Shape]:
    """Return the shapes of relations; the names in their conditions are written in full."""
    with scratch(connection):
        connection.execute(EMPTY_SEARCH_PATH)
        return read_shapes(connection, list(oids), role=role)


def _open_children(expectation: Expectation) -> Iterator[int]:
    """Yield tables that refer to tenants' rows, and that the role gets at.

    Those that the metadata declares to be shared are none.
    """
    subject, declared = expectation.subject, expectation.declared
    shared = {one.key for one in (() if declared is None else declared.tables) if not one.enabled}
    for row in subject.snapshot.foreign_keys:
        child = subject.snapshot.relations.get(row.conrelid)
        if child is None or row.confrelid not in subject.tenants:
            continue
        if child.privileges and subject.snapshot.key(child) not in shared:
            yield child.oid


def named_tenants(ground: Ground, oid: int) -> list[str]:
    """Return the tenants that policies of a table name."""
    policies = ground.relations[oid].policies
    predicates = {each for one in policies for each in (one.using, one.with_check) if each}
    return sorted({one.lower() for each in predicates for one in _UUID.findall(each)})


def targets(ground: Ground, seeder: Seeder, tenants: Sequence[str]) -> list[Target]:
    """Return what is attacked: tables with tenants' rows, and views of them, by name."""
    found: list[Target] = []
    for relation in sorted(ground.relations.values(), key=lambda one: one.label):
        if relation.oid in ground.owned:
            below = {relation.oid}
        elif relation.kind in "vm":
            below = ground.below(ground.subject.snapshot.key(relation))
        else:
            below = set[int]()
        if below:
            found.append(_target(ground, seeder, tenants, relation, sorted(below)))
    return found


def _target(
    ground: Ground, seeder: Seeder, tenants: Sequence[str], relation: Relation, below: list[int]
) -> Target:
    shape = ground.shapes[relation.oid]
    columns = [ground.owned[oid] for oid in below]
    named = [one for oid in below for one in named_tenants(ground, oid) if seeder.rows(oid, one)]
    column = next((one for one in columns if one is not None and one in shape.slots), None)
    reasons = {
        tenant: f"{ground.relations[oid].label}: {seeder.reasons[oid, tenant]}"
        for oid in below
        for tenant in tenants
        if (oid, tenant) in seeder.reasons
    }
    return Target(
        relation=relation,
        shape=shape,
        column=column,
        rows={
            tenant: [row for oid in below for row in seeder.rows(oid, tenant)]
            for tenant in (*tenants, *named)
        },
        tables=below,
        reasons=reasons,
        named=tuple(named),
        settings=_settings(ground, below),
    )


def _settings(ground: Ground, oids: Collection[int]) -> Mapping[str, Sequence[str]]:
    """Return other settings that policies ask for, with what they may be compared with."""
    found: dict[str, tuple[str, ...]] = {}
    policies = [policy for oid in oids for policy in ground.relations[oid].policies]
    asking = [one for policy in policies for one in (policy.using, policy.with_check)]
    functions = ground.subject.snapshot.policy_functions
    # Also in the functions that they call.
    asking += [row.body for row in functions if row.polrelid in oids]
    for predicate in filter(None, asking):
        names = {one.replace("''", "'") for one in _ASKED.findall(predicate)}
        literals = [one.replace("''", "'") for one in _LITERAL.findall(predicate)]
        values = tuple(dict.fromkeys([*_YES, *(one for one in literals if one not in names)]))
        for name in names:
            if name.lower() != ground.subject.setting.lower():
                found[name] = tuple(dict.fromkeys([*found.get(name, ()), *values]))
    control_oid = next((o for o in oids if ground.relations[o].schema == control.SCHEMA), None)
    return found if control_oid is None else control.SETTINGS
