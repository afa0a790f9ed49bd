"""Work that has to come to its end, however often the one who waits for it is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Do work to its end, as SQLAlchemy closes sessions, and be cancelled only then.

    A scope of anyio that was cancelled cancels whatever its tasks wait for, again and again.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as exc:
            cancelled = exc
    task.result()
    if cancelled is not None:
        raise cancelled
