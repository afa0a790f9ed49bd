"""Sessions of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection  # noqa: TC002 - FastAPI reads it from the signature

from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker


async def get_session(request: HTTPConnection) -> AsyncGenerator[AsyncSession]:
    """Yield one session for a request, and close it afterwards; for ``Depends``.

    Commit and rollback are the endpoint's business: what was not committed is rolled back.

    Args:
        request: the request, or the WebSocket, whose application `setup_db` is active for.

    Raises:
        AppConfigError: it is not.
    """
    sessionmaker: async_sessionmaker[AsyncSession] | None = getattr(
        request.app.state, "mgf_db_sessionmaker", None
    )
    if sessionmaker is None:
        raise AppConfigError(
            "this application has no database: enter setup_db(app, database_url=...) in its "
            "lifespan, and make sure that the lifespan runs (a mounted sub-application has a "
            "state of its own, and httpx.ASGITransport runs no lifespan)"
        )
    async with sessionmaker() as session:
        yield session
