"""Sessions that refuse work once their request or block has ended."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.orm import Session

from mgf.common.exceptions import OperationError
from mgf.fastapi.db._finish import finish
from mgf.sqlalchemy import tenant_scope

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType
    from uuid import UUID

    from sqlalchemy import Connection, CursorResult, Engine, Result
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from sqlalchemy.orm import SessionTransaction


# Seconds, as psycopg allows itself.
_CANCEL_WITHIN = 5.0


class SessionEndedError(OperationError):
    """A session was used after the request or the block that it belongs to had ended."""

    __module__ = "mgf.fastapi.db"


class EndingSession(Session):
    """A session that can be ended, unlike one that was closed.

    SQLAlchemy's own begins anew after ``close()``: whoever kept it gets a connection that nobody
    gives back. Its ``close_resets_only=False`` would also refuse what comes after a ``close()`` in
    the middle of a request, which gives the connection back before something slow.
    """

    is_ended = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connections: WeakSet[Connection] = WeakSet()

    def get_bind(self, *args: Any, **kwargs: Any) -> Engine | Connection:
        """Return the engine as SQLAlchemy does, which asks before every use of a connection."""
        self.refuse_if_ended()
        return super().get_bind(*args, **kwargs)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Run a statement; a result that is streamed ends with its transaction.

        It would go on reading from the connection, which is another request's by then.
        """
        result: Any = super().execute(*args, **kwargs)
        options: Any = kwargs.get("execution_options")
        if options and options.get("stream_results"):
            # Objects are made from the rows of another one, which is "raw".
            cursor: CursorResult[Any] = getattr(result, "raw", None) or result
            closing = _Closing(result)
            for end in ("commit", "rollback"):
                event.listen(cursor.context.root_connection, end, closing)
        return result

    def commit(self) -> None:
        """Commit; what was rolled back at the end has nothing left to commit, and is no success."""
        self.refuse_if_ended()
        super().commit()

    def refuse_if_ended(self) -> None:
        if self.is_ended:
            raise SessionEndedError(
                "this session's request or block has ended, and its connection was given back. A "
                "background task, or another task, opens a session of its own: 'async with "
                "session_scope(app, tenant_id) as session'; a response that streams from the "
                "database takes StreamingSessionDep"
            )

    async def interrupt(self) -> None:
        """With psycopg, ask the server to end what other tasks do: closing would wait for that.

        With asyncpg it does not wait, and they lose their connection.
        """
        drivers = [one.driver_connection for one in map(_adapted_psycopg, self.connections) if one]
        if at_work := [one for one in drivers if one.lock.locked()]:
            await finish(_cancel(at_work))

    def drop(self) -> None:
        """Close what connections are left, with whatever another task is doing on them."""
        for connection in list(self.connections):
            with _between_statements(connection):
                if not connection.closed:
                    connection.invalidate()
                    connection.close()


@contextmanager
def _between_statements(connection: Connection) -> Generator[None]:
    """With psycopg, wait for another task's statement and let no other one begin.

    Its ``close()`` does neither, and closes a descriptor that the event loop still watches: the
    next socket gets the same number, and fails, or waits for ever. asyncpg's transport is the
    loop's own.
    """
    adapted = _adapted_psycopg(connection)
    if adapted is None:
        yield
        return
    adapted.run_async(_acquire)
    try:
        yield
    finally:
        adapted.driver_connection.lock.release()


def _adapted_psycopg(connection: Connection) -> Any:
    """Return psycopg's connection as SQLAlchemy adapts it; None for another driver's, or none."""
    if connection.closed or connection.invalidated or connection.dialect.driver != "psycopg":
        return None
    return connection.connection.dbapi_connection


async def _acquire(driver: Any) -> None:
    await driver.lock.acquire()


async def _cancel(drivers: list[Any]) -> None:
    """Ask for the end of statements; where that fails they are waited for.

    A server that has answered means no later statement, such as one of the connection's next user.
    """
    for one in drivers:
        with suppress(Exception):
            await one.cancel_safe(timeout=_CANCEL_WITHIN)


class _Closing:
    """Closes a result, once; it would keep its connection, which has this as a listener."""

    def __init__(self, result: Result[Any]) -> None:
        self._results = [result]

    def __call__(self, _: Connection) -> None:
        while self._results:
            self._results.pop().close()


@event.listens_for(EndingSession, "after_begin")
def _after_begin(session: EndingSession, _: SessionTransaction, connection: Connection) -> None:
    session.connections.add(connection)
    if session.is_ended:  # while another task waited for this connection
        connection.close()
        session.refuse_if_ended()


class open_session(AbstractAsyncContextManager["AsyncSession"]):  # noqa: N801 - as `asyncio.timeout`
    """Open a session, scoped to a tenant unless that is None; close and end it afterwards.

    Its connections are given back in any case, also when a task that the block has left behind is
    in the middle of a statement, which is ended.
    """

    def __init__(
        self, sessionmaker: async_sessionmaker[AsyncSession], tenant: UUID | str | None
    ) -> None:
        self._opening: AbstractAsyncContextManager[AsyncSession] = (
            sessionmaker() if tenant is None else tenant_scope(sessionmaker, tenant)
        )

    async def __aenter__(self) -> AsyncSession:
        self._session = await self._opening.__aenter__()
        return self._session

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A factory that somebody put in the place of ours makes sessions of another class.
        ending = getattr(self._session, "sync_session", None)
        try:
            try:
                if isinstance(ending, EndingSession):
                    ending.is_ended = True
                    await ending.interrupt()
            finally:
                await self._opening.__aexit__(exc_type, exc, traceback)
        except BaseException as error:
            # A cancellation may be raised instead of what closing failed with.
            if isinstance(ending, EndingSession):
                await finish(self._session.run_sync(lambda _: ending.drop()))
            if exc is None or not isinstance(error, Exception):
                raise
