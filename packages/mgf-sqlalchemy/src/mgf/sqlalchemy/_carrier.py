"""How a statement that binds a transaction travels to the server.

Through `Connection.exec_driver_sql` it works with every driver, but there it costs more than it
must: asyncpg prepares each distinct text, so that every tenant takes two round trips and a place
in its caches. So the drivers that this package knows are handed it as a simple query; and
asyncpg, which SQLAlchemy lets send BEGIN with the first statement only, asks for it then, so that
it travels with that BEGIN.
"""

from __future__ import annotations

import asyncio
import logging
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sqlalchemy.engine import Connection, Dialect

    # Says, for the connection that is about to begin, which statements to take along.
    Source = Callable[["BeginCarrier"], str | None]

# What is sent beside SQLAlchemy does not show in its echo.
_log = logging.getLogger("mgf.sqlalchemy")

# Seconds after which a ROLLBACK counts as lost: a server has next to nothing to do for it.
_ROLLBACK_TIMEOUT = 5.0

# Classes of SQLSTATE in which the connection is lost: connection exception, operator intervention.
_LOST = ("08", "57P")

# An engine or connection may ask for server-side cursors, which SET LOCAL cannot have.
_PLAIN = {"stream_results": False}


class BeginCarrier:
    """Mixed into asyncpg's connection: each BEGIN takes along what its source says then."""

    # That SQLAlchemy begins a transaction with execute("BEGIN...") is how it and asyncpg work
    # today. It is seen once before it is relied on: each new engine asks the server for its
    # version in a transaction.
    sees_begin: ClassVar[bool] = False
    failed_connect: ClassVar[Any]
    _source: Source | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # How asyncpg makes its connections is its own affair, but a transport is among it, and
        # what that can do is asyncio's word.
        given = (*args, *options.values())
        self.transport = next((one for one in given if hasattr(one, "get_extra_info")), None)

    def ask(self, source: Source) -> bool:
        """Ask the source at each BEGIN from now on.

        False where that is not known to work, or comes too late for this transaction.
        """
        # The plain type: asyncpg's metaclass calls any of its connections an instance of ours.
        connection: Any = self
        if not type(self).sees_begin or connection.is_in_transaction():
            return False
        self._source = source
        return True

    # No coroutine of its own where there is nothing to add: each costs at every statement.
    def execute(self, query: str, *args: Any, timeout: float | None = None) -> Awaitable[str]:
        """Run a query, BEGIN with what it takes along in the same round trip."""
        if not args and query.startswith("BEGIN"):
            return self._begin(query, timeout)
        if not args and query.startswith("ROLLBACK"):
            return self._roll_back(query, timeout)
        connection: Any = super()
        result: Awaitable[str] = connection.execute(query, *args, timeout=timeout)
        return result

    async def _begin(self, query: str, limit: float | None) -> str:
        type(self).sees_begin = True
        if self._source is not None and (taken := self._source(self)):
            query = f"{query.rstrip(';')}; {taken}"
            _log.debug("%s", query)
        connection: Any = super()
        try:
            status: str = await connection.execute(query, timeout=limit)
        except BaseException:
            # asyncpg takes a transaction that did not begin for one that did, and would send a
            # SAVEPOINT next; SQLAlchemy has nothing to roll back before that.
            connection.terminate()
            raise
        return status

    # The caller's time limit does not reach it: SQLAlchemy rolls back what is left at the end of a
    # block in a task of its own, and waits for that whoever is cancelled.
    async def _roll_back(self, query: str, limit: float | None) -> str:
        connection: Any = super()
        try:
            async with asyncio.timeout(_ROLLBACK_TIMEOUT):
                status: str = await connection.execute(query, timeout=limit)
        except TimeoutError:
            connection.terminate()
            raise
        return status

    # SQLAlchemy closes a connection whose statement was cancelled, within 2 seconds; before 0.32
    # asyncpg first waits for the server to answer the cancellation, for ever if it must.
    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Close the connection gracefully within the time limit, else as it is."""
        connection: Any = super()
        async with asyncio.timeout(timeout):
            await connection.close(timeout=timeout)

    # SQLAlchemy sets its codecs on each new connection, and there lets asyncpg's own errors pass.
    async def set_type_codec(self, *args: Any, **options: Any) -> None:
        """Set a codec; a connection that was lost meanwhile has not been made."""
        connection: Any = super()
        try:
            await connection.set_type_codec(*args, **options)
        except Exception as exc:
            if not connection.is_closed():
                raise
            error = self.failed_connect(f"the connection was lost while it was made: {exc}")
            error.sqlstate = getattr(exc, "sqlstate", None) or "08006"  # connection_failure
            raise error from exc


@cache
def carrier_class(base: type[Any], failed_connect: type[Exception]) -> type[Any]:
    """Return a class of asyncpg connections that carries statements with BEGIN.

    Args:
        base: a class of asyncpg connections.
        failed_connect: what SQLAlchemy's users know as its ``OperationalError``.
    """
    return type(
        f"Carrying{base.__name__}", (BeginCarrier, base), {"failed_connect": failed_connect}
    )


def carrier_of(connection: Connection) -> BeginCarrier | None:
    """Return what carries statements with the BEGIN of this connection, if anything does."""
    if connection.closed or connection.invalidated:
        return None
    driver = connection.connection.driver_connection
    return driver if isinstance(driver, BeginCarrier) else None


def send(connection: Connection, statements: Sequence[str]) -> None:
    """Send statements without parameters inside a connection's transaction.

    Args:
        connection: a connection whose transaction has begun.
        statements: the statements.

    Raises:
        sqlalchemy.exc.DBAPIError: what the database answered.
    """
    driver = connection.dialect.driver
    # psycopg sends BEGIN itself; asyncpg does not.
    if _is_known(connection) and (driver == "psycopg" or has_begun(connection)):
        adapted: Any = connection.connection.dbapi_connection
        sql = "; ".join(statements)
        _log.debug("%s", sql)
        try:
            adapted.run_async(partial(_SIMPLE_QUERIES[driver], sql=sql))
        except Exception as exc:
            if error := _server_error(connection.dialect, sql, exc):
                raise error from exc
            # A lost connection, which is noticed below.
        except BaseException as exc:
            # Cut short by a cancellation, as SQLAlchemy does with its own statements: nobody
            # knows what the connection will answer next, or whether it ever will.
            connection.invalidate(exc)
            raise
        else:
            return
    for statement in statements:
        connection.exec_driver_sql(statement, execution_options=_PLAIN)


def _server_error(dialect: Dialect, sql: str, raised: Any) -> DBAPIError | None:
    """Return what SQLAlchemy would make of the server's refusal of a statement.

    It may be about the work that is ended, by a deferred constraint. None for anything else.
    """
    sqlstate: str = getattr(raised, "sqlstate", None) or _LOST[0]
    if sqlstate.startswith(_LOST):
        return None
    dbapi: Any = dialect.loaded_dbapi
    if not isinstance(raised, dbapi.Error):  # asyncpg's own, which SQLAlchemy puts into others
        kind = dbapi.IntegrityError if sqlstate.startswith("23") else dbapi.Error
        error = kind(f"{type(raised)}: {raised}")
        error.sqlstate = sqlstate
    else:
        error = raised
    wrap: Any = DBAPIError.instance
    wrapped: DBAPIError = wrap(sql, None, error, dbapi.Error, dialect=dialect)
    return wrapped


def has_begun(connection: Connection) -> bool:
    """Say whether the server has had this transaction's BEGIN: both drivers send it late."""
    if not _is_known(connection):
        return True
    driver: Any = connection.connection.driver_connection
    if hasattr(driver, "is_in_transaction"):
        return bool(driver.is_in_transaction())
    return bool(driver.info.transaction_status)  # psycopg; 0 is libpq's PQTRANS_IDLE


def _is_known(connection: Connection) -> bool:
    """Say whether it is of a driver that this package can hand a query to."""
    adapted = connection.connection.dbapi_connection
    return connection.dialect.driver in _SIMPLE_QUERIES and hasattr(adapted, "run_async")


async def _asyncpg_query(driver: Any, sql: str) -> None:
    await driver.execute(sql)


async def _psycopg_query(driver: Any, sql: str) -> None:
    await driver.execute(sql, prepare=False)


_SIMPLE_QUERIES: dict[str, Callable[..., Awaitable[None]]] = {
    "asyncpg": _asyncpg_query,
    "psycopg": _psycopg_query,
}
