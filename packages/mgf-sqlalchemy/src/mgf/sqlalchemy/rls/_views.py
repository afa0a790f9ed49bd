"""Views that are read with the rights of who reads them, made with the tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, TableClause, column, inspect, table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql import visitors

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls._ddl import quoted_relation
from mgf.sqlalchemy.rls._names import check_name
from mgf.sqlalchemy.rls._schemas import effective_schema

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy import MetaData, SelectBase, Table
    from sqlalchemy.sql.compiler import DDLCompiler

# Where a metadata keeps its views.
_INFO_KEY = "mgf.sqlalchemy.rls.views"


@dataclass(frozen=True)
class View:
    """A view of a metadata."""

    name: str
    schema: str | None
    select: SelectBase
    clause: TableClause


class CreateInvokerView(ExecutableDDLElement):
    """``CREATE VIEW``, on PostgreSQL with ``security_invoker``.

    Args:
        name: of the view.
        select: what it shows; its parameters become literals.
        schema: of the view; None is the default schema.
    """

    def __init__(self, name: str, select: SelectBase, *, schema: str | None = None) -> None:
        self.name = name
        self.select = select
        self.schema = schema


class DropInvokerView(ExecutableDDLElement):
    """``DROP VIEW IF EXISTS``.

    Args:
        name: of the view.
        schema: of the view; None is the default schema.
    """

    def __init__(self, name: str, *, schema: str | None = None) -> None:
        self.name = name
        self.schema = schema


def invoker_view(
    name: str, metadata: MetaData, select: SelectBase, *, schema: str | None = None
) -> TableClause:
    """Declare a view whose rows are those that its reader may see.

    Any other view reads its tables with its owner's rights, whom policies may not hold. This
    one is made after the tables by ``create_all``, unless it is there, and dropped before them
    by ``drop_all``; on a protected metadata the application's role may SELECT from it. Other
    databases get a plain view.

    Args:
        name: of the view.
        metadata: of its tables.
        select: what it shows, such as ``select(Invoice.id, ...)``; SQL as
            ``text(...).columns(...)``.
        schema: of the view; the metadata's unless given.

    Returns:
        What to select from; its columns are those of `select`.

    Raises:
        AppConfigError: the metadata has a view or table of that name.
    """
    schema = schema or metadata.schema
    views: list[View] = metadata.info.setdefault(_INFO_KEY, [])
    places = {(view.schema, view.name) for view in views}
    places.update((one.schema, one.name) for one in metadata.tables.values())
    if (schema, check_name("a view's name", name)) in places:
        raise AppConfigError(
            f"this metadata has a table or view {(schema, name)!r} (schema, name) already; give "
            "the view another name"
        )
    columns = (column(one.name, one.type) for one in select.selected_columns)
    clause = table(name, *columns, schema=schema)
    views.append(View(name, schema, select, clause))
    return clause


def create_views(metadata: MetaData) -> Iterator[CreateInvokerView]:
    """Yield the statements that create the views of a metadata, each after those that it reads."""
    for view in views_of(metadata):
        yield CreateInvokerView(view.name, view.select, schema=view.schema)


def views_of(metadata: MetaData) -> list[View]:
    """Return the views of a metadata, each after those that it reads."""
    views: list[View] = metadata.info.get(_INFO_KEY, [])
    return views


def tables_of(view: View) -> set[TableClause]:
    """Return the tables and other views that a view reads; none where it is written as text."""
    parts: Iterator[Any] = visitors.iterate(view.select)
    return {one for one in parts if isinstance(one, TableClause)}


def missing_views(metadata: MetaData, connection: object) -> Iterator[View]:
    """Yield the views that are not there, and whose tables are.

    Raises:
        AppConfigError: PostgreSQL is older than 15, and has no such views.
    """
    for view in views_of(metadata):
        if isinstance(connection, Connection):
            _check_version(view, connection)
            if _is_there(view.clause, connection):
                continue
            if not all(_is_there(one, connection) for one in tables_of(view)):
                continue
        yield view


def views_over(metadata: MetaData, tables: Collection[Table]) -> Iterator[View]:
    """Yield the views that have to be dropped before these tables, in that order."""
    concerned: set[TableClause] = set(tables)
    found: list[View] = []
    for view in views_of(metadata):
        reads = tables_of(view)
        if not reads or concerned.intersection(reads):
            concerned.add(view.clause)
            found.append(view)
    yield from reversed(found)


def _is_there(relation: TableClause, connection: Connection) -> bool:
    schema = effective_schema(connection, relation.schema)
    return inspect(connection).has_table(relation.name, schema=schema)


def _check_version(view: View, connection: Connection) -> None:
    version = connection.dialect.server_version_info or ()
    if connection.dialect.name == "postgresql" and version < (15,):
        raise AppConfigError(
            f"view {view.name!r} needs security_invoker, which PostgreSQL has from version 15 on; "
            f"this server is {'.'.join(map(str, version))}"
        )


@compiles(CreateInvokerView)
def _create_view(element: CreateInvokerView, compiler: DDLCompiler, **_options: Any) -> str:
    return _create(element, compiler, "")


@compiles(CreateInvokerView, "postgresql")
def _create_invoker_view(element: CreateInvokerView, compiler: DDLCompiler, **_options: Any) -> str:
    return _create(element, compiler, " WITH (security_invoker = true)")


def _create(element: CreateInvokerView, compiler: DDLCompiler, options: str) -> str:
    select = compiler.sql_compiler.process(element.select, literal_binds=True)
    name = quoted_relation(element.name, element.schema, compiler)
    return f"CREATE VIEW {name}{options} AS\n{select}"


@compiles(DropInvokerView)
def _drop_view(element: DropInvokerView, compiler: DDLCompiler, **_options: Any) -> str:
    return f"DROP VIEW IF EXISTS {quoted_relation(element.name, element.schema, compiler)}"
