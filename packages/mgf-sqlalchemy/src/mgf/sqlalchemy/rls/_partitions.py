"""The partitions, and other children by inheritance, of the tables that are declared."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from sqlalchemy import text

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls._schemas import shorten_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Table

    from mgf.sqlalchemy.rls._names import RelationName
    from mgf.sqlalchemy.rls._plan import Plan
    from mgf.sqlalchemy.rls._state import TableProtection

_CHILDREN = text(
    """
    SELECT pn.nspname, p.relname, cn.nspname, c.relname, c.relkind = 'f'
    FROM pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid AND c.relkind IN ('r', 'p', 'f')
    JOIN pg_namespace AS cn ON cn.oid = c.relnamespace
    JOIN pg_class AS p ON p.oid = i.inhparent
    JOIN pg_namespace AS pn ON pn.oid = p.relnamespace
    ORDER BY cn.nspname, c.relname
    """
)


def partitions(connection: Connection, plan: Plan) -> Iterator[tuple[Table, TableProtection]]:
    """Yield each partition that is there, of protected tables: the table, and its protection.

    Raises:
        AppConfigError: one is a foreign table, which no policy can protect.
    """
    default = connection.dialect.default_schema_name
    children: defaultdict[RelationName, list[tuple[RelationName, bool]]] = defaultdict(list)
    for parent_schema, parent, schema, name, is_foreign in connection.execute(_CHILDREN):
        child = shorten_name((schema, name), default)
        children[shorten_name((parent_schema, parent), default)].append((child, is_foreign))
    declared = {shorten_name(plan.place(table), default) for table in plan.tables}
    for table in plan.tables:
        if not plan.is_protected(table):
            continue
        todo = list(children[shorten_name(plan.place(table), default)])
        while todo:
            child, is_foreign = todo.pop(0)
            if is_foreign:
                raise AppConfigError(
                    f"{child!r} (schema, name), a partition of {table.fullname!r}, is a foreign "
                    "table, which row-level security cannot protect; detach it"
                )
            todo += children[child]
            if child not in declared:
                yield table, plan.partition(table, child)
