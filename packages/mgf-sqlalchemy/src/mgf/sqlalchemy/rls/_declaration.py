"""What a model says about itself: whose rows its table holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar
from uuid import UUID  # noqa: TC003 - SQLAlchemy reads it from the annotation

from sqlalchemy import Table
from sqlalchemy.orm import Mapped, mapped_column

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls._names import read_roles, relation_name, table_of
from mgf.sqlalchemy.rls._predicates import tenant_default
from mgf.sqlalchemy.rls._state import Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Column, MetaData

# Where a table, a column or a metadata keeps what it was declared to be.
INFO_KEY = "mgf.sqlalchemy.rls"

TableOrClass = TypeVar("TableOrClass", bound=Table | type[Any])


class Declare(Protocol):
    """Declares a `Table`, or a mapped class, and returns it."""

    def __call__(self, table: TableOrClass, /) -> TableOrClass:
        """Declare it."""
        ...


@dataclass(frozen=True)
class SharedRows:
    """A rule that lets roles read rows of other tenants; made by `share_rows`."""

    name: str
    table: str
    schema: str | None
    using: str
    to: tuple[str, ...] | None


Rule: TypeAlias = Policy | SharedRows


@dataclass(frozen=True)
class TenantTable:
    """Each row belongs to the tenant in this column."""

    column: str
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class SharedTable:
    """The rows are the same for everyone."""

    reason: str
    writable: bool


@dataclass(frozen=True)
class ChildTable:
    """Each row belongs to the tenant of the row that it refers to."""

    reason: str
    via: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()


Declaration: TypeAlias = TenantTable | SharedTable | ChildTable


class TenantMixin:
    """Give a declarative model its tenant column, and with it row-level security.

    ``tenant_id`` is a uuid and NOT NULL; an INSERT that names no tenant gets the one in force.
    `protect_metadata` adds an index that it leads, where the primary key or another index does
    not begin with it already. The mixin goes beside the declarative base, in either order::

        class Invoice(TenantMixin, Base): ...
    """

    tenant_id: Mapped[UUID] = mapped_column(
        server_default=tenant_default(), info={INFO_KEY: True}, sort_order=-1
    )


def tenant_table(*, column: str = "tenant_id", policies: Iterable[Rule] = ()) -> Declare:
    """Declare that each row of a table belongs to the tenant in one of its columns.

    For a table without `TenantMixin`: above a mapped class, or called with a `Table`. The
    column has to be a uuid and NOT NULL; `tenant_default` is a good server default for it::

        @tenant_table(column="owner")
        class Invoice(Base): ...

        invoice = tenant_table(column="owner")(Table("invoice", metadata, ...))

    Args:
        column: the tenant column's name.
        policies: more policies for this table, and what `share_rows` made.

    Raises:
        AppConfigError: what is declared is no table, or was declared to be something else.
    """
    return _declare(TenantTable(column, tuple(policies)))


def shared_table(*, reason: str, writable: bool = False) -> Declare:
    """Declare that the rows of a table are the same for every tenant.

    The application's role may read it, and gets no row-level security.

    Args:
        reason: why no tenant's data is in it; for those who read the model.
        writable: the role may insert, update and delete, too.

    Raises:
        AppConfigError: a blank reason; what is declared is no table, or was declared before.
    """
    return _declare(SharedTable(_check_reason("shared_table", reason), writable))


def child_table(
    *, reason: str, via: str | Iterable[str] = (), policies: Iterable[Rule] = ()
) -> Declare:
    """Declare that each row of a table belongs to the tenant of the row that it refers to.

    For a table that has no tenant column and is reached through a protected table alone. It is
    protected no less: its policies look the tenant up in the parent, which costs more than a
    column of its own.

    Args:
        reason: why it has no tenant column; for those who read the model.
        via: a column of the foreign key to the parent. Needed where several foreign keys lead
            to protected tables; with several columns every one of those parents has to be the
            tenant's own, as in the table between two others.
        policies: more policies for this table, and what `share_rows` made.

    Raises:
        AppConfigError: a blank reason; what is declared is no table, or was declared before.
    """
    columns = (via,) if isinstance(via, str) else tuple(via)
    return _declare(ChildTable(_check_reason("child_table", reason), columns, tuple(policies)))


def share_rows(
    name: str,
    table: str | Table | type[Any],
    *,
    using: str,
    to: str | Iterable[str] | None = None,
    schema: str | None = None,
) -> SharedRows:
    """Let roles read some rows of all tenants. Writing them stays the tenant's own business.

    Makes a permissive policy for SELECT, and widens the restrictive one by the same rows, for
    SELECT alone; without that it would veto them.

    Args:
        name: of the policy.
        table: the table's name, or the `Table` or mapped class itself.
        using: SQL predicate that is true for rows which everyone may read, such as
            ``"is_public"``.
        to: the role or roles that may; the application's unless given.
        schema: of the table, where it is given by its name.

    Raises:
        AppConfigError: a blank name or predicate.
    """
    schema, table_name = relation_name(table, schema)
    policy = Policy(name, table_name, schema=schema, for_="SELECT", using=using)
    roles = None if to is None else read_roles(to)
    return SharedRows(policy.name, table_name, schema, using, roles)


def declaration_of(table: Table) -> Declaration | None:
    """Return what a table was declared to be, by a decorator or by its mixin."""
    marked = [column for column in table.columns if INFO_KEY in column.info]
    declared: Declaration | None = table.info.get(INFO_KEY)
    if not marked:
        return declared
    if len(marked) > 1:
        raise AppConfigError(
            f"table {table.fullname!r} has two tenant columns, {marked[0].name!r} and "
            f"{marked[1].name!r}; keep TenantMixin's or the other one"
        )
    if declared is None:
        return TenantTable(marked[0].name)
    if isinstance(declared, TenantTable) and find_column(table, declared.column) is marked[0]:
        return declared
    raise AppConfigError(
        f"table {table.fullname!r} has TenantMixin's column {marked[0].name!r}, but is declared "
        f"to be {declared!r}; drop the one or the other"
    )


def find_column(table: Table, name: str) -> Column[Any] | None:
    """Return the column of that name or, in its model, attribute name."""
    return next((one for one in table.columns if name in (one.name, one.key)), None)


def tenant_columns(metadata: MetaData) -> Iterator[str]:
    """Yield the names of the columns that tenant tables of a metadata are declared to have."""
    for table in metadata.tables.values():
        declaration = declaration_of(table)
        if isinstance(declaration, TenantTable):
            column = find_column(table, declaration.column)
            yield declaration.column if column is None else column.name


def _declare(declaration: Declaration) -> Declare:
    def declare(table: TableOrClass, /) -> TableOrClass:
        target = table_of(table)
        before = target.info.get(INFO_KEY, declaration)
        if before != declaration:
            raise AppConfigError(
                f"table {target.fullname!r} is declared to be {declaration!r}, but is "
                f"{before!r} already; say one of them"
            )
        # Not in place: tables that got their info from one base's __table_args__ share the dict.
        target.info = {**target.info, INFO_KEY: declaration}
        return table

    return declare


def _check_reason(function: str, reason: str) -> str:
    if not reason.strip():
        raise AppConfigError(
            f"{function}() got the blank reason {reason!r}; say why no row of the table needs a "
            "tenant of its own"
        )
    return reason
