"""Keys, which PostgreSQL checks without row-level security."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from mgf.sqlalchemy.audit._checks.written import written
from mgf.sqlalchemy.audit._finding import Finding
from mgf.sqlalchemy.audit._sql import identifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sqlalchemy import Row

    from mgf.sqlalchemy.audit._checks.written import Place
    from mgf.sqlalchemy.audit._snapshot import Column, Relation, Subject

_GENERATES = re.compile(r"\bnextval\(|\w*uuid\w*\(", re.IGNORECASE)
# Before the first column, in the definition of a constraint or an index.
_OPENING = re.compile(r"^(?:PRIMARY KEY|UNIQUE(?: NULLS NOT DISTINCT)?) \(|\bUSING \w+ \(")
_GIST = "CREATE EXTENSION IF NOT EXISTS btree_gist;\n"
_CASCADES = {"c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}


def check_unique_keys(subject: Subject) -> Iterator[Finding]:
    """Yield unique keys that tell a tenant which values others have."""
    referring = {
        (row.conrelid, number) for row in subject.snapshot.foreign_keys for number in row.conkey
    }
    carrying = _carrying(subject)
    for row in subject.snapshot.unique_keys:
        if row.indrelid not in subject.tenants:
            continue
        tenant = subject.tenants[row.indrelid]
        relation = subject.snapshot.relations[row.indrelid]
        numbers = row.columns[: row.count]
        columns = {one: relation.columns[one] for one in numbers if one in relation.columns}
        equal = [columns[one].name for one in row.equal if one in columns]
        if tenant is not None and tenant in equal:
            continue
        keys = carrying[relation.oid] if tenant is None else ()
        if any(key <= set(row.equal) for key in keys):
            continue
        is_alone = len(numbers) == len(columns) == 1
        refers = any((relation.oid, one) in referring for one in numbers)
        if (
            is_alone
            and not refers
            and _is_generated(columns[numbers[0]], is_primary=row.indisprimary)
        ):
            continue
        yield Finding(
            "unique-without-tenant",
            "warning",
            relation.label,
            (
                f"{row.relname!r} excludes rows by those of all tenants: a refused INSERT tells "
                "that another tenant has such a row, and keeps it from having its own"
                if row.is_exclusion
                else f"{row.relname!r} is unique over all tenants: a refused INSERT tells that "
                "another tenant has the value, and keeps it from using its own"
            ),
            _unique_remedy(relation, row, tenant, columns.values()),
        )


def _carrying(subject: Subject) -> dict[int, list[set[int]]]:
    """Return the columns of child tables that refer to a tenant's row, and so say whose it is."""
    found: defaultdict[int, list[set[int]]] = defaultdict(list)
    for row in subject.snapshot.foreign_keys:
        if row.confrelid in subject.tenants and row.confrelid != row.conrelid:
            found[row.conrelid].append(set(row.conkey))
    return found


def _is_generated(column: Column, *, is_primary: bool) -> bool:
    if column.identity or _GENERATES.search(column.default or ""):
        return True
    return is_primary and column.type == "uuid"


def _unique_remedy(
    relation: Relation, row: Row[Any], tenant: str | None, columns: Iterable[Column]
) -> str:
    if tenant is None:
        return "-- make it unique among the rows of one parent: add the columns that refer to it"
    if row.conname is None:
        drop = f"DROP INDEX {identifier(relation.schema)}.{identifier(row.relname)};"
    else:
        drop = f"ALTER TABLE {relation.sql} DROP CONSTRAINT {identifier(row.conname)};"
    if tenant in (one.name for one in columns):
        return f"{drop}\n-- and add it again ... with {identifier(tenant)} WITH ="
    first = identifier(tenant) + (" WITH =" if row.is_exclusion else "")
    definition = _OPENING.sub(lambda found: f"{found[0]}{first}, ", row.definition, count=1)
    more = _GIST if row.is_exclusion and "USING gist" in definition else ""
    if row.conname is not None:
        definition = f"ALTER TABLE {relation.sql} ADD {definition}"
    return f"{drop}\n{more}{definition};"


