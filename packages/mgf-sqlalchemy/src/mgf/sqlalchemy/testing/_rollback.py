"""A transaction around a test, undone at its end whatever was committed in it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from sqlalchemy import event
from sqlalchemy.exc import InterfaceError
from sqlalchemy.ext.asyncio import AsyncEngine

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.errors import TenantScopeError, sqlstate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import Connection
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker

__all__ = ["rolled_back"]

_NOTE: Final = (
    "What is rolled back is on one connection, and all sessions share it: they take turns, and of "
    "their transactions the one that began last ends first. Where they have to overlap, let the "
    "commits be real: mgf_committing_sessionmaker, or a sessionmaker outside of rolled_back()."
)
_NO_SUCH_SAVEPOINT: Final = "3B001"


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

    One connection has its limits. Its sessions take turns: one that is at work in the scope of a
    tenant, or in a transaction, keeps out those of other tenants (`TenantScopeError`), and
    statements cannot run at the same time. Transactions nest: the one that began last ends first,
    and a rollback undoes what others have committed since it began. Errors of that kind have a
    note that says so. What PostgreSQL does at COMMIT does not happen: deferred
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
        # Engines have this event, and connections have not.
        explain = partial(_explain, connection.sync_connection)
        event.listen(engine.sync_engine, "handle_error", explain)
        try:
            yield connection
        finally:
            event.remove(engine.sync_engine, "handle_error", explain)
            sessionmaker.kw.clear()
            sessionmaker.kw.update(before)


def _explain(shared: Connection | None, context: ExceptionContext) -> None:
    """Say with an error of sessions that got in each other's way why they did."""
    error = context.sqlalchemy_exception or context.original_exception
    if context.connection is shared and (
        isinstance(error, InterfaceError | TenantScopeError)
        or sqlstate(error) == _NO_SUCH_SAVEPOINT
    ):
        error.add_note(_NOTE)
