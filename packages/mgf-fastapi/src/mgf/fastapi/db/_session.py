"""Sessions of requests, and of work outside of them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from mgf.fastapi.db._current import known_tenant
from mgf.fastapi.db._databases import sessionmaker_of_app, sessionmaker_of_connection
from mgf.fastapi.db._ended import open_session
from mgf.sqlalchemy import parse_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager
    from uuid import UUID

    from sqlalchemy.ext.asyncio import async_sessionmaker
    from starlette.applications import Starlette

    SessionDependency: TypeAlias = Callable[..., AsyncGenerator[AsyncSession]]


class _NoTenant(Enum):
    NO_TENANT = "no tenant"


_NO_TENANT: Final = _NoTenant.NO_TENANT


async def get_session(request: HTTPConnection) -> AsyncGenerator[AsyncSession]:
    """Yield one session for a request, and close it afterwards; for ``Depends``.

    Commit and rollback are the endpoint's business: what was not committed is rolled back, and a
    commit after a failed statement is a `TransactionAbortedError`. A statement after the end is a
    `SessionEndedError`. A ``close()`` of the endpoint's own is no end: it gives the connection
    back, and the next statement takes another.

    Args:
        request: the request, or the WebSocket, whose application `setup_db` is active for.

    Raises:
        AppConfigError: it is not.
    """
    async with open_session(sessionmaker_of_connection(request, None), None) as session:
        yield session


@cache  # FastAPI knows a dependency again by its identity
def get_session_for(name: str) -> SessionDependency:
    """Return the dependency that is `get_session` for the database of a name.

    Args:
        name: as it was given to `setup_db`.

    Raises:
        AppConfigError: when a request asks for it, there is no such database.
    """

    async def get_named_session(request: HTTPConnection) -> AsyncGenerator[AsyncSession]:
        async with open_session(sessionmaker_of_connection(request, name), None) as session:
            yield session

    return get_named_session


SessionDep: TypeAlias = Annotated[AsyncSession, Depends(get_session, scope="function")]
StreamingSessionDep: TypeAlias = Annotated[AsyncSession, Depends(get_session, scope="request")]


def session_scope(
    place: Starlette | HTTPConnection,
    tenant_id: UUID | str | Literal[_NoTenant.NO_TENANT] = _NO_TENANT,
    *,
    name: str | None = None,
) -> AbstractAsyncContextManager[AsyncSession]:
    """Open a session outside of a request's own: in a job, a background task, a WebSocket's loop.

    It is closed at the end of the block; what was not committed is rolled back. ::

        async with session_scope(app, tenant_id) as session:
            ...
            await session.commit()

    Args:
        place: the application that `setup_db` is active for, or a request or WebSocket of it.
        tenant_id: as for `mgf.sqlalchemy.tenant_session`. Left out, the session is in no scope;
            None is refused, since a tenant that got lost on its way is no reason to work without.
        name: of the database, as it was given to `setup_db`.

    Raises:
        AppConfigError: the application has no such database.
        ValueError: `tenant_id` is no UUID.
    """
    sessionmaker = (
        sessionmaker_of_connection(place, name)
        if isinstance(place, HTTPConnection)
        else sessionmaker_of_app(place, name)
    )
    if tenant_id is _NO_TENANT:
        return open_session(sessionmaker, None)
    return _open_known(sessionmaker, parse_tenant(tenant_id))


@asynccontextmanager
async def _open_known(
    sessionmaker: async_sessionmaker[AsyncSession], tenant: UUID
) -> AsyncGenerator[AsyncSession]:
    with known_tenant(tenant):
        async with open_session(sessionmaker, tenant) as session:
            yield session
