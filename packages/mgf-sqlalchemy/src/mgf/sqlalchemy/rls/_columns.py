"""What the protection of a table needs to know of its columns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Index, MetaData, Sequence, Table, UniqueConstraint
from sqlalchemy.schema import CreateColumn, conv
from sqlalchemy.sql.functions import next_value

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls._declaration import find_column
from mgf.sqlalchemy.rls._names import shorten_to_bytes
from mgf.sqlalchemy.rls._predicates import POSTGRESQL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgf.sqlalchemy.rls._declaration import TenantTable

_SERIAL = re.compile(r".+ (?:SMALL|BIG)?SERIAL\b")


def tenant_column(table: Table, declaration: TenantTable) -> Column[Any]:
    """Return the column that says whose a row is.

    Raises:
        AppConfigError: there is no such column, it is no uuid, or it may be NULL.
    """
    column = find_column(table, declaration.column)
    if column is None:
        raise AppConfigError(
            f"table {table.fullname!r} has no column {declaration.column!r} to be its tenant "
            f"column, only {', '.join(repr(one.name) for one in table.columns)}; name another "
            "one, or add TenantMixin"
        )
    kind = column.type.compile(dialect=POSTGRESQL)
    if kind != "UUID":
        raise AppConfigError(
            f"tenant column {table.fullname}.{column.name} is {kind} in PostgreSQL, but tenants "
            "are uuids; give it the type sqlalchemy.Uuid"
        )
    if column.nullable:
        raise AppConfigError(
            f"tenant column {table.fullname}.{column.name} may be NULL, and a row without a "
            "tenant belongs to nobody; make it nullable=False"
        )
    return column


def ensure_led_index(table: Table, column: Column[Any]) -> None:
    """Add an index on the column unless an index of the table begins with it."""
    if any(one is column for one in _leading_columns(table)):
        return
    convention = table.metadata.naming_convention
    if "ix" in convention or Index in convention:
        index = Index(None, column)
    else:
        # SQLAlchemy's own name for it.
        led: Column[Any] = Column(column.name, index=True)
        copy = Table(table.name, MetaData(), led)
        index = Index(next(iter(copy.indexes)).name, column)
    name = str(index.name)
    if not name.isascii():
        # SQLAlchemy cuts what is too long as well, but counts characters.
        index.name = conv(shorten_to_bytes(name))


def _leading_columns(table: Table) -> Iterator[object]:
    yield next(iter(table.primary_key.columns), None)
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield next(iter(constraint.columns), None)
    for index in table.indexes:
        options = index.dialect_options["postgresql"]
        is_whole = options["where"] is None
        if is_whole and options["using"] in (False, "btree"):
            yield next(iter(index.expressions), None)


def owns_sequence(column: Column[Any]) -> bool:
    """Say whether PostgreSQL makes a sequence for the column that roles need a privilege on.

    That is SERIAL, which SQLAlchemy makes of integer primary keys. An identity column takes its
    numbers without one.
    """
    if column is not column.table.autoincrement_column:
        return False
    return _SERIAL.match(str(CreateColumn(column).compile(dialect=POSTGRESQL))) is not None


def named_sequence(column: Column[Any]) -> Sequence | None:
    """Return the sequence that the model takes the column's numbers from, if it names one."""
    source: object = column.default
    if column.server_default is not None:
        source = getattr(column.server_default, "arg", None)
    if isinstance(source, next_value):
        source = source.sequence
    return source if isinstance(source, Sequence) and not source.optional else None
