"""Tables, partitions and foreign tables that have tenants' rows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mgf.sqlalchemy.audit._catalog import TENANT_LIKE
from mgf.sqlalchemy.audit._finding import Finding
from mgf.sqlalchemy.audit._sql import identifier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Row

    from mgf.sqlalchemy.audit._finding import Severity
    from mgf.sqlalchemy.audit._snapshot import Relation, Subject

# Which a service reads that waits for its migrations.
_VERSION_TABLE = "alembic_version"
_LOOKS_LIKE_TENANT = re.compile(TENANT_LIKE, re.IGNORECASE)
# Something is called: the default is no constant.
_CALLS = re.compile(r"\w\(|CURRENT_|SESSION_USER|\bNULL\b", re.IGNORECASE)


def check_presence(subject: Subject) -> Iterator[Finding]:
    """Yield that nothing can be checked: of a wrong database nothing bad would be said."""
    if not any(subject.tenants.values()):
        yield Finding(
            "nothing-protected",
            "error",
            subject.snapshot.database,
            "no table has the tenant column: this is another database, "
            "its migrations have not run, or the column has another name",
            "-- run the migrations, or name the tenant column",
        )


def check_row_security(subject: Subject) -> Iterator[Finding]:
    """Yield tables whose policies do not hold, or not their owner."""
    for relation in subject.relations:
        enable = (
            f"ALTER TABLE {relation.sql} ENABLE ROW LEVEL SECURITY;\n"
            f"ALTER TABLE {relation.sql} FORCE ROW LEVEL SECURITY;"
        )
        if relation.kind == "f":
            # Nobody can do more for it than keep it out of reach.
            if relation.within_reach:
                yield _foreign(subject, relation)
        elif not relation.enabled:
            yield _not_enabled(subject, relation, enable)
        elif not relation.forced:
            yield Finding(
                "rls-not-forced",
                "error",
                relation.label,
                "policies do not hold its owner: migrations, views and functions of "
                f"{relation.owner!r} see every tenant's rows",
                f"ALTER TABLE {relation.sql} FORCE ROW LEVEL SECURITY;",
            )


def _foreign(subject: Subject, relation: Relation) -> Finding:
    is_known = relation.oid in subject.tenants
    return Finding(
        "foreign-table",
        "error" if is_known else "warning",
        relation.label,
        "is a foreign table, which cannot have policies: whoever may read it reads every "
        + ("tenant's rows" if is_known else "row, and whose they are nothing here tells"),
        f"REVOKE ALL ON {relation.sql} FROM PUBLIC, {identifier(subject.snapshot.role.rolname)};",
    )


def _not_enabled(subject: Subject, relation: Relation, remedy: str) -> Finding:
    severity: Severity = "critical" if relation.within_reach else "warning"
    shows = "shows" if relation.within_reach else "would show, with the next GRANT,"
    if subject.is_partition(relation):
        return Finding(
            "partition-rls-off",
            severity,
            relation.label,
            "is a partition or child whose own row-level security is off: named directly, it "
            f"{shows} every tenant's rows",
            remedy,
        )
    if subject.is_inherited(relation):
        return Finding(
            "parent-rls-off",
            severity,
            relation.label,
            "tables with tenants' rows inherit from it, and its own row-level security is off: it "
            f"{shows} their rows of every tenant, whatever their policies say",
            f"ALTER TABLE ... NO INHERIT {relation.sql};\n-- or a policy here, and\n{remedy}",
        )
    if subject.tenants[relation.oid] is None and subject.declared is None:
        return Finding(
            "child-rls-off",
            "error",
            relation.label,
            "refers to tenants' rows, but has no tenant column and no row-level security: every "
            "tenant reads and writes all of it",
            f"-- add a tenant column, or declare whose rows it has\n{remedy}",
        )
    if relation.policies:
        return Finding(
            "rls-off-with-policies",
            "critical",
            relation.label,
            "has policies that do nothing, since row-level security is off: every tenant's rows "
            "are open",
            remedy,
        )
    return Finding(
        "rls-off",
        "critical",
        relation.label,
        "has no row-level security: one forgotten filter reads or writes every tenant's rows",
        remedy,
    )


def check_tenant_columns(subject: Subject) -> Iterator[Finding]:
    """Yield tenant columns that may be empty, filled wrongly, or slow to look up."""
    for relation in subject.relations:
        name = subject.tenants[relation.oid]
        column = None if name is None else relation.column(name)
        if column is None or relation.kind == "f":
            continue
        alter = f"ALTER TABLE {relation.sql} ALTER COLUMN {identifier(column.name)}"
        if not column.not_null:
            yield Finding(
                "tenant-column-nullable",
                "warning",
                relation.label,
                f"{column.name} may be NULL: such rows belong to nobody, and to everybody with a "
                "predicate that compares NULLs",
                f"{alter} SET NOT NULL;",
            )
        if column.default is not None and not _CALLS.search(column.default):
            yield Finding(
                "tenant-column-constant",
                "warning",
                relation.label,
                f"{column.name} is {column.default} by default: rows whose tenant was forgotten "
                "go to that one",
                f"{alter} DROP DEFAULT;",
            )
        if column.name not in relation.indexed and not subject.is_partition(relation):
            yield Finding(
                "tenant-column-no-index",
                "warning",
                relation.label,
                f"no index begins with {column.name}: each query reads the rows of all tenants, "
                "and its duration tells how many there are",
                f"CREATE INDEX ON {relation.sql} ({identifier(column.name)});",
            )


def check_privileges(subject: Subject) -> Iterator[Finding]:
    """Yield privileges that policies do not restrict, and those of everybody."""
    role = subject.snapshot.role
    for relation in subject.relations:
        for privilege in sorted(relation.within_reach & _BEYOND.keys()):
            is_own = privilege in relation.privileges
            if role.rolsuper or relation.owner in subject.snapshot.reachable:
                continue
            yield Finding(
                f"grant-{privilege.lower()}",
                "critical" if privilege == "TRUNCATE" else "warning",
                relation.label,
                (
                    f"{role.rolname!r} has {privilege}, which {_BEYOND[privilege]}"
                    if is_own
                    else f"a role that {role.rolname!r} can become has {privilege}, which "
                    + _BEYOND[privilege]
                ),
                f"REVOKE {privilege} ON {relation.sql} FROM "
                + (f"{identifier(role.rolname)}, PUBLIC;" if is_own else "...;  -- that role"),
            )
        if relation.public:
            yield Finding(
                "grant-public",
                "error",
                relation.label,
                f"every role of the server has {', '.join(sorted(relation.public))}, also those "
                "that no policy was written for",
                f"REVOKE ALL ON {relation.sql} FROM PUBLIC;",
            )
    yield from _default_privileges(subject)


_BEYOND = {
    "TRUNCATE": "policies do not restrict: one statement deletes every tenant's rows",
    "TRIGGER": "lets it run code of its own on other sessions' rows",
    "REFERENCES": "lets it ask, by foreign keys, which rows of other tenants exist",
    "MAINTAIN": "lets it lock out every tenant",
}


def _default_privileges(subject: Subject) -> Iterator[Finding]:
    reachable = subject.snapshot.reachable
    for row in subject.snapshot.default_privileges:
        if row.grantee != "PUBLIC" and row.grantee not in reachable:
            continue
        schema = f" IN SCHEMA {row.schema_sql}" if row.nspname else ""
        yield Finding(
            "default-privileges",
            "warning",
            row.nspname or row.owner,
            f"every table that {row.owner!r} creates is open to {row.grantee} at once "
            f"({', '.join(row.privileges)}), before anyone has protected it",
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {row.owner_sql}{schema} REVOKE ALL ON TABLES "
            f"FROM {row.grantee_sql};",
        )


def check_strays(subject: Subject) -> Iterator[Finding]:
    """Yield tables that nobody said anything about, and that seem to have tenants' rows."""
    snapshot = subject.snapshot
    shared = subject.declared or frozenset()
    parents: dict[int, Relation] = {
        row.conrelid: snapshot.relations[row.confrelid]
        for row in snapshot.foreign_keys
        if row.confrelid in subject.tenants
    }
    for relation in snapshot.relations.values():
        key = snapshot.key(relation)
        if relation.kind not in "rpf":
            continue
        if relation.oid in subject.tenants:
            if subject.declared is not None and key not in shared and not relation.parents:
                yield _undeclared(relation)
        elif key in shared:
            continue
        elif relation.oid in parents:
            yield _child(relation, parents[relation.oid])
        elif relation.kind == "f":
            if relation.within_reach:
                yield _foreign(subject, relation)
        elif (like := _tenant_like(relation)) is not None:
            yield like
        elif subject.declared is not None and _is_open(relation):
            yield _undeclared(relation)