def check_foreign_keys(subject: Subject) -> Iterator[Finding]:
    """Yield foreign keys that lead to other tenants' rows."""
    relations, places = subject.snapshot.relations, written(subject)
    for row in subject.snapshot.foreign_keys:
        if row.conrelid in subject.tenants and row.confrelid not in subject.tenants:
            yield from _from_shared(subject, row, places)
        if row.conrelid not in subject.tenants or row.confrelid not in subject.tenants:
            continue
        own, other = subject.tenants[row.conrelid], subject.tenants[row.confrelid]
        child, parent = relations[row.conrelid], relations[row.confrelid]
        pairs = [
            (child.columns[here].name, parent.columns[there].name)
            for here, there in zip(row.conkey, row.confkey, strict=True)
        ]
        if own is None or other is None:
            if _is_looked_up(child, [here for here, _ in pairs]):
                continue
            remedy = (
                "-- let the policies look the tenant up by this key, too: child_table(via=...) "
                "with its column beside the others"
                if own is None
                else f"-- give {parent.label} a tenant column, and let the key refer to it, too"
            )
        elif (own, other) in pairs:
            continue
        else:
            remedy = _foreign_remedy(child, parent, row, own, other, pairs)
        yield Finding(
            "fk-without-tenant",
            "error",
            child.label,
            f"foreign key {row.conname!r} to {parent.label} leaves the tenant out: a row can "
            "refer to another tenant's, and trying tells which ones exist",
            remedy,
        )
        actions = (("deletes", row.confdeltype), ("updates", row.confupdtype))
        done = [f"{verb} ({_CASCADES[one]})" for verb, one in actions if one in _CASCADES]
        if done:
            yield Finding(
                "fk-cascade",
                "critical",
                child.label,
                f"foreign key {row.conname!r} leaves the tenant out and cascades: a tenant that "
                f"{' or '.join(done)} its row in {parent.label} changes other tenants' rows",
                remedy,
            )


def _is_looked_up(child: Relation, columns: Iterable[str]) -> bool:
    """Say whether a policy of a table names a key's columns: no tenant column can be in it."""
    said = [one.with_check or one.using or "" for one in child.policies]
    return any(
        all(re.search(rf"(?<!\w){re.escape(identifier(one))}(?!\w)", text) for one in columns)
        for text in said
    )


def _from_shared(
    subject: Subject, row: Row[Any], places: Mapping[Place, Relation]
) -> Iterator[Finding]:
    """Yield a key to a shared table by which a tenant that writes there changes others' rows."""
    actions = (("DELETE", row.confdeltype), ("UPDATE", row.confupdtype))
    for verb, action in actions:
        start = places.get((row.confrelid, verb)) if action in _CASCADES else None
        if start is None:
            continue
        child = subject.snapshot.relations[row.conrelid]
        role = identifier(subject.snapshot.role.rolname)
        yield Finding(
            "fk-cascade",
            "critical",
            child.label,
            f"foreign key {row.conname!r} cascades from {start.label}, which tenants share, and "
            f"the role has {verb} there: one row of it changes every tenant's rows",
            f"REVOKE {verb} ON {start.sql} FROM {role}, PUBLIC;",
        )


def _foreign_remedy(
    child: Relation,
    parent: Relation,
    row: Row[Any],
    own: str,
    other: str,
    pairs: Iterable[tuple[str, str]],
) -> str:
    here, there = zip((own, other), *pairs, strict=True)
    return (
        f"ALTER TABLE {parent.sql} ADD UNIQUE ({', '.join(map(identifier, there))});\n"
        f"ALTER TABLE {child.sql} DROP CONSTRAINT {row.sql},\n"
        f"    ADD FOREIGN KEY ({', '.join(map(identifier, here))}) "
        f"REFERENCES {parent.sql} ({', '.join(map(identifier, there))});"
    )
