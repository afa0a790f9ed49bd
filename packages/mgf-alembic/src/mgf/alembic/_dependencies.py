"""Which policies keep PostgreSQL from altering a column, or from dropping it or its table."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from alembic.operations import ops
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence, Set

    from sqlalchemy import Connection

    from mgf.sqlalchemy.rls import TableProtection

# Schema and name, as SQLAlchemy has them.
TableKey: TypeAlias = tuple[str | None, str]
PolicyKey: TypeAlias = tuple[TableKey, str]

_DEPENDENCIES = text(
    """
    SELECT pn.nspname, pc.relname, o.polname, tn.nspname, t.relname, a.attname
    FROM pg_policy AS o
    JOIN pg_class AS pc ON pc.oid = o.polrelid
    JOIN pg_namespace AS pn ON pn.oid = pc.relnamespace
    JOIN pg_depend AS d ON d.classid = 'pg_policy'::regclass AND d.objid = o.oid
         AND d.refclassid = 'pg_class'::regclass
    JOIN pg_class AS t ON t.oid = d.refobjid
    JOIN pg_namespace AS tn ON tn.oid = t.relnamespace
    LEFT JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
         AND d.refobjsubid > 0
    """
)


def hindering_policies(
    connection: Connection,
    operations: Sequence[ops.MigrateOperation],
    falling: Set[TableKey],
    tables: Iterable[TableProtection],
) -> set[PolicyKey]:
    """Return the policies that some of Alembic's operations cannot run with.

    Args:
        connection: to PostgreSQL.
        operations: what is to run.
        falling: tables that are dropped with others.
        tables: what is there; the partitions of a table are altered with it.
    """
    default = connection.dialect.default_schema_name
    columns = set(_altered_columns(operations, default))
    dropped = falling | {
        table_key(one.schema, one.table_name, default)
        for one in operations
        if isinstance(one, ops.DropTableOp)
    }
    if not columns and not dropped:
        return set()
    for child in _parents_first(tables):
        columns |= {(child.key, name) for parent, name in columns if parent in child.parents}
    found: set[PolicyKey] = set()
    for schema, table, policy, on_schema, on, column in connection.execute(_DEPENDENCIES):
        own, other = table_key(schema, table, default), table_key(on_schema, on, default)
        if own not in dropped and ((other, column) in columns or other in dropped):
            found.add((own, policy))
    return found


def table_key(schema: str | None, name: str, default: str | None) -> TableKey:
    """Return a table's schema and name, the default schema as None."""
    return (None if schema == default else schema), name


def _altered_columns(
    operations: Iterable[ops.MigrateOperation], default: str | None
) -> Iterator[tuple[TableKey, str]]:
    for one in operations:
        if isinstance(one, ops.ModifyTableOps):
            yield from _altered_columns(one.ops, default)
        elif isinstance(one, ops.DropColumnOp) or (
            isinstance(one, ops.AlterColumnOp) and one.modify_type is not None
        ):
            yield table_key(one.schema, one.table_name, default), one.column_name


def _parents_first(tables: Iterable[TableProtection]) -> Iterator[TableProtection]:
    todo = {one.key: one for one in tables}
    while todo:
        ready = [one for one in todo.values() if todo.keys().isdisjoint(one.parents)]
        for one in ready:
            del todo[one.key]
            yield one
