"""``def`` endpoints and dependencies, which run in threads that nothing can interrupt."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID  # noqa: TC003 - FastAPI reads it from the signatures

import anyio.from_thread
import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from harness.faults import Left, left_behind
from harness.serving import listening, make_app, serving
from harness.tenants import World, tenant_in_force, visible
from mgf.fastapi.db import (
    CancelOnDisconnect,
    SessionEndedError,
    committing,
    current_tenant_id,
    session_scope,
    tenant_session_from,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator

    from sqlalchemy import URL
    from starlette.types import ASGIApp, Receive, Scope, Send

INSERT = text("INSERT INTO invoice (note) VALUES ('new')")
SLEEP = text("SELECT pg_sleep(3600)")
SLEEPING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = $1"
run = anyio.from_thread.run


def get_tenant(x_tenant_id: Annotated[UUID, Header()]) -> UUID:
    return x_tenant_id


get_tenant_session = tenant_session_from(get_tenant)
TenantSessionDep = Annotated[AsyncSession, Depends(get_tenant_session, scope="function")]
TenantStreamDep = Annotated[AsyncSession, Depends(get_tenant_session, scope="request")]
TenantTransactionDep = Annotated[
    AsyncSession, Depends(committing(get_tenant_session), scope="function")
]
router = APIRouter()
ends: list[UUID | None] = []


async def see(session: AsyncSession) -> list[Any]:
    return [await visible(session), str(await tenant_in_force(session)), str(current_tenant_id())]


def get_seen(session: TenantSessionDep) -> Iterator[list[Any]]:
    yield run(see, session)
    ends.append(current_tenant_id())


@router.get("/seen")
def seen(
    session: TenantSessionDep,
    before: Annotated[list[Any], Depends(get_seen, scope="function")],
) -> list[Any]:
    return [*before, *run(see, session), str(current_tenant_id())]


@router.post("/written")
def write(session: TenantTransactionDep) -> None:
    run(session.execute, INSERT)


@router.post("/background")
def write_later(
    request: Request, tenant: Annotated[UUID, Depends(get_tenant)], tasks: BackgroundTasks
) -> None:
    tasks.add_task(write_in_thread, request.app, tenant)


def write_in_thread(app: FastAPI, tenant: UUID) -> None:
    async def write() -> None:
        async with session_scope(app, tenant) as session:
            await session.execute(INSERT)
            await session.commit()

    run(write)


@router.get("/stream")
def stream(session: TenantStreamDep) -> StreamingResponse:
    def parts() -> Generator[str]:
        yield from run(visible, session)

    return StreamingResponse(parts())


@router.get("/without-loop")
def without_loop(session: TenantSessionDep) -> None:
    """What somebody tries who has read SQLAlchemy's pages for threads."""
    session.sync_session.execute(INSERT)


reached, goes_on = threading.Event(), threading.Event()
outcomes: list[BaseException | None] = []


@router.get("/asleep")
def sleep(session: TenantSessionDep) -> None:
    try:
        run(session.execute, SLEEP)
    except BaseException as exc:
        outcomes.append(exc)
        raise


@router.get("/late/{what}")
def go_on(what: str, session: TenantSessionDep) -> None:
    """Work that was begun, and goes on when the client has gone."""
    run(session.execute, INSERT)
    reached.set()
    goes_on.wait(60)
    try:
        if what == "commit":
            run(session.commit)
        else:
            run(session.execute, INSERT)
    except BaseException as exc:
        outcomes.append(exc)
        raise
    outcomes.append(None)


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(world: World, request: pytest.FixtureRequest) -> URL:
    return world.app.set(drivername=f"postgresql+{request.param}")


def of(tenant: UUID) -> dict[str, str]:
    return {"X-Tenant-Id": str(tenant)}


async def assert_seen(client: Any, world: World, a: list[str]) -> None:
    for tenant, own in ((world.b, ["b1", "b2"]), (world.a, a)):
        answer = await client.get("/seen", headers=of(tenant))
        once = [own, str(tenant), str(tenant)]
        assert answer.json() == [*once, *once, str(tenant)]


