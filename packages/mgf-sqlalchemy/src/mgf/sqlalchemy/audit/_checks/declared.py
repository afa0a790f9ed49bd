"""Differences between what the metadata declares and what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgf.sqlalchemy.audit._finding import Finding
from mgf.sqlalchemy.audit._sql import identifier
from mgf.sqlalchemy.rls import (
    AlterRowSecurity,
    CreatePolicy,
    DropPolicy,
    GrantPrivileges,
    Policy,
    Protection,
    RevokePrivileges,
    compare_protection,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgf.sqlalchemy.audit._snapshot import Subject
    from mgf.sqlalchemy.rls import Difference


def check_declared(subject: Subject, declared: Protection) -> Iterator[Finding]:
    """Yield what is not as declared; what other checks say in more detail is left to them."""
    for one in compare_protection(declared, subject.snapshot.protection):
        yield from _finding(subject, one)
    for table in declared.tables:
        relation = subject.snapshot.by_key.get(table.key)
        for name in table.indexed if relation is not None else ():
            if relation is not None and relation.column(name) is None:
                yield Finding(
                    "tenant-column-missing",
                    "error",
                    relation.label,
                    f"has no column {name!r}, which the metadata declares: no policy can tell "
                    "whose rows it has",
                    f"ALTER TABLE {relation.sql} ADD COLUMN {identifier(name)} uuid NOT NULL;",
                )


def _finding(subject: Subject, one: Difference) -> Iterator[Finding]:
    label = _label(subject, one)
    if one.aspect == "table":
        yield Finding(
            "table-missing",
            "error",
            label,
            "is declared and is not there: migrations have not run, or this is another database",
            "-- run the migrations",
        )
    elif one.aspect == "policy":
        yield _policy(one, label)
    elif one.aspect == "grant":
        yield _grant(one, label)
    elif one.aspect == "view" and one.there is None:
        yield Finding(
            "view-missing",
            "warning",
            label,
            "is declared and is not there: migrations have not run, or this is another database",
            "-- run the migrations",
        )
    elif one.aspect == "row security" and not one.expected[0] and one.table is not None:
        yield Finding(
            "table-not-shared",
            "warning",
            label,
            "is declared to be the same for every tenant, but has row-level security",
            f"{AlterRowSecurity(one.table[1], schema=one.table[0], enabled=False, forced=False)};",
        )


def _policy(one: Difference, label: str) -> Finding:
    if one.expected is None:
        policy: Policy = one.there
        return Finding(
            "policy-undeclared",
            "error",
            label,
            f"policy {policy.name!r} is not the metadata's: nobody reviews what it lets through",
            f"{DropPolicy(policy)};",
        )
    wanted: Policy = one.expected
    create = f"{CreatePolicy(wanted)};"
    if one.there is None:
        return Finding(
            "policy-no-floor" if wanted.restrictive else "policy-missing",
            "error",
            label,
            f"policy {wanted.name!r} is declared and is not there: "
            + (
                "the next permissive policy opens the table"
                if wanted.restrictive
                else "rows are not held as the metadata says"
            ),
            create,
        )
    return Finding(
        "policy-differs",
        "error",
        label,
        f"policy {wanted.name!r} is not as declared: it lets through other rows, for other roles "
        "or other commands, than the metadata says",
        f"{DropPolicy(wanted)};\n{create}",
    )


def _grant(one: Difference, label: str) -> Finding:
    if one.expected is not None:
        return Finding(
            "grant-missing",
            "warning",
            label,
            f"{one.expected.to} lacks {', '.join(one.expected.privileges)}, which is declared: "
            "the application fails there",
            f"{GrantPrivileges(one.expected)};",
        )
    return Finding(
        "grant-undeclared",
        "warning",
        label,
        f"{one.there.to} has {', '.join(one.there.privileges)}"
        f"{' WITH GRANT OPTION' if one.there.grantable else ''}, which is not declared: a bug can "
        "do more than it should",
        f"{RevokePrivileges(one.there)};",
    )


def _label(subject: Subject, one: Difference) -> str:
    if one.table is not None:
        return subject.snapshot.label(one.table)
    grant = one.expected or one.there
    return str(grant.on)
