"""Whose rows each relation has: by the metadata, or else by its columns and keys."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from mgf.sqlalchemy.audit._canonical import canonical_predicates, may_deparse
from mgf.sqlalchemy.audit._snapshot import Relation, Snapshot, Subject
from mgf.sqlalchemy.audit._spread import spread
from mgf.sqlalchemy.rls import Protection, declared_protection, expected_protection
from mgf.sqlalchemy.rls._schemas import shorten_table, shorten_view

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection, MetaData

    from mgf.sqlalchemy.rls import Policy

_TABLES = frozenset("rpf")


class Expectation(NamedTuple):
    """What to hold the database to."""

    subject: Subject
    declared: Protection | None


def expect(
    connection: Connection,
    snapshot: Snapshot,
    *,
    metadata: MetaData | None,
    tenant_column: str,
    setting: str,
) -> Expectation:
    """Return whose rows each relation has, and what its predicates may be."""
    recorded = not may_deparse(connection)
    declared = None
    if metadata is not None:
        declared = (
            _as_written(snapshot, metadata)
            if recorded
            else expected_protection(connection, metadata)
        )
    tenants = _tenants(snapshot, declared, tenant_column)
    subject = Subject(
        snapshot=snapshot,
        setting=setting,
        tenant_column=tenant_column,
        tenants={relation.oid: column for relation, column in tenants.items()},
        canonical=canonical_predicates(connection, tenants, setting, recorded=recorded),
        declared=None if declared is None else frozenset(one.key for one in declared.tables),
        recorded=recorded,
        expected={
            snapshot.by_key[one.key].oid: one.policies
            for one in (() if declared is None else declared.tables)
            if one.key in snapshot.by_key
        },
    )
    return Expectation(subject, declared)


def _as_written(snapshot: Snapshot, metadata: MetaData) -> Protection:
    """Return what is declared, with the predicates that are there under the same names.

    Without a temporary table nobody can say how the server would print those of the metadata.
    """
    default = snapshot.default_schema
    written = declared_protection(metadata)
    tables = [shorten_table(one, default) for one in written.tables]
    there = {
        (one.key, policy.name): policy
        for one in snapshot.protection.tables
        for policy in one.policies
    }

    def as_there(policy: Policy) -> Policy:
        found = there.get(((policy.schema, policy.table), policy.name))
        if found is None or found.for_ != policy.for_:
            return policy
        return replace(policy, using=found.using, with_check=found.with_check)

    return Protection(
        tables=tuple(
            replace(one, policies=tuple(as_there(policy) for policy in one.policies))
            for one in tables
        ),
        views=tuple(shorten_view(one, default) for one in written.views),
        grants=written.grants,
    )


def _tenants(
    snapshot: Snapshot, declared: Protection | None, tenant_column: str
) -> dict[Relation, str | None]:
    tables = [one for one in snapshot.relations.values() if one.kind in _TABLES]
    found: dict[int, str | None] = {}
    known = {} if declared is None else {one.key: one for one in declared.tables}
    for relation in tables:
        protection = known.get(snapshot.key(relation))
        if protection is not None:
            if protection.enabled:
                found[relation.oid] = next(iter(protection.indexed), None)
        elif relation.column(tenant_column) is not None:
            found[relation.oid] = tenant_column
        elif relation.enabled:
            found[relation.oid] = None
    shared = {snapshot.by_key[key].oid for key in known.keys() & snapshot.by_key.keys()}
    for oid, column in _own_keys(snapshot, found).items():
        if oid not in shared and found.get(oid) is None:
            found[oid] = column
    _add_children(tables, found)
    _add_parents(snapshot, found)
    return {one: found[one.oid] for one in tables if one.oid in found}


def _own_keys(snapshot: Snapshot, found: Mapping[int, str | None]) -> dict[int, str]:
    """Return the tables whose own key is the tenant: tenant columns refer to it alone."""
    keys: dict[int, str] = {}
    for row in snapshot.foreign_keys:
        column = found.get(row.conrelid)
        if column is None or len(row.conkey) != 1:
            continue
        if snapshot.relations[row.conrelid].columns[row.conkey[0]].name == column:
            parent = snapshot.relations.get(row.confrelid)
            if parent is not None:
                keys[parent.oid] = parent.columns[row.confkey[0]].name
    return keys


def _add_children(tables: list[Relation], found: dict[int, str | None]) -> None:
    """Count partitions and children as what their parents are."""
    below: defaultdict[int, list[int]] = defaultdict(list)
    for relation in tables:
        for parent in relation.parents:
            below[parent].append(relation.oid)
    spread(found, below)


def _add_parents(snapshot: Snapshot, found: dict[int, str | None]) -> None:
    """Count what tenants' tables inherit from: read by it, their rows meet its policies alone."""
    todo = list(found)
    while todo:
        oid = todo.pop()
        for parent in snapshot.relations[oid].parents:
            relation = snapshot.relations.get(parent)
            if relation is not None and parent not in found:
                name = found[oid]
                found[parent] = name if name and relation.column(name) else None
                todo.append(parent)
