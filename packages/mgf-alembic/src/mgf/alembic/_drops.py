"""Tables that leave the models are dropped in the order of their foreign keys."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from alembic.operations import ops
from sqlalchemy import ForeignKeyConstraint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mgf.alembic._dependencies import TableKey


def drop_last(operations: Sequence[ops.MigrateOperation]) -> list[ops.MigrateOperation]:
    """Return operations with the tables that are dropped at the end, each before what it refers to.

    Alembic drops tables in any order, and before it drops the keys of other tables that refer to
    them. Tables that refer to one another in a circle it leaves to who writes migrations.
    """
    dropped = {
        (one.schema, one.table_name): one for one in operations if isinstance(one, ops.DropTableOp)
    }
    sorter: TopologicalSorter[TableKey] = TopologicalSorter()
    for key in sorted(dropped, key=repr):
        sorter.add(key)
        for referred in _referred(dropped[key]):
            if referred in dropped and referred != key:
                sorter.add(referred, key)
    try:
        order: Iterable[TableKey] = [*sorter.static_order()]
    except CycleError:
        order = dropped
    others = [one for one in operations if not isinstance(one, ops.DropTableOp)]
    return [*others, *(dropped[key] for key in order)]


def _referred(operation: ops.DropTableOp) -> Iterator[TableKey]:
    for one in operation.to_table().constraints:
        if isinstance(one, ForeignKeyConstraint):
            yield one.referred_table.schema, one.referred_table.name
