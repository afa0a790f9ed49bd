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
        AppConfigError: one is a foreign table, which no policy can protect, or shared though its
            table is not, or the other way round.
    """
    default = connection.dialect.default_schema_name
    children: defaultdict[RelationName, list[tuple[RelationName, bool]]] = defaultdict(list)
    for parent_schema, parent, schema, name, is_foreign in connection.execute(_CHILDREN):
        child = shorten_name((schema, name), default)
        children[shorten_name((parent_schema, parent), default)].append((child, is_foreign))
    declared = {shorten_name(plan.place(table), default): table for table in plan.tables}
    for key, table in declared.items():
        todo = list(children[key])
        while todo:
            child, is_foreign = todo.pop(0)
            if is_foreign and plan.is_protected(table):
                raise AppConfigError(
                    f"{child!r} (schema, name), a partition of {table.fullname!r}, is a foreign "
                    "table, which row-level security cannot protect; detach it"
                )
            if child in declared:
                _refuse_mixture(plan, table, declared[child])
                continue
            todo += children[child]
            if plan.is_protected(table):
                yield table, plan.partition(table, child)


def _refuse_mixture(plan: Plan, parent: Table, child: Table) -> None:
    """Whoever reads the parent reads the child's rows, and only the parent's policies hold."""
    if plan.is_protected(parent) != plan.is_protected(child):
        raise AppConfigError(
            f"{child.fullname!r} is a partition, or child by inheritance, of {parent.fullname!r}, "
            "but only one of them is a shared_table; declare both to hold tenants' rows"
        )
