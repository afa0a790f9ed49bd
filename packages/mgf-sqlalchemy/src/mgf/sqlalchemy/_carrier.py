"""How a statement that binds a transaction travels to the server.

Through `Connection.exec_driver_sql` it works with every driver, but there it costs more than it
must: asyncpg prepares each distinct text, so that every tenant takes two round trips and a place
in its caches. So the drivers that this package knows are handed it as a simple query; and
asyncpg, which SQLAlchemy lets send BEGIN with the first statement only, is handed it in time to
travel with that BEGIN.
"""

from __future__ import annotations

import asyncio
import logging
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sqlalchemy.engine import Connection
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.ext.asyncio import AsyncEngine

# What is sent beside SQLAlchemy does not show in its echo.
_log = logging.getLogger("mgf.sqlalchemy")

# What was begun for one tenant and would go on for another: cursors, since a policy may be
# evaluated row by row, and deferred triggers, which would otherwise run at COMMIT.
_END_OF_WORK = ("CLOSE ALL", "SET CONSTRAINTS ALL IMMEDIATE")

# An engine or connection may ask for server-side cursors, which SET LOCAL cannot have.
_PLAIN = {"stream_results": False}


class BeginCarrier:
    """Mixed into asyncpg's connection: the next BEGIN takes a statement along, once."""

    # That SQLAlchemy begins a transaction with execute("BEGIN...") is how it and asyncpg work
    # today. It is seen once before it is relied on: each new engine asks the server for its
    # version in a transaction.
    sees_begin: ClassVar[bool] = False
    failed_connect: ClassVar[Any]
    _carried: str | None = None

    def carry(self, statement: str) -> bool:
        """Send a statement with the next BEGIN; False where that is not known to work."""
        # The plain type: asyncpg's metaclass calls any of its connections an instance of ours.
        connection: Any = self
        if not type(self).sees_begin or connection.is_in_transaction():
            return False
        self._carried = statement
        return True

    def drop(self) -> bool:
        """Carry nothing; return whether there was something that BEGIN has not taken yet."""
        was_carrying = self._carried is not None
        self._carried = None
        return was_carrying

    # The signature is asyncpg's, its own timeout included.
    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109
        """Run a query, BEGIN with what it carries in the same round trip."""
        begins = query.startswith("BEGIN")
        if begins:
            type(self).sees_begin = True
        carried = self._carried if begins else None
        if carried is not None:
            self._carried = None
            query = f"{query.rstrip(';')}; {carried}"
            _log.debug("%s", query)
        connection: Any = super()
        try:
            status: str = await connection.execute(query, *args, timeout=timeout)
        except BaseException:
            if begins:
                # asyncpg takes a transaction that did not begin for one that did, and would
                # send a SAVEPOINT next; SQLAlchemy has nothing to roll back before that.
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


def carry_nothing_over(engine: AsyncEngine) -> None:
    """Make sure that no checkout meets what was meant for the one before."""
    event.listen(engine.sync_engine, "checkout", _drop_at_checkout)


def _drop_at_checkout(connection: DBAPIConnection, _record: Any, _proxy: Any) -> None:
    driver = getattr(connection, "driver_connection", None)
    if isinstance(driver, BeginCarrier):
        driver.drop()


def carrier_of(connection: Connection) -> BeginCarrier | None:
    """Return what carries statements with the BEGIN of this connection, if anything does."""
    if connection.closed or connection.invalidated:
        return None
    driver = connection.connection.driver_connection
    return driver if isinstance(driver, BeginCarrier) else None


def send(connection: Connection, statements: Sequence[str], *, ends_work: bool) -> None:
    """Send statements without parameters inside a connection's transaction.

    Args:
        connection: a connection whose transaction has begun.
        statements: the statements.
        ends_work: first end what was begun for another tenant.

    Raises:
        sqlalchemy.exc.DBAPIError: what the database answered.
    """
    ending = list(_END_OF_WORK) if ends_work else []
    adapted: Any = connection.connection.dbapi_connection
    simple_query = _SIMPLE_QUERIES.get(connection.dialect.driver)
    if simple_query is not None and hasattr(adapted, "run_async"):
        if not _has_begun(adapted.driver_connection):
            ending = []  # nothing to close; and SET TRANSACTION has to come before it
        try:
            if adapted.run_async(partial(simple_query, sql="; ".join([*ending, *statements]))):
                return
        except Exception:  # noqa: BLE001, S110
            # What the driver raises has no sign of SQLAlchemy. What went wrong does so again
            # below, where it becomes the error that users know, and a lost connection is noticed.
            pass
        except BaseException as exc:
            # Cut short by a cancellation, as SQLAlchemy does with its own statements: nobody
            # knows what the connection will answer next, or whether it ever will.
            connection.invalidate(exc)
            raise
    for statement in (*ending, *statements):
        connection.exec_driver_sql(statement, execution_options=_PLAIN)


def _has_begun(driver: Any) -> bool:
    """Say whether the server has had this transaction's BEGIN: both drivers send it late."""
    if hasattr(driver, "is_in_transaction"):
        return bool(driver.is_in_transaction())
    return bool(driver.info.transaction_status)  # psycopg; 0 is libpq's PQTRANS_IDLE


async def _asyncpg_query(driver: Any, sql: str) -> bool:
    if not driver.is_in_transaction():
        return False  # only SQLAlchemy can send BEGIN
    _log.debug("%s", sql)
    await driver.execute(sql)
    return True


async def _psycopg_query(driver: Any, sql: str) -> bool:
    _log.debug("%s", sql)
    await driver.execute(sql, prepare=False)  # sends BEGIN first where that is still to come
    return True


_SIMPLE_QUERIES: dict[str, Callable[..., Awaitable[bool]]] = {
    "asyncpg": _asyncpg_query,
    "psycopg": _psycopg_query,
}
