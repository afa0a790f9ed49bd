"""Ask a run, from another thread, to end: what it waits for now, and what it would do next."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy import Connection


class Stop:
    """A request to end, which the run itself carries out by raising ``asyncio.CancelledError``."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._interrupts: list[Callable[[], None]] = []

    def ask(self) -> None:
        """Ask the run to end, and interrupt what it waits for; again, if it went on waiting."""
        self._asked.set()
        for interrupt in tuple(self._interrupts):
            interrupt()

    def check(self) -> None:
        self.sleep(0)

    def sleep(self, seconds: float) -> None:
        if self._asked.wait(seconds):
            raise asyncio.CancelledError

    @contextmanager
    def interrupting(self, interrupt: Callable[[], None]) -> Generator[None]:
        """Call ``interrupt``, in any thread and perhaps several times, when a stop is asked for."""
        self._interrupts.append(interrupt)
        try:
            self.check()
            yield
        finally:
            self._interrupts.remove(interrupt)


# Set in the context in which a coroutine lets a thread run Alembic; elsewhere nobody asks.
stop_of_run: ContextVar[Stop] = ContextVar("stop_of_run")


def current_stop() -> Stop:
    return stop_of_run.get(None) or Stop()


@contextmanager
def interruptible(connection: Connection) -> Generator[None]:
    """Let a stop end the statement that runs, and with a synchronous driver prevent the next one.

    psycopg2 has ``cancel()`` for it, sqlite3 and aiosqlite ``interrupt()``. The other async
    drivers end with the task that runs them. Where a synchronous one has neither, the running
    statement comes to its end.
    """
    stop = current_stop()
    if not connection.dialect.is_async:

        def check(*_: Any) -> None:
            stop.check()

        event.listen(connection, "before_cursor_execute", check)
    interrupt = _interrupt_of(connection)

    def interrupt_running() -> None:
        with suppress(Exception):  # it was closed just now: there is nothing left to end
            interrupt()

    with stop.interrupting(interrupt_running):
        yield


def _interrupt_of(connection: Connection) -> Callable[[], object]:
    driver: Any = connection.connection.driver_connection
    interrupt: Callable[[], Any] | None = getattr(driver, "interrupt", None)
    if interrupt is None:
        return _nothing if connection.dialect.is_async else getattr(driver, "cancel", _nothing)
    if connection.dialect.is_async:
        loop = asyncio.get_running_loop()
        return lambda: asyncio.run_coroutine_threadsafe(interrupt(), loop)
    return interrupt


def _nothing() -> None:
    pass


def pause(connection: Connection, seconds: float) -> None:
    """Sleep, while the event loop of an async driver goes on."""
    if connection.dialect.is_async:
        adapted: Any = connection.connection.dbapi_connection
        adapted.run_async(partial(_sleep, seconds))
    else:
        current_stop().sleep(seconds)


async def _sleep(seconds: float, _connection: object) -> None:
    await asyncio.sleep(seconds)
