"""Cross over from synchronous code to coroutines, and from a coroutine to synchronous code."""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mgf.alembic._stop import Stop, current_stop, stop_of_run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

# Seconds between two requests to stop: a synchronous driver may miss one between two statements.
_ASK_AGAIN = 0.5


def run_coroutine(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run ``main()`` to its end in an event loop of its own.

    Where this thread runs a loop already, a thread of its own takes the new one, with a copy of
    the context variables, and this thread waits for it. Interrupted meanwhile, it cancels
    ``main()`` and waits until that has cleaned up.
    """
    loop = asyncio.new_event_loop()
    if not _is_loop_running():
        _run(loop, main)
        return
    stop = current_stop()
    with ThreadPoolExecutor(1, thread_name_prefix="mgf-alembic") as executor:
        result = executor.submit(_context_of(stop).run, _run, loop, main)
        try:
            result.result()
        except BaseException:
            stop.ask()
            raise


async def run_in_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread of its own, with a copy of the context variables.

    Cancelled meanwhile, it stops what runs there, waits until that has cleaned up, and lets no
    further cancellation come between.
    """
    stop = Stop()
    # The second thread asks for stops, since a driver may connect for it.
    with ThreadPoolExecutor(2, thread_name_prefix="mgf-alembic") as executor:
        thread = executor.submit(_context_of(stop).run, function)
        try:
            return await _result(asyncio.wrap_future(thread), partial(executor.submit, stop.ask))
        finally:
            if not thread.done():  # this coroutine was given up, by a loop that ended
                stop.ask()


async def _result(future: asyncio.Future[T], stop: Callable[[], object]) -> T:
    try:
        await asyncio.wait([future])
    except asyncio.CancelledError:
        asked = -math.inf
        while not future.done():
            # Who cancels may do it again at every turn of the loop, as anyio does.
            if time.monotonic() - asked > _ASK_AGAIN:
                stop()
                asked = time.monotonic()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future], timeout=_ASK_AGAIN)
        future.exception()  # it was stopped, and how it ended tells nothing
        raise
    return future.result()


def _context_of(stop: Stop) -> contextvars.Context:
    context = contextvars.copy_context()
    context.run(stop_of_run.set, stop)
    return context


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run(loop: asyncio.AbstractEventLoop, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    # asyncio.run() would unset the loop that this thread holds for asyncio.get_event_loop().
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_stoppable(main))


async def _stoppable(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None  # noqa: S101 - for type checkers: a coroutine that runs has one

    def interrupt() -> None:
        with suppress(RuntimeError):  # the loop is closed just now: there is nothing to end
            loop.call_soon_threadsafe(_cancel_once, task)

    with current_stop().interrupting(interrupt):
        await main()


def _cancel_once(task: asyncio.Task[Any]) -> None:
    if not task.cancelling():  # a second time it would interrupt the cleaning up
        task.cancel()
