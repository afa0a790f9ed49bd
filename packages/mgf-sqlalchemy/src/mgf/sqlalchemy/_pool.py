"""Checkouts that hand out live connections only, mostly without asking the server.

A connection whose closing has reached this host is known to be closed: asyncpg's protocol has
seen it, psycopg's socket is readable. Only a connection that rested for a while, and may have
been cut off in silence, is asked with one round trip that is given up after a short time;
HikariCP and pgx trust recently used connections likewise.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError

from mgf.sqlalchemy._carrier import BeginCarrier

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

# Seconds after which a ping counts as lost: far above any live network's round trip, and short
# enough for a request to survive the replacement of its connection.
_PING_TIMEOUT = 2.0
# Turns of the event loop until asyncpg has seen both the server's last words and the end of the
# stream: each is read in a turn of its own and announced in the next.
_LOOP_TURNS = 5
_RETURNED = "mgf.sqlalchemy.returned"
_LOOP = "mgf.sqlalchemy.loop"


def validate_checkouts(engine: AsyncEngine, *, ping_idle: float) -> None:
    """Validate each connection of the engine's pool when it is checked out.

    Args:
        engine: an async engine.
        ping_idle: seconds of rest after which a connection is pinged; 0 for each time.
    """
    validator = _VALIDATORS.get(engine.dialect.driver, _Validator)(engine.dialect, ping_idle)
    event.listen(engine.sync_engine, "checkin", validator.note_return)
    event.listen(engine.sync_engine, "checkout", validator.validate)


class _Validator:
    """For drivers that this package knows nothing about: the dialect's own ping after a rest."""

    def __init__(self, dialect: Dialect, ping_idle: float) -> None:
        self.dialect = dialect
        self.ping_idle = ping_idle
        # Connections that came back before this moment share the fate of one that was lost.
        self.distrusted_before = float("-inf")

    def note_return(self, _connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
        record.info[_RETURNED] = time.monotonic()

    def validate(
        self,
        connection: Any,
        record: ConnectionPoolEntry,
        _proxy: PoolProxiedConnection,
    ) -> None:
        returned = record.info.get(_RETURNED)
        if returned is None:  # just made
            self.note_connect(record)
            return
        idle = time.monotonic() - returned
        if returned < self.distrusted_before:
            self.terminate(connection)
            raise DisconnectionError("the server was lost while this connection was idle")
        if not self.is_of_this_loop(record):
            self.terminate(connection)
            raise DisconnectionError("the connection was made by another event loop")
        if self.is_closed(connection):
            raise DisconnectionError("the connection was closed while it was idle")
        if idle >= self.ping_idle and not self.ping(connection):
            self.distrusted_before = time.monotonic()
            raise DisconnectionError("the connection did not answer a ping")

    def note_connect(self, record: ConnectionPoolEntry) -> None:
        """Remember what a later check needs to know about a new connection."""

    def is_of_this_loop(self, _record: ConnectionPoolEntry) -> bool:
        """Say whether the connection can be used by the running event loop."""
        return True

    def is_closed(self, _connection: Any) -> bool:
        """Say whether the connection is known, without a round trip, to be closed."""
        return False

    def ping(self, connection: Any) -> bool:
        """Ask the server for a sign of life, in one round trip where the driver allows it."""
        try:
            return self.dialect.do_ping(connection)
        except self.dialect.loaded_dbapi.Error:
            return False

    def terminate(self, connection: Any) -> None:
        """Drop the connection without waiting for the server."""


class _AsyncpgValidator(_Validator):
    def note_connect(self, record: ConnectionPoolEntry) -> None:
        record.info[_LOOP] = asyncio.get_running_loop()

    def is_of_this_loop(self, record: ConnectionPoolEntry) -> bool:
        return record.info[_LOOP] is asyncio.get_running_loop()

    def is_closed(self, connection: Any) -> bool:
        driver = connection.driver_connection
        if _may_have_news(driver):
            connection.run_async(_let_loop_turn)
        return bool(driver.is_closed())

    def ping(self, connection: Any) -> bool:
        answered: bool = connection.run_async(_answers(_select_1, give_up=_terminate))
        return answered

    def terminate(self, connection: Any) -> None:
        _terminate(connection.driver_connection)


class _PsycopgValidator(_Validator):
    def is_closed(self, connection: Any) -> bool:
        driver = connection.driver_connection
        # Readable at rest: the server's last words, or a notice. A ping tells them apart.
        return bool(driver.closed) or (_is_readable(driver.fileno()) and not self.ping(connection))

    def ping(self, connection: Any) -> bool:
        answered: bool = connection.run_async(_answers(_select_1_alone, give_up=_hang_up))
        return answered


_VALIDATORS: dict[str, type[_Validator]] = {
    "asyncpg": _AsyncpgValidator,
    "psycopg": _PsycopgValidator,
}


def _may_have_news(driver: Any) -> bool:
    """Say whether the server may have said something, or hung up, that asyncpg has not seen yet."""
    transport = driver.transport if isinstance(driver, BeginCarrier) else None
    if transport is None or transport.is_closing() or not hasattr(select, "poll"):
        return True
    return _is_readable(transport.get_extra_info("socket").fileno())


async def _let_loop_turn(_driver: Any) -> None:
    for _ in range(_LOOP_TURNS):
        await asyncio.sleep(0)


def _answers(
    ask: Callable[[Any], Awaitable[object]], *, give_up: Callable[[Any], None]
) -> Callable[[Any], Awaitable[bool]]:
    """Return a function that asks a driver's connection something, for a limited time.

    Neither driver gives up well by itself on a network that swallows everything: their way out
    of a cancelled query is to tell the server. So the connection is cut under the query.
    """

    async def answer(driver: Any) -> bool:
        question = asyncio.ensure_future(ask(driver))
        # Looked at in any case: asyncio logs an error that a cancelled caller did not see.
        question.add_done_callback(_has_succeeded)
        try:
            await asyncio.wait({question}, timeout=_PING_TIMEOUT)
        finally:
            if not question.done():
                # It ends with its connection, and is awaited: the driver lets go of its socket
                # then. No cancellation, which psycopg answers by asking the server for one, for 5
                # seconds.
                give_up(driver)
                await asyncio.wait({question})
        return _has_succeeded(question)

    return answer


def _has_succeeded(question: asyncio.Future[object]) -> bool:
    return not question.cancelled() and question.exception() is None


async def _select_1(driver: Any) -> None:
    # A simple query outside a transaction: one round trip, also behind a transaction pooler.
    await driver.execute("SELECT 1")


def _terminate(driver: Any) -> None:
    # RuntimeError: the loop that the connection was made in is closed. asyncpg counts it as closed
    # all the same, and its socket goes with the garbage collection.
    with suppress(RuntimeError):
        driver.terminate()


async def _select_1_alone(driver: Any) -> None:
    # With autocommit on, psycopg sends no BEGIN before it and needs no ROLLBACK after it. Where it
    # fails, the connection is not used any more.
    autocommit = driver.autocommit
    await driver.set_autocommit(True)
    await driver.execute("SELECT 1")
    await driver.set_autocommit(autocommit)


def _hang_up(driver: Any) -> None:
    """Shut the socket down, so that psycopg sees its end instead of waiting for the server.

    On a duplicate: closing the descriptor itself would take the end from the loop's sight.
    """
    duplicate = socket.socket(fileno=os.dup(driver.fileno()))
    with duplicate, suppress(OSError):  # the other side may have been first
        duplicate.shutdown(socket.SHUT_RDWR)


def _is_readable(descriptor: int) -> bool:
    # select() takes no descriptor above 1023; poll() does, where there is one.
    if not hasattr(select, "poll"):
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
