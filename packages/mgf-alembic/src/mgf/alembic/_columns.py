"""Tenant columns that become a uuid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.autogenerate import renderers
from alembic.operations import ops
from sqlalchemy import String, Uuid

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.autogenerate.api import AutogenContext


class ConvertColumnOp(ops.AlterColumnOp):
    """Alter a column whose values have to be converted: Alembic renders no ``USING``."""


def convert_strings(operations: ops.ModifyTableOps, columns: tuple[str, ...]) -> None:
    """Convert the columns of these names that are strings and are to be uuids."""
    operations.ops[:] = [
        _convert(one)
        if isinstance(one, ops.AlterColumnOp)
        and one.column_name in columns
        and isinstance(one.modify_type, Uuid)
        and isinstance(one.existing_type, String)
        else one
        for one in operations.ops
    ]


def _convert(one: ops.AlterColumnOp) -> ConvertColumnOp:
    # All that the operation was made with: its constructor takes what its attributes are called.
    names = (
        *("existing_type", "existing_server_default", "existing_nullable", "existing_comment"),
        *("modify_type", "modify_server_default", "modify_nullable", "modify_comment"),
    )
    state: dict[str, Any] = {name: getattr(one, name) for name in names}
    return ConvertColumnOp(one.table_name, one.column_name, schema=one.schema, **state)


@renderers.dispatch_for(ConvertColumnOp)
def _render(context: AutogenContext, operation: ConvertColumnOp) -> str:
    dialect = context.migration_context.dialect
    kind = operation.modify_type
    render: Callable[..., str] = renderers.dispatch(ops.AlterColumnOp)
    call = render(context, operation)
    if kind is None:
        return call
    column = dialect.identifier_preparer.quote(operation.column_name)
    using = f"{column}::{kind.compile(dialect=dialect)}"
    return f"{call.removesuffix(')')},\n           postgresql_using={using!r})"
