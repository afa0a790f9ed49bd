"""Sessions that refuse work once their request or block has ended."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from mgf.common.exceptions import OperationError
from mgf.sqlalchemy import tenant_scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from uuid import UUID

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker


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

    def get_bind(self, *args: Any, **kwargs: Any) -> Engine | Connection:
        """Return the engine as SQLAlchemy does, which asks before every use of a connection."""
        if self.is_ended:
            raise SessionEndedError(
                "this session's request or block has ended, and its connection was given back. A "
                "background task, or another task, opens a session of its own: 'async with "
                "session_scope(app, tenant_id) as session'; a response that streams from the "
                "database takes StreamingSessionDep"
            )
        return super().get_bind(*args, **kwargs)


@asynccontextmanager
async def open_session(
    sessionmaker: async_sessionmaker[AsyncSession], tenant: UUID | str | None
) -> AsyncGenerator[AsyncSession]:
    """Open a session, scoped to a tenant unless that is None; close and end it afterwards."""
    opening = sessionmaker() if tenant is None else tenant_scope(sessionmaker, tenant)
    async with opening as session:
        try:
            yield session
        finally:
            # A factory that somebody put in the place of ours makes sessions of another class.
            ending = getattr(session, "sync_session", None)
            if isinstance(ending, EndingSession):
                ending.is_ended = True