def _undeclared(relation: Relation) -> Finding:
    return Finding(
        "table-undeclared",
        "warning",
        relation.label,
        (
            "has a tenant column or row-level security, but the metadata does not know it: nobody "
            "sees when its protection changes"
            if relation.enabled or not _is_open(relation)
            else "is open to the role, and the metadata does not know it: nobody has said whether "
            "its rows are tenants'"
        ),
        "-- declare it with tenant_table(), child_table() or shared_table(), or drop it",
    )


def _child(relation: Relation, parent: Relation) -> Finding:
    return Finding(
        "child-rls-off",
        "error",
        relation.label,
        f"refers to tenants' rows in {parent.label}, but has neither a tenant column nor row-level "
        "security: every tenant reads and writes all of it",
        f"-- add a tenant column and a policy on it, then\n"
        f"ALTER TABLE {relation.sql} ENABLE ROW LEVEL SECURITY;\n"
        f"ALTER TABLE {relation.sql} FORCE ROW LEVEL SECURITY;",
    )


def _is_open(relation: Relation) -> bool:
    """Say whether the role gets at a table that is no partition, and not Alembic's."""
    return bool(relation.within_reach and not relation.parents and relation.name != _VERSION_TABLE)


def _tenant_like(relation: Relation) -> Finding | None:
    for column in relation.columns.values():
        if _LOOKS_LIKE_TENANT.fullmatch(column.name):
            return Finding(
                "table-tenant-like",
                "warning",
                relation.label,
                f"has a column {column.name!r} as tenants are called, and no row-level security: "
                "its rows are open to all",
                f"ALTER TABLE {relation.sql} ENABLE ROW LEVEL SECURITY;\n"
                f"-- and a policy on {identifier(column.name)}, or declare it a shared_table()",
            )
    return None


