"""Keys that carry the tenant, and those that lead from a child table to its parents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ForeignKeyConstraint, UniqueConstraint

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls._declaration import (
    ChildTable,
    SharedTable,
    declaration_of,
    find_column,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Table


def tenant_unique(*columns: str, column: str = "tenant_id", **options: Any) -> UniqueConstraint:
    """Make a unique key within each tenant: UNIQUE (tenant_id, columns).

    A unique key without the tenant tells every tenant which values others have. With the primary
    key's column it is what `tenant_foreign_key` refers to. It also serves as the index that the
    tenant column leads.

    Args:
        columns: names of the other columns.
        column: the tenant column's name.
        options: further arguments of `UniqueConstraint`, such as ``name``.
    """
    return UniqueConstraint(column, *columns, **options)


def tenant_foreign_key(
    columns: str | Iterable[str],
    refers_to: str | Iterable[str],
    *,
    column: str = "tenant_id",
    parent_column: str | None = None,
    **options: Any,
) -> ForeignKeyConstraint:
    """Make a foreign key that leads to rows of the same tenant alone.

    FOREIGN KEY (tenant_id, columns) REFERENCES parent (tenant_id, ...). PostgreSQL checks
    foreign keys without row-level security: a key without the tenant can refer to another
    tenant's row, tells whether it exists, and deletes with it where it cascades.

    The parent needs `tenant_unique` on the columns that are referred to. A relationship along
    this key should be told the column that it is to set, ``relationship(foreign_keys=[...])``,
    or it would set the tenant too.

    Args:
        columns: name or names of the columns that refer.
        refers_to: ``"parent.id"``, with the schema if there is one; as many as `columns`.
        column: this table's tenant column.
        parent_column: the parent's tenant column, where it has another name.
        options: further arguments of `ForeignKeyConstraint`, such as ``ondelete``.

    Raises:
        AppConfigError: `refers_to` names no table.
    """
    own = [columns] if isinstance(columns, str) else list(columns)
    foreign = [refers_to] if isinstance(refers_to, str) else list(refers_to)
    parent, dot, _ = foreign[0].rpartition(".")
    if not dot:
        raise AppConfigError(
            f"tenant_foreign_key() refers to {foreign[0]!r}; name the table too, as in 'parent.id'"
        )
    tenant = f"{parent}.{parent_column or column}"
    return ForeignKeyConstraint([column, *own], [tenant, *foreign], **options)


def keys_to_parents(table: Table, declaration: ChildTable) -> list[ForeignKeyConstraint]:
    """Return the foreign keys that lead from a child table to its protected parents.

    Raises:
        AppConfigError: there is none, more than one without a word which, or one whose columns
            may be NULL.
    """
    keys = sorted(
        (key for key in table.foreign_key_constraints if _leads_to_protection(key, table)),
        key=lambda key: tuple(key.column_keys),
    )
    if declaration.via:
        keys = _pick(table, keys, declaration.via)
    if not keys:
        raise AppConfigError(
            f"child_table {table.fullname!r} has no foreign key to a protected table; give it a "
            "tenant column of its own, or declare its parent to be a tenant_table"
        )
    if len(keys) > 1 and not declaration.via:
        raise AppConfigError(
            f"child_table {table.fullname!r} has several foreign keys to protected tables, by "
            f"{', '.join(repr(key.column_keys) for key in keys)}; name a column of each that "
            "says whose the rows are: child_table(via=...)"
        )
    for key in keys:
        for column in key.columns:
            if column.nullable:
                raise AppConfigError(
                    f"{table.fullname}.{column.name} leads to the tenant of a child_table's rows "
                    "but may be NULL, and nobody could read such a row; make it nullable=False"
                )
    return keys


def _leads_to_protection(key: ForeignKeyConstraint, table: Table) -> bool:
    parent = key.referred_table
    return parent is not table and not isinstance(declaration_of(parent), SharedTable | None)


def _pick(
    table: Table, keys: list[ForeignKeyConstraint], via: tuple[str, ...]
) -> list[ForeignKeyConstraint]:
    picked: list[ForeignKeyConstraint] = []
    for name in via:
        column = find_column(table, name)
        key = next((one for one in keys if column is not None and column in set(one.columns)), None)
        if key is None:
            raise AppConfigError(
                f"child_table {table.fullname!r} is reached via {name!r}, which is no column of a "
                "foreign key from it to a protected table; name one"
            )
        if key not in picked:
            picked.append(key)
    return picked
