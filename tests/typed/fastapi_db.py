"""How users annotate with `mgf.fastapi.db`, for type checkers; nothing here is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, assert_type

from fastapi import Depends, FastAPI, WebSocket
from sqlalchemy.ext.asyncio import AsyncSession

from mgf.fastapi.db import (
    SessionDep,
    StreamingSessionDep,
    TransactionDep,
    committing,
    current_tenant_id,
    get_session_for,
    session_scope,
    setup_db,
    tenant_from_claim,
    tenant_from_header,
    tenant_from_path,
    tenant_from_subdomain,
    tenant_session_from,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from typing import Any
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection
    from starlette.requests import HTTPConnection

get_tenant_session = tenant_session_from(tenant_from_header())
TenantSession = Annotated[AsyncSession, Depends(get_tenant_session, scope="function")]
TenantTransaction = Annotated[
    AsyncSession, Depends(committing(get_tenant_session), scope="function")
]
ReportsSession = Annotated[AsyncSession, Depends(get_session_for("reports"), scope="function")]


async def endpoint(
    session: SessionDep,
    stream: StreamingSessionDep,
    transaction: TransactionDep,
    tenant: TenantSession,
    tenant_transaction: TenantTransaction,
    reports: ReportsSession,
) -> None:
    assert_type(session, AsyncSession)
    assert_type(stream, AsyncSession)
    assert_type(transaction, AsyncSession)
    assert_type(tenant, AsyncSession)
    assert_type(tenant_transaction, AsyncSession)
    assert_type(reports, AsyncSession)


async def get_claims() -> Mapping[str, Any] | None:
    return None


async def look_up(_label: str, _request: HTTPConnection) -> UUID | None:
    return None


def look_up_at_once(_label: str, _request: HTTPConnection) -> UUID | None:
    return None


async def from_anywhere(_claims: Annotated[Mapping[str, Any] | None, Depends(get_claims)]) -> UUID:
    raise NotImplementedError


def as_text() -> str:
    raise NotImplementedError


async def perhaps() -> UUID | None:
    raise NotImplementedError


RESOLVED = [
    tenant_session_from(tenant_from_path("tenant_id")),
    tenant_session_from(tenant_from_claim(get_claims)),
    tenant_session_from(tenant_from_subdomain("example.com", look_up)),
    tenant_session_from(tenant_from_subdomain("example.com", look_up_at_once), name="reports"),
    tenant_session_from(from_anywhere),
    tenant_session_from(as_text),
    tenant_session_from(perhaps),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
]


async def job(app: FastAPI, websocket: WebSocket, tenant_id: UUID, lost: UUID | None) -> None:
    async with session_scope(app, tenant_id) as session:
        assert_type(session, AsyncSession)
    async with session_scope(websocket, str(tenant_id), name="reports"):
        assert_type(current_tenant_id(), "UUID | None")
    session_scope(app, lost)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def lifespan(app: FastAPI) -> AsyncGenerator[Mapping[str, Any]]:
    async def is_migrated(_connection: AsyncConnection) -> bool:
        return True

    async with setup_db(
        app, database_url="sqlite://", wait=1, check_migrations=is_migrated, pool_size=2
    ) as state:
        yield state