async def test_threads_see_and_write_the_rows_of_their_own_tenant(url: URL, world: World) -> None:
    ends.clear()
    async with serving(make_app(router, url, require_tenant=True)) as client:
        await assert_seen(client, world, ["a1", "a2"])
        assert ends == [world.b, world.a]
        for path in ("/written", "/background"):
            assert (await client.post(path, headers=of(world.a))).status_code == 200
        await assert_seen(client, world, ["a1", "a2", "new", "new"])
        assert (await client.get("/stream", headers=of(world.b))).text == "b1b2"
    assert await world.notes(world.b) == ["b1", "b2"]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_a_session_that_is_used_without_its_loop_is_an_error_and_leaves_nothing(
    url: URL, world: World
) -> None:
    app = make_app(router, url, require_tenant=True)
    async with serving(app) as client:
        for _ in range(2):
            await assert_seen(client, world, ["a1", "a2"])
            answer = await client.get("/without-loop", headers=of(world.a))
            assert answer.status_code == 500
        await assert_seen(client, world, ["a1", "a2"])
        assert await left_behind(app.state.mgf_db_engine, world.owner, patience=60) == Left(0, 0)


class Noting:
    """Notes the end of a request for a path."""

    def __init__(self, app: ASGIApp, path: str, has_ended: asyncio.Event) -> None:
        self.app = app
        self.path = path
        self.has_ended = has_ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            if scope.get("path") == self.path:
                self.has_ended.set()


@asynccontextmanager
async def left_by_its_client(
    url: URL, world: World, path: str, middlewares: list[Any]
) -> AsyncGenerator[tuple[FastAPI, httpx.AsyncClient, asyncio.StreamWriter, asyncio.Event]]:
    has_ended = asyncio.Event()
    app = make_app(router, url, require_tenant=True, pool_timeout=60)
    for one in middlewares:
        app.add_middleware(one)
    app.add_middleware(Noting, path=path, has_ended=has_ended)
    outcomes.clear()
    reached.clear()
    goes_on.clear()
    async with listening(app) as port:
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base, timeout=60) as client:
            await assert_seen(client, world, ["a1", "a2"])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"GET {path} HTTP/1.1\r\nHost: test\r\nX-Tenant-Id: {world.a}\r\n\r\n"
        writer.write(head.encode())
        try:
            async with httpx.AsyncClient(base_url=base, timeout=60) as client:
                yield app, client, writer, has_ended
        finally:
            goes_on.set()


MIDDLEWARES = pytest.mark.parametrize("middlewares", [[], [CancelOnDisconnect]])


@MIDDLEWARES
async def test_a_client_that_leaves_a_thread_in_mid_statement(
    url: URL, world: World, middlewares: list[Any]
) -> None:
    """A cancelled request ends its session, and with it the statement."""
    async with left_by_its_client(url, world, "/asleep", middlewares) as (app, client, writer, end):
        async with asyncio.timeout(60):
            while not (pids := await world.truth(SLEEPING, world.owner.database)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        writer.transport.abort()
        if not middlewares:
            await world.truth("SELECT pg_cancel_backend($1)", *pids)
        await asyncio.wait_for(end.wait(), 60)
        assert await left_behind(app.state.mgf_db_engine, world.owner, patience=60) == Left(0, 0)
        await assert_seen(client, world, ["a1", "a2"])


@pytest.mark.parametrize("path", ["/late/statement", "/late/commit"])
async def test_a_thread_that_goes_on_in_a_cancelled_request_finds_its_session_ended(
    url: URL, world: World, path: str
) -> None:
    cancel = [CancelOnDisconnect]
    async with left_by_its_client(url, world, path, cancel) as (app, client, writer, end):
        await asyncio.to_thread(reached.wait, 60)
        writer.transport.abort()
        await asyncio.wait_for(end.wait(), 60)
        # The one connection is another tenant's by now.
        async with session_scope(app, world.b) as other:
            assert await visible(other) == ["b1", "b2"]
            goes_on.set()
            async with asyncio.timeout(60):
                while not outcomes:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert await visible(other) == ["b1", "b2"]
        assert [type(one) for one in outcomes] == [SessionEndedError]
        assert await left_behind(app.state.mgf_db_engine, world.owner, patience=60) == Left(0, 0)
        await assert_seen(client, world, ["a1", "a2"])
