"""What is declared, as the database would show it."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import bindparam, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.errors import sqlstate
from mgf.sqlalchemy.rls._ddl import CreatePolicy
from mgf.sqlalchemy.rls._partitions import partitions
from mgf.sqlalchemy.rls._plan import Plan
from mgf.sqlalchemy.rls._predicates import CURRENT_TENANT_SUBSELECT
from mgf.sqlalchemy.rls._schemas import schema_map, shorten_table, shorten_view
from mgf.sqlalchemy.rls._scratch import EMPTY_SEARCH_PATH, scratch
from mgf.sqlalchemy.rls._state import Grant, Policy, Protection, TableProtection

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection, MetaData, Table
    from sqlalchemy.sql.compiler import DDLCompiler

# The temporary schema last, not first as it is unasked: the table that is tried on must not be
# taken for one that a predicate names. PostgreSQL's own first: on a path that says otherwise a
# predicate would be what somebody else's current_setting() makes of it, there and here alike.
_TRYING = text(
    """
    SELECT pg_catalog.set_config('search_path', pg_catalog.concat_ws(', ', 'pg_catalog',
        NULLIF(pg_catalog.current_setting('search_path'), ''), 'pg_temp'), true)
    """
)
_DEPARSED = text(
    """
    SELECT pg_get_expr(polqual, polrelid) FROM pg_policy
    WHERE polrelid = (SELECT oid FROM pg_class
                      WHERE relname = :name AND relnamespace = pg_my_temp_schema())
    ORDER BY CAST(polname AS text)::int
    """
)
_OPEN_SCHEMAS = text(
    """
    SELECT nspname FROM pg_namespace
    WHERE nspname IN :schemas AND has_schema_privilege('public', oid, 'USAGE')
    """
).bindparams(bindparam("schemas", expanding=True))


class _Shape(NamedTuple):
    """A table to try predicates on: its name, and its columns with their types."""

    name: str
    columns: tuple[tuple[str, str], ...]


def expected_protection(connection: Connection, metadata: MetaData) -> Protection:
    """Return what a metadata declares, in the words in which `read_protection` would tell it.

    Where the database is as declared, `compare_protection` finds no difference between the two.
    Predicates are as PostgreSQL prints them, which it does for policies on temporary tables with
    the columns of the models; all of it is rolled back. One that PostgreSQL does not accept yet,
    since it names something that is to be made, stays as it was written. The database's default
    schema is None. Partitions that are there are included, with their tables' protection.

    Takes a handful of statements for all tables whose predicates name no other table, and as
    many again for each that does.

    Args:
        connection: to PostgreSQL, not in AUTOCOMMIT, with the privilege TEMP on the database and
            not read-only; a transaction that is open stays open.
        metadata: one that is protected.

    Raises:
        AppConfigError: something is declared that cannot be, or the connection does not fit.
    """
    default = connection.dialect.default_schema_name
    plan = Plan(metadata, schema_map(connection))
    found = [(table, plan.protection(table)) for table in plan.tables]
    found += partitions(connection, plan)
    deparsed = _deparse_all(connection, found)
    tables = [
        shorten_table(_rewrite(connection, table, protection, deparsed), default)
        for table, protection in found
    ]
    return Protection(
        tables=tuple(tables),
        views=tuple(shorten_view(one, default) for one in plan.views),
        grants=tuple(_drop_open_schemas(connection, plan.grants(default_schema=default))),
    )


def deparse(
    connection: Connection,
    predicates: Iterable[str],
    *,
    columns: Mapping[str, str],
    table: str = "predicate",
) -> list[str]:
    """Return predicates as PostgreSQL prints them in ``pg_policies`` with an empty search path.

    Args:
        connection: as for `expected_protection`.
        predicates: SQL, each for the table of these columns.
        columns: names and types, such as ``{"tenant_id": "uuid"}``.
        table: what the table is called in a predicate that names it; it need not exist.

    Raises:
        AppConfigError: the connection may not make temporary tables.
        DBAPIError: PostgreSQL does not accept a predicate.
    """
    given = list(predicates)
    try:
        with scratch(connection):
            connection.execute(_TRYING)
            connection.execute(_CreateTemporaryTable(table, columns))
            for number, predicate in enumerate(given):
                policy = Policy(str(number), table, schema="pg_temp", using=predicate)
                connection.execute(CreatePolicy(policy))
            connection.execute(EMPTY_SEARCH_PATH)
            return list(connection.execute(_DEPARSED, {"name": table}).scalars())
    except DBAPIError as error:
        if sqlstate(error) in {"42501", "25006"}:  # insufficient privilege, read-only
            raise AppConfigError(
                "comparing policies needs a temporary table, which this connection may not make; "
                "GRANT TEMPORARY ON DATABASE to its role, on a server that is no standby"
            ) from error
        raise


class _CreateTemporaryTable(ExecutableDDLElement):
    def __init__(self, name: str, columns: Mapping[str, str]) -> None:
        self.name = name
        self.columns = columns


@compiles(_CreateTemporaryTable)
def _create(element: _CreateTemporaryTable, compiler: DDLCompiler, **_options: Any) -> str:
    quote = compiler.preparer.quote
    columns = (f"{quote(name)} {kind}" for name, kind in element.columns.items())
    return f"CREATE TEMPORARY TABLE {quote(element.name)} ({', '.join(columns)})"


def _deparse_all(
    connection: Connection, found: Iterable[tuple[Table, TableProtection]]
) -> dict[tuple[_Shape, str], str]:
    """Return what each predicate becomes. Most tables' have the same shape, and are tried once."""
    todo: defaultdict[_Shape, set[str]] = defaultdict(set)
    for table, protection in found:
        for predicate in _predicates(protection):
            shape = _shape(connection, table, protection, predicate)
            todo[shape].add(predicate)
    return {
        (shape, before): after
        for shape, predicates in todo.items()
        for before, after in _try(connection, shape, sorted(predicates))
    }


