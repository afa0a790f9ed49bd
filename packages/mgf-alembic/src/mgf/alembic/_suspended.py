"""Let a data migration see all rows of tables whose policies hold even their owner."""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from alembic import op
from alembic.operations import MigrateOperation, Operations
from sqlalchemy import bindparam, text

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls import AlterRowSecurity

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Connection, Executable, Row

logger = logging.getLogger("mgf.alembic")

_TABLE = text(
    """
    SELECT c.oid, n.nspname, c.relname, c.relkind IN ('r', 'p') AS is_table,
           row_security_active(c.oid) AS is_held, pg_has_role(c.relowner, 'USAGE') AS is_owned,
           pg_get_userbyid(c.relowner) AS owner, current_user AS role
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass(concat_ws('.', quote_ident(CAST(:schema AS text)),
                                             quote_ident(CAST(:name AS text))))
    """
)
_NOT_FORCED = text(
    """
    SELECT c.oid, n.nspname, c.relname
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid::bigint IN :oids AND NOT c.relforcerowsecurity
    ORDER BY n.nspname, c.relname
    """
).bindparams(bindparam("oids", expanding=True))
# Of a connection made to put FORCE back: one that another transaction keeps from it says so.
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '30s'"


class _Table(NamedTuple):
    name: str
    schema: str | None


@contextmanager
def rls_suspended(*tables: str, schema: str | None = None) -> Generator[None]:
    """Let the statements of a data migration reach all rows of some tables.

    Under ``FORCE ROW LEVEL SECURITY`` policies hold the owner of a table too: without a tenant an
    UPDATE in a migration finds no row, and says nothing. In this block the tables are ``NO
    FORCE``::

        with rls_suspended("invoice", "payment"):
            op.execute("UPDATE payment SET currency = invoice.currency FROM invoice ...")

    Other roles stay held, and in a transaction see nothing of it: until that ends, whoever uses
    the tables waits (ACCESS EXCLUSIVE). Afterwards the tables are as they were before, also after
    an error. One that was not forced, or does not hold this role, such as a superuser, is left
    alone; blocks may be nested. Deferred constraints are checked at the beginning and at the end.
    The log ``mgf.alembic`` names the tables, as a warning.

    In an ``autocommit_block()`` there is no transaction to undo it: FORCE is put back by
    statements, after an error over another connection if need be. A process that is killed there
    leaves the tables NO FORCE. With ``--sql`` the tables are taken for forced. Databases other
    than PostgreSQL have nothing to suspend.

    Args:
        tables: their names, as they are and not quoted. Rows of partitions are reached by way of
            their table; a statement that names the partition itself needs it here as well.
        schema: of all these tables; None looks them up in the search path.

    Raises:
        AppConfigError: outside of a migration, no table, or one that is not there, is no table,
            or holds this role, which does not own it. Nothing was changed then.
    """
    try:
        migrations = op.get_context()
    except (AttributeError, NameError):  # after the first run in a process, and before it
        raise AppConfigError(
            "rls_suspended() was called outside of a migration; call it in the upgrade() or "
            "downgrade() of one"
        ) from None
    with _suspended(migrations, tables, schema):
        yield


@Operations.register_operation("rls_suspended")
class _RlsSuspended(MigrateOperation):
    """Makes it a method of ``op`` too."""

    @classmethod
    def rls_suspended(
        cls, operations: Operations, *tables: str, schema: str | None = None
    ) -> AbstractContextManager[None]:
        """Let the statements of a data migration reach all rows of some tables."""
        return _suspended(operations.get_context(), tables, schema)


@contextmanager
def _suspended(
    migrations: MigrationContext, names: Sequence[str], schema: str | None
) -> Generator[None]:
    if not names or not all(isinstance(name, str) for name in names):
        raise AppConfigError(
            f"rls_suspended() got {names!r}; give it the name of at least one table, as a str"
        )
    if migrations.dialect.name != "postgresql":
        yield
    elif migrations.as_sql:
        tables = [_Table(name, schema) for name in names]
        _execute(migrations, _statements(tables, forced=False))
        yield
        _execute(migrations, _statements(tables, forced=True))
    else:
        found = [_find(_connection(migrations), name, schema) for name in dict.fromkeys(names)]
        with _no_force(migrations, [one for one in found if one is not None]):
            yield


@contextmanager
def _no_force(migrations: MigrationContext, rows: Sequence[Row[Any]]) -> Generator[None]:
    if not rows:
        yield
        return
    tables = [_Table(row.relname, row.nspname) for row in rows]
    oids = [row.oid for row in rows]
    shown = ", ".join(f"{table.schema}.{table.name}" for table in tables)
    logger.warning("row-level security is suspended for the owner of %s", shown)
    try:
        _execute(migrations, _statements(tables, forced=False))
        yield
        _force(_connection(migrations), oids)
    except BaseException:
        _force_after_error(_connection(migrations), oids, shown)
        raise
    logger.info("row-level security holds the owner of %s again", shown)


def _find(connection: Connection, name: str, schema: str | None) -> Row[Any] | None:
    """Return a table whose FORCE is to be suspended, or None where nothing holds this role."""
    row = connection.execute(_TABLE, {"name": name, "schema": schema}).one_or_none()
    place = "the search path" if schema is None else f"schema {schema!r}"
    if row is None or not row.is_table:
        raise AppConfigError(
            f"rls_suspended() found no table {name!r} in {place}; give its name as it is in the "
            "database, without quotes, and its schema as schema="
        )
    if not row.is_held:
        return None
    if not row.is_owned:
        raise AppConfigError(
            f"rls_suspended() can do nothing for role {row.role!r} about table {name!r} in "
            f"{place}, which {row.owner!r} owns; migrate as {row.owner!r} or as a member of it, "
            "or as a role that has BYPASSRLS"
        )
    return row


def _statements(tables: Iterable[_Table], *, forced: bool) -> Iterator[Executable]:
    # PostgreSQL alters no table that deferred constraints are still to be checked on; and without
    # FORCE they are checked against all rows.
    yield text("SET CONSTRAINTS ALL IMMEDIATE")
    for table in tables:
        yield AlterRowSecurity(table.name, schema=table.schema, enabled=None, forced=forced)


def _execute(migrations: MigrationContext, statements: Iterable[Executable]) -> None:
    for statement in statements:
        migrations.execute(statement)


def _force(connection: Connection, oids: Sequence[int]) -> None:
    """Put FORCE back on the tables that lack it, whatever they are called by now."""
    rows = connection.execute(_NOT_FORCED, {"oids": oids}).all()
    if rows:
        for statement in _statements(
            (_Table(one.relname, one.nspname) for one in rows), forced=True
        ):
            connection.execute(statement)


def _force_after_error(connection: Connection, oids: Sequence[int], shown: str) -> None:
    """Put FORCE back in a transaction that goes on, or where one that cannot had committed."""
    # Also what a request to stop raises: the error that is under way is the one to be seen.
    with suppress(BaseException):
        _force(connection, oids)
        return
    try:
        with connection.engine.connect() as other, other.begin():
            other.exec_driver_sql(_LOCK_TIMEOUT)
            _force(other, oids)
    except Exception:
        logger.exception(
            "FORCE ROW LEVEL SECURITY may be missing on %s: see to it that the owner of these "
            "tables puts it back",
            shown,
        )


def _connection(migrations: MigrationContext) -> Connection:
    # Asked for each time: an autocommit_block() may exchange it.
    connection = migrations.connection
    assert connection is not None, "there is one unless SQL is only written"  # noqa: S101
    return connection
