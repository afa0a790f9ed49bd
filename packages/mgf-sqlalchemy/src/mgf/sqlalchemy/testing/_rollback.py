"""A transaction around a test, undone at its end whatever was committed in it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncEngine

from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker

__all__ = ["rolled_back"]


@asynccontextmanager
async def rolled_back(
    sessionmaker: async_sessionmaker[AsyncSession],
) -> AsyncGenerator[AsyncConnection]:
    """Undo, at the end of a block, all that sessions of a sessionmaker did in it.

    During the block the sessionmaker makes its sessions on one connection, inside a transaction
    that is never committed: what they commit is a savepoint. Code under test keeps the
    sessionmaker that it has, one of the whole application too, and tenant scopes work. ::

        async with rolled_back(sessionmaker):
            await code_under_test(sessionmaker)

    One connection has its limits. Its sessions take turns: one that is in the scope of a tenant,
    or in a transaction, keeps out those of other tenants (`TenantScopeError`), and statements
    cannot run at the same time. What PostgreSQL does at COMMIT does not happen: deferred
    constraints, NOTIFY; ``now()`` stands still, and nobody else sees the rows. Sequences go on.

    Args:
        sessionmaker: one whose sessions are on an engine, of the running event loop.

    Raises:
        AppConfigError: it has no engine, or an engine for each mapper.
    """
    before = dict(sessionmaker.kw)
    engine = before.get("bind")
    if not isinstance(engine, AsyncEngine) or before.get("binds"):
        raise AppConfigError(
            "rolled_back() takes a sessionmaker whose sessions are all on one AsyncEngine, as "
            "create_sessionmaker(engine) makes it"
        )
    async with engine.connect() as connection:
        await connection.begin()
        sessionmaker.configure(bind=connection, join_transaction_mode="create_savepoint")
        try:
            yield connection
        finally:
            sessionmaker.kw.clear()
            sessionmaker.kw.update(before)
