"""Partitioned tables that leave the models: they are dropped, and their partitions with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.operations import ops
from sqlalchemy import text

from mgf.alembic._dependencies import TableKey, table_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

_PARTITIONED = text(
    """
    SELECT n.nspname, c.relname, pg_get_partkeydef(c.oid)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'p'
    """
)
_PARTITIONS = text(
    """
    SELECT n.nspname, c.relname, pn.nspname, p.relname
    FROM pg_class AS p
    JOIN pg_namespace AS pn ON pn.oid = p.relnamespace
    CROSS JOIN pg_partition_tree(p.oid) AS tree
    JOIN pg_class AS c ON c.oid = tree.relid AND c.oid <> p.oid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE p.relkind = 'p'
    """
)


def falling_partitions(
    connection: Connection, operations: Sequence[ops.MigrateOperation]
) -> set[TableKey]:
    """Return the partitions that fall with the tables which are dropped.

    The operations that drop those tables are told how they are partitioned, which Alembic does not
    see, so that a downgrade makes them so. It makes no partition: no model knows them.
    """
    default = connection.dialect.default_schema_name
    dropped = {
        table_key(one.schema, one.table_name, default): one
        for one in operations
        if isinstance(one, ops.DropTableOp)
    }
    if not dropped:
        return set()
    for schema, name, by in connection.execute(_PARTITIONED):
        if (operation := dropped.get(table_key(schema, name, default))) is not None:
            operation.table_kw["postgresql_partition_by"] = by
    return {
        table_key(schema, name, default)
        for schema, name, parent_schema, parent in connection.execute(_PARTITIONS)
        if table_key(parent_schema, parent, default) in dropped
    }