def _try(
    connection: Connection, shape: _Shape, predicates: Sequence[str]
) -> Iterable[tuple[str, str]]:
    columns = dict(shape.columns)
    try:
        return zip(
            predicates,
            deparse(connection, predicates, columns=columns, table=shape.name),
            strict=True,
        )
    except DBAPIError as error:
        # Class 42: a syntax error, or something that is not there.
        if not (sqlstate(error) or "").startswith("42"):
            raise
    if len(predicates) == 1:
        return [(predicates[0], predicates[0])]
    return [pair for one in predicates for pair in _try(connection, shape, [one])]


def _predicates(protection: TableProtection) -> set[str]:
    return {
        predicate
        for policy in protection.policies
        for predicate in (policy.using, policy.with_check)
        if predicate is not None
    }


def _shape(
    connection: Connection, table: Table, protection: TableProtection, predicate: str
) -> _Shape:
    """Return the least table on which a predicate means the same.

    Inside a sub-select PostgreSQL prints columns with their table's name, so the name counts
    where there is one, other than for the tenant in force.
    """
    types = {
        str(column.name): column.type.compile(dialect=connection.dialect)
        for column in table.columns
    }
    rest = predicate.replace(CURRENT_TENANT_SUBSELECT, "")
    if _says("SELECT", rest) or _says(protection.name, rest):
        return _Shape(protection.name, tuple(types.items()))
    return _Shape(
        "predicate", tuple((name, kind) for name, kind in types.items() if _says(name, predicate))
    )


def _says(name: str, predicate: str) -> bool:
    word = re.escape(name.replace('"', '""'))
    return re.search(rf"(?<!\w){word}(?!\w)", predicate, re.IGNORECASE) is not None


def _rewrite(
    connection: Connection,
    table: Table,
    protection: TableProtection,
    deparsed: Mapping[tuple[_Shape, str], str],
) -> TableProtection:
    def after(before: str | None) -> str | None:
        if before is None:
            return None
        return deparsed[_shape(connection, table, protection, before), before]

    policies = (
        replace(one, using=after(one.using), with_check=after(one.with_check))
        for one in protection.policies
    )
    return replace(protection, policies=tuple(policies))


def _drop_open_schemas(connection: Connection, grants: Iterable[Grant]) -> Iterable[Grant]:
    """Leave out what everybody may anyway, as PUBLIC may mostly use the schema public."""
    given = list(grants)
    schemas = [one.on for one in given if one.kind == "SCHEMA"]
    is_open = set(connection.execute(_OPEN_SCHEMAS, {"schemas": schemas}).scalars())
    return [one for one in given if one.kind != "SCHEMA" or one.on not in is_open]
