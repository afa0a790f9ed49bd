"""Sessions that are scoped to the tenant of their request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID  # noqa: TC003 - FastAPI reads it from the signatures below

from fastapi import Depends
from starlette.requests import HTTPConnection  # noqa: TC002 - as above

from mgf.common.exceptions import AppConfigError
from mgf.fastapi.db._current import known_tenant
from mgf.fastapi.db._databases import sessionmaker_of_connection
from mgf.fastapi.db._ended import open_session
from mgf.sqlalchemy import parse_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncSession

    from mgf.fastapi.db._session import SessionDependency

    TenantResolver: TypeAlias = Callable[..., UUID | str] | Callable[..., Awaitable[UUID | str]]


def tenant_session_from(resolver: TenantResolver, *, name: str | None = None) -> SessionDependency:
    """Return a dependency that yields a session scoped to the tenant of its request.

    The session is the dependency's own, never the one of `get_session`, so that two tenants in
    one request do not meet in it. Call this once for a resolver, and give the result a name::

        get_tenant_session = tenant_session_from(tenant_from_header())
        TenantSessionDep = Annotated[AsyncSession, Depends(get_tenant_session, scope="function")]
        TenantTransactionDep = Annotated[
            AsyncSession, Depends(committing(get_tenant_session), scope="function")
        ]

    Until the response has been sent and background tasks have ended, or an exception has left the
    endpoint, `current_tenant_id` returns the tenant; ``request.state.mgf_tenant_id`` has it for
    middlewares and exception handlers, also afterwards.

    Args:
        resolver: a dependency that returns the tenant's id, as the functions ``tenant_from_...``
            make them, or a function of your own, which may have dependencies. To refuse a request
            it raises ``HTTPException``.
        name: of the database, as it was given to `setup_db`.

    Raises:
        AppConfigError: in a request, there is no such database, or the resolver returned
            something else than a UUID, or text of that shape. None is no tenant either.
    """

    async def get_tenant(
        request: HTTPConnection,
        resolved: Any = Depends(resolver),
    ) -> AsyncGenerator[UUID]:
        try:
            tenant = parse_tenant(resolved)
        except ValueError as exc:
            raise AppConfigError(
                f"the tenant resolver {resolver!r} has to return a UUID, or raise an "
                f"HTTPException: {exc}"
            ) from exc
        request.state.mgf_tenant_id = tenant
        with known_tenant(tenant):
            yield tenant

    async def get_tenant_session(
        request: HTTPConnection, tenant: UUID = Depends(get_tenant)
    ) -> AsyncGenerator[AsyncSession]:
        async with open_session(sessionmaker_of_connection(request, name), tenant) as session:
            yield session

    return get_tenant_session
