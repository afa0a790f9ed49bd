"""Figures of a connection pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import QueuePool

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


def pool_figures(engine: AsyncEngine) -> dict[str, int]:
    """Return how full the engine's pool is, as plain numbers for a metrics library.

    Nothing is sent and nothing waited for. The keys:

    ``size``: connections that the pool keeps;
    ``limit``: connections that it opens at most; missing when it is unlimited;
    ``checked_out``: connections in use;
    ``checked_in``: open connections that wait to be used;
    ``overflow``: open connections beyond ``size``.

    Empty for a pool that counts nothing, such as ``NullPool`` and ``StaticPool``.
    """
    pool = engine.pool
    if not isinstance(pool, QueuePool):
        return {}
    figures = {
        "size": pool.size(),
        "checked_out": pool.checkedout(),
        "checked_in": pool.checkedin(),
        # Below zero until as many have been opened as are kept.
        "overflow": max(0, pool.overflow()),
    }
    # No public name tells it. Where this one is gone, the limit is not known.
    overflow: int | None = getattr(pool, "_max_overflow", None)
    if overflow is not None and overflow >= 0 and pool.size() > 0:
        figures["limit"] = pool.size() + overflow
    return figures


def is_full(engine: AsyncEngine) -> bool:
    """Say whether the next checkout would wait for a connection to come back."""
    figures = pool_figures(engine)
    return "limit" in figures and figures["checked_out"] >= figures["limit"]
