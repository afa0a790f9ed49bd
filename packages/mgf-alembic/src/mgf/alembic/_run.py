"""Run a coroutine from synchronous code, whatever this thread's event loop does."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


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
    with ThreadPoolExecutor(1, thread_name_prefix="mgf-alembic") as executor:
        result = executor.submit(contextvars.copy_context().run, _run, loop, main)
        try:
            result.result()
        except BaseException:
            with suppress(RuntimeError):  # the loop is closed: main() has raised this itself
                loop.call_soon_threadsafe(_cancel_all, loop)
            raise


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run(loop: asyncio.AbstractEventLoop, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    # asyncio.run() would unset the loop that this thread holds for asyncio.get_event_loop().
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
