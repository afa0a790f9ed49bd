"""WebSockets that work for one tenant and then another, and whose client vanishes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import pytest
from fastapi import APIRouter, Depends, WebSocket
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import connect

from harness.faults import Left, left_behind
from harness.serving import listening, make_app
from harness.tenants import World, tenant_in_force, visible
from mgf.fastapi.db import (
    CancelOnDisconnect,
    SessionDep,
    current_tenant_id,
    session_scope,
    tenant_from_header,
    tenant_session_from,
)
from mgf.sqlalchemy import tenant_session

if TYPE_CHECKING:
    from sqlalchemy import URL

get_tenant_session = tenant_session_from(tenant_from_header())
TenantSessionDep = Annotated[AsyncSession, Depends(get_tenant_session, scope="function")]
INSERT = text("INSERT INTO invoice (note) VALUES ('lost')")
SLEEP = text("SELECT pg_sleep(3600)")
SLEEPING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = $1"

router = APIRouter()


async def see(session: AsyncSession) -> list[Any]:
    return [await visible(session), str(await tenant_in_force(session)), str(current_tenant_id())]


@router.websocket("/dependency")
async def by_dependency(websocket: WebSocket, session: TenantSessionDep) -> None:
    """Its own session for the first tenant, a scope within for others."""
    await websocket.accept()
    async for other in websocket.iter_text():
        seen = await see(session)
        await session.rollback()
        async with session_scope(websocket, other) as scoped:
            seen += await see(scoped)
        seen += await see(session)
        await session.rollback()
        await websocket.send_json(seen)


@router.websocket("/scopes")
async def by_scopes(websocket: WebSocket, session: SessionDep) -> None:
    """One session, in the scope of one tenant after the other."""
    await websocket.accept()
    async for tenant in websocket.iter_text():
        async with tenant_session(session, tenant):
            await session.execute(INSERT)
            seen = await visible(session)
        await session.rollback()
        await websocket.send_json(seen)


@router.websocket("/slow")
async def slowly(websocket: WebSocket, session: SessionDep) -> None:
    await websocket.accept()
    async for tenant in websocket.iter_text():
        async with tenant_session(session, tenant):
            await session.execute(INSERT)
            await session.execute(SLEEP)


@router.websocket("/watched")
async def watched(websocket: WebSocket) -> None:
    """What ends when its client goes, as a handler does that waits for both."""
    await websocket.accept()
    work = asyncio.create_task(work_for(websocket, await websocket.receive_text()))
    try:
        await websocket.receive_text()
    except WebSocketDisconnect:
        work.cancel()
        await asyncio.wait({work})


@router.websocket("/watched/group")
async def watched_by_a_group(websocket: WebSocket) -> None:
    await websocket.accept()
    tenant = await websocket.receive_text()
    async with anyio.create_task_group() as group:
        group.start_soon(work_for, websocket, tenant)
        try:
            await websocket.receive_text()
        except WebSocketDisconnect:
            group.cancel_scope.cancel()


async def work_for(websocket: WebSocket, tenant: str) -> None:
    async with session_scope(websocket, tenant) as session:
        await session.execute(INSERT)
        await session.execute(SLEEP)


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(world: World, request: pytest.FixtureRequest) -> URL:
    return world.app.set(drivername=f"postgresql+{request.param}")


async def test_a_websocket_of_one_tenant_works_for_another(url: URL, world: World) -> None:
    a, b = str(world.a), str(world.b)
    own, others = [["a1", "a2"], a, a], [["b1", "b2"], b, b]
    app = make_app(router, url, require_tenant=True)
    async with listening(app) as port:
        place = f"ws://127.0.0.1:{port}/dependency"
        async with connect(place, additional_headers={"X-Tenant-Id": a}) as socket:
            for _ in range(2):
                await socket.send(b)
                assert json.loads(await socket.recv()) == [*own, *others, *own]
        assert await left_behind(app.state.mgf_db_engine, world.owner, patience=60) == Left(0, 0)


async def test_one_session_of_a_websocket_is_in_the_scope_of_one_tenant_after_the_other(
    url: URL, world: World
) -> None:
    app = make_app(router, url, require_tenant=True)
    async with listening(app) as port, connect(f"ws://127.0.0.1:{port}/scopes") as socket:
        for tenant, own in ((world.a, ["a1", "a2"]), (world.b, ["b1", "b2"])) * 2:
            await socket.send(str(tenant))
            assert json.loads(await socket.recv()) == [*own, "lost"]
    assert [await world.notes(one) for one in (world.a, world.b)] == [["a1", "a2"], ["b1", "b2"]]


@pytest.mark.parametrize("middleware", [[], [CancelOnDisconnect]])
@pytest.mark.parametrize("path", ["slow", "watched", "watched/group"])
async def test_a_client_that_vanishes_leaves_nothing_to_the_next(
    url: URL, world: World, path: str, middleware: list[Any]
) -> None:
    """A handler that does not watch for it goes on until its statement ends.

    That of one that is cancelled by anyio is left running on the server.
    """
    app = make_app(router, url, require_tenant=True, pool_timeout=60)
    for one in middleware:
        app.add_middleware(one)
    async with listening(app) as port:
        socket = await connect(f"ws://127.0.0.1:{port}/{path}")
        await socket.send(str(world.a))
        async with asyncio.timeout(60):
            while not (pids := await world.truth(SLEEPING, world.owner.database)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        socket.transport.abort()
        if path != "watched":
            await world.truth("SELECT pg_cancel_backend($1)", *pids)
        assert await left_behind(app.state.mgf_db_engine, world.owner, patience=60) == Left(0, 0)
        assert await world.truth(SLEEPING, world.owner.database) == []
        async with connect(f"ws://127.0.0.1:{port}/scopes") as other:
            for tenant, own in ((world.b, ["b1", "b2"]), (world.a, ["a1", "a2"])):
                await other.send(str(tenant))
                assert json.loads(await other.recv()) == [*own, "lost"]
    assert [await world.notes(one) for one in (world.a, world.b)] == [["a1", "a2"], ["b1", "b2"]]