def check_publications(subject: Subject) -> Iterator[Finding]:
    """Yield tables whose rows leave by logical replication, which knows no policy."""
    labels = {relation.label: relation for relation in subject.relations}
    for row in subject.snapshot.publications:
        relation = labels.get(f"{row.schemaname}.{row.tablename}")
        if relation is not None and not _names_tenant(subject, relation, row.filter):
            yield Finding(
                "table-published",
                "warning",
                relation.label,
                f"publication {row.pubname!r} sends every tenant's rows to all its subscribers"
                + (": its filter does not ask whose they are" if row.filter else ""),
                _unpublish(row),
            )


def _names_tenant(subject: Subject, relation: Relation, predicate: str | None) -> bool:
    name = subject.tenants[relation.oid]
    word = "" if name is None else rf'(?<![\w"]){re.escape(identifier(name))}(?![\w"])'
    return bool(word and predicate and re.search(word, predicate))


def _unpublish(row: Row[Any]) -> str:
    if row.named is not None:
        return f"ALTER PUBLICATION {row.sql} DROP TABLE {row.named};"
    if row.puballtables:
        return f"DROP PUBLICATION {row.sql};  -- and make one of the tables that may leave"
    return f"ALTER PUBLICATION {row.sql} DROP TABLES IN SCHEMA {row.schema_sql};"
