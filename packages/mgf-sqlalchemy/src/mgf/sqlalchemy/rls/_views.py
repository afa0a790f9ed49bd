"""Views that are read with the rights of who reads them, made with the tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, TableClause, column, inspect, table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql import visitors

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.errors import sqlstate
from mgf.sqlalchemy.rls._ddl import quoted_relation
from mgf.sqlalchemy.rls._names import check_name
from mgf.sqlalchemy.rls._predicates import quote_relation
from mgf.sqlalchemy.rls._schemas import effective_schema, shorten_name
from mgf.sqlalchemy.rls._scratch import EMPTY_SEARCH_PATH, scratch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy import MetaData, SelectBase, Table
    from sqlalchemy.sql.compiler import DDLCompiler

    from mgf.sqlalchemy.rls._names import RelationName

# Where a metadata keeps its views.
_INFO_KEY = "mgf.sqlalchemy.rls.views"

_SHOWN = text(
    "SELECT pg_get_viewdef(oid) FROM pg_class WHERE oid = to_regclass(:name) AND relkind = 'v'"
)
_TRIED = "pg_temp", "declared"


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


def changed_views(connection: Connection, metadata: MetaData) -> dict[RelationName, str]:
    """Return the views that are there and show something else than declared, and what they show.

    With them those that read them, and so have to be made anew with them. Schema and name (the
    database's default schema is None) lead to the SELECT that is there; the order is the one in
    which the views have to be created. Two are compared as PostgreSQL prints them: the declared
    one is made as a temporary view, and rolled back. One that PostgreSQL does not accept yet,
    since it names something that is to be made, differs.

    Args:
        connection: to PostgreSQL, not in AUTOCOMMIT, with the privilege TEMP on the database and
            not read-only; a transaction that is open stays open.
        metadata: of the views.

    Raises:
        AppConfigError: the database is not PostgreSQL, or the connection is in AUTOCOMMIT.
    """
    default = connection.dialect.default_schema_name
    concerned: set[TableClause] = set()
    found: dict[RelationName, str] = {}
    for view in views_of(metadata):
        schema = effective_schema(connection, view.schema)
        with scratch(connection):
            there = _shown(connection, (schema or default, view.name))
        if there is None:
            continue
        if _may_read(view, concerned) or there != _declared(connection, view):
            concerned.add(view.clause)
            found[shorten_name((schema, view.name), default)] = there
    return found


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
        if _may_read(view, concerned):
            concerned.add(view.clause)
            found.append(view)
    yield from reversed(found)


def _may_read(view: View, concerned: Collection[TableClause]) -> bool:
    reads = tables_of(view)
    return bool(concerned) and (not reads or not reads.isdisjoint(concerned))


def _declared(connection: Connection, view: View) -> str | None:
    _, name = _TRIED
    try:
        with scratch(connection):
            connection.execute(CreateInvokerView(name, view.select, schema="pg_temp"))
            return _shown(connection, _TRIED)
    except DBAPIError as error:
        code = sqlstate(error) or ""
        # Class 42: something is not there. But for the privilege, which says nothing of the view.
        if not code.startswith("42") or code == "42501":
            raise
    return None


def _shown(connection: Connection, name: RelationName) -> str | None:
    connection.execute(EMPTY_SEARCH_PATH)
    shown: str | None = connection.execute(_SHOWN, {"name": quote_relation(name)}).scalar()
    return shown


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
