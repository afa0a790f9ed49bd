"""Clients that go away while the COMMIT of their request is on its way, or its answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID  # noqa: TC003 - FastAPI reads it from the signatures

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.middleware.base import BaseHTTPMiddleware

from harness.faults import Left, left_behind
from harness.proxy import proxied
from harness.serving import listening, make_app
from harness.tenants import World, visible
from mgf.fastapi.db import (
    CancelOnDisconnect,
    committing,
    pool_figures,
    session_scope,
    tenant_from_header,
    tenant_session_from,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import URL
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

get_tenant = tenant_from_header()
get_tenant_session = tenant_session_from(get_tenant)
TenantSessionDep = Annotated[AsyncSession, Depends(get_tenant_session, scope="function")]
TenantStreamDep = Annotated[AsyncSession, Depends(get_tenant_session, scope="request")]
TenantTransactionDep = Annotated[
    AsyncSession, Depends(committing(get_tenant_session), scope="function")
]
INSERT = text("INSERT INTO invoice (note) VALUES ('new')")
router = APIRouter()


async def pass_on(request: Request, call_next: Any) -> Any:
    return await call_next(request)


@router.get("/notes")
async def notes(session: TenantSessionDep) -> list[str]:
    return await visible(session)


@router.post("/dependency")
async def commit_by_dependency(session: TenantTransactionDep) -> None:
    await session.execute(INSERT)


@router.post("/endpoint")
async def commit(session: TenantSessionDep) -> None:
    await session.execute(INSERT)
    await session.commit()
    assert "new" in await visible(session)


@router.post("/stream")
async def commit_in_a_stream(session: TenantStreamDep) -> StreamingResponse:
    async def parts() -> AsyncGenerator[bytes]:
        yield b"first"
        await session.execute(INSERT)
        await session.commit()
        assert "new" in await visible(session)
        yield b"last"

    return StreamingResponse(parts())


@router.post("/background")
async def commit_in_the_background(
    request: Request, tenant: Annotated[UUID, Depends(get_tenant)], background: BackgroundTasks
) -> None:
    background.add_task(write, request.app, tenant)


@router.post("/background/of-a-stream")
async def commit_in_the_background_of_a_stream(
    request: Request, tenant: Annotated[UUID, Depends(get_tenant)], background: BackgroundTasks
) -> StreamingResponse:
    async def parts() -> AsyncGenerator[bytes]:
        for note in await visible_to(request.app, tenant):
            yield note.encode()

    background.add_task(write, request.app, tenant)
    return StreamingResponse(parts())


async def visible_to(app: FastAPI, tenant: UUID) -> list[str]:
    async with session_scope(app, tenant) as session:
        return await visible(session)


async def write(app: FastAPI, tenant: UUID) -> None:
    async with session_scope(app, tenant) as session:
        await session.execute(INSERT)
        await session.commit()
        assert "new" in await visible(session)


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(world: World, request: pytest.FixtureRequest) -> URL:
    return world.app.set(drivername=f"postgresql+{request.param}")


class Noting:
    """Notes that the client of a POST has gone, and that its request has ended."""

    def __init__(self, app: ASGIApp, has_gone: asyncio.Event, has_ended: asyncio.Event) -> None:
        self.app = app
        self.has_gone = has_gone
        self.has_ended = has_ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") != "POST":
            await self.app(scope, receive, send)
            return

        async def noting() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.has_gone.set()
            return message

        try:
            await self.app(scope, noting, send)
        finally:
            self.has_ended.set()


CANCEL: tuple[Any, dict[str, Any]] = (CancelOnDisconnect, {})
BASE: tuple[Any, dict[str, Any]] = (BaseHTTPMiddleware, {"dispatch": pass_on})
NO_CANCEL: list[tuple[Any, dict[str, Any]]] = []
BY_TASK, BY_ANYIO = [CANCEL], [BASE, CANCEL]  # the last one is the outermost
NEW = ["a1", "a2", "new"]
OWN = {"a": ["a1", "a2"], "b": ["b1", "b2"]}


@pytest.mark.parametrize("answer", [False, True], ids=["commit", "answer"])
@pytest.mark.parametrize(
    ("path", "middlewares"),
    [
        ("/dependency", NO_CANCEL),
        ("/dependency", BY_TASK),
        ("/dependency", BY_ANYIO),
        ("/endpoint", BY_ANYIO),
        ("/stream", NO_CANCEL),
        ("/stream", BY_TASK),
        ("/background", BY_TASK),
        ("/background/of-a-stream", NO_CANCEL),
    ],
)
async def test_a_client_that_leaves_at_the_commit(
    url: URL, world: World, path: str, middlewares: list[Any], answer: bool
) -> None:
    """The row is there or not, and the connection's next user is its own tenant only.

    Held is the COMMIT, which the server may get at last, or its answer: then the row is there.
    """
    has_gone, has_ended = asyncio.Event(), asyncio.Event()
    async with proxied(url) as proxy:
        app = make_app(router, proxy.url, pool_timeout=60)
        for one, options in middlewares:
            app.add_middleware(one, **options)
        app.add_middleware(Noting, has_gone=has_gone, has_ended=has_ended)
        async with listening(app) as port:
            assert await own_notes(port, world) == OWN
            proxy.hold_once(b"COMMIT", answer=answer)
            try:
                writer = await post(port, path, world.a)
                await asyncio.wait_for(proxy.has_held.wait(), 60)
                writer.transport.abort()
                is_cancelled = not path.startswith("/background") and (
                    middlewares != NO_CANCEL or path == "/stream"
                )
                if is_cancelled:
                    await asyncio.wait_for(has_gone.wait(), 60)
                if is_cancelled and middlewares == BY_TASK:
                    # A network that is silent for long keeps neither the request nor its place.
                    await asyncio.wait_for(has_ended.wait(), 60)
                    assert pool_figures(app.state.mgf_db_engine)["checked_out"] == 0
            finally:
                proxy.release_answers()
            await asyncio.wait_for(has_ended.wait(), 60)
            engine = app.state.mgf_db_engine
            assert await left_behind(engine, world.owner, patience=60) == Left(0, 0)
            written = await world.notes(world.a)
            assert written in ([["a1", "a2"]] if is_cancelled and not answer else []) + [NEW]
            assert await own_notes(port, world) == {"a": written, "b": ["b1", "b2"]}


async def post(port: int, path: str, tenant: UUID) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nX-Tenant-Id: {tenant}\r\n\r\n"
    writer.write(head.encode())
    return writer


async def own_notes(port: int, world: World) -> dict[str, list[str]]:
    """What each tenant sees, the other one first."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        return {
            name: (await client.get("/notes", headers={"X-Tenant-Id": str(tenant)})).json()
            for name, tenant in (("b", world.b), ("a", world.a))
        }
