"""What a request or its client leaves behind, and what of it must not reach another request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable  # noqa: TC003 - FastAPI reads it from signatures
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import anyio
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, IllegalStateChangeError, ResourceClosedError
from sqlalchemy.ext.asyncio import AsyncSession

from harness.proxy import Proxy, proxied
from harness.serving import asking, listening, make_app, serving
from harness.tenants import Invoice, World, visible
from mgf.fastapi.db import (
    CancelOnDisconnect,
    SessionEndedError,
    current_tenant_id,
    install_error_handlers,
    pool_figures,
    session_scope,
    setup_db,
    tenant_from_claim,
    tenant_from_header,
    tenant_from_subdomain,
    tenant_session_from,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from sqlalchemy import URL

get_tenant_session = tenant_session_from(tenant_from_header())
TenantSessionDep = Annotated[AsyncSession, Depends(get_tenant_session, scope="function")]
TenantStreamDep = Annotated[AsyncSession, Depends(get_tenant_session, scope="request")]
router = APIRouter()


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(world: World, request: pytest.FixtureRequest) -> URL:
    return world.app.set(drivername=f"postgresql+{request.param}")


def of(tenant: UUID) -> dict[str, str]:
    return {"X-Tenant-Id": str(tenant)}


@router.get("/notes")
async def notes(session: TenantSessionDep) -> list[str]:
    return await visible(session)


tasks: set[asyncio.Task[Any]] = set()
SLEEP = text("SELECT pg_sleep(3600)")
SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = $1"


def leave_behind(work: Any) -> None:
    tasks.clear()
    tasks.add(asyncio.ensure_future(work))


async def test_a_task_that_is_left_in_mid_query_costs_neither_the_answer_nor_the_connection(
    url: URL, world: World
) -> None:
    """As gather() leaves one, when another of its awaitables has raised."""
    app = make_app(router, url, pool_timeout=60)

    @app.get("/left")
    async def leave(session: TenantSessionDep) -> None:
        leave_behind(session.execute(SLEEP))
        while await world.truth(SLEEPING, world.app.database) == [0]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        raise HTTPException(409)

    async with serving(app) as client:
        assert (await client.get("/left", headers=of(world.a), timeout=60)).status_code == 409
        with pytest.raises(DBAPIError):
            await asyncio.gather(*tasks)
        assert pool_figures(app.state.mgf_db_engine)["checked_out"] == 0
        assert (await client.get("/notes", headers=of(world.b))).json() == ["b1", "b2"]


@router.get("/left/waiting")
async def leave_a_task_that_waits(session: TenantSessionDep) -> None:
    leave_behind(visible(session))
    await asyncio.sleep(0.01)


async def test_a_task_that_is_left_waiting_for_a_connection_gets_none(
    url: URL, world: World
) -> None:
    app = make_app(router, url, pool_timeout=60)
    async with serving(app) as client:
        assert (await client.get("/notes", headers=of(world.a))).status_code == 200
        async with session_scope(app, world.b) as session:
            assert await visible(session) == ["b1", "b2"]
            await client.get("/left/waiting", headers=of(world.a))
        with pytest.raises(SessionEndedError):
            await asyncio.gather(*tasks)
        assert pool_figures(app.state.mgf_db_engine)["checked_out"] == 0


async def test_a_task_that_is_left_in_its_commit_leaves_other_sockets_alone(
    url: URL, world: World
) -> None:
    """The next socket gets the descriptor of the connection that is dropped.

    With psycopg, whose commit is waited for, the block ends after it.
    """
    app = FastAPI()

    async def leave(proxy: Proxy) -> None:
        async with session_scope(app, world.a) as session:
            await visible(session)
            proxy.hold_once(b"COMMIT", answer=True)
            leave_behind(session.commit())
            await proxy.has_held.wait()

    async with (
        proxied(url) as proxy,
        setup_db(app, database_url=proxy.url, pool_size=1, max_overflow=0, pool_timeout=60),
        echoing() as port,
    ):
        leaving = asyncio.create_task(leave(proxy))
        await proxy.has_held.wait()
        try:
            for _ in range(20):
                await asyncio.wait_for(echo(port), 60)
        finally:
            proxy.release_answers()
            (outcome,) = await asyncio.gather(leaving, return_exceptions=True)
            await asyncio.gather(*tasks, return_exceptions=True)
        # psycopg's commit may be over by the time that the server has been asked to end it.
        assert isinstance(outcome, IllegalStateChangeError) or (
            outcome is None and "psycopg" in url.drivername
        )
        assert pool_figures(app.state.mgf_db_engine)["checked_out"] == 0
        async with session_scope(app, world.b) as session:
            assert await visible(session) == ["b1", "b2"]


async def test_a_cancelled_block_gives_back_the_connection_of_a_task_that_it_left(
    url: URL, world: World
) -> None:
    """An anyio scope cancels at every await, and so hides that the session failed to close.

    With psycopg, whose commit is waited for, the block ends after it.
    """
    app = FastAPI()

    async def leave(proxy: Proxy) -> None:
        with anyio.CancelScope() as scope:
            async with session_scope(app, world.a) as session:
                await visible(session)
                proxy.hold_once(b"COMMIT", answer=True)
                leave_behind(session.commit())
                await proxy.has_held.wait()
                scope.cancel()
                await asyncio.Event().wait()

    async with (
        proxied(url) as proxy,
        setup_db(app, database_url=proxy.url, pool_size=1, max_overflow=0, pool_timeout=60),
    ):
        leaving = asyncio.create_task(leave(proxy))
        await proxy.has_held.wait()
        try:
            if "asyncpg" in url.drivername:
                await leaving
                assert pool_figures(app.state.mgf_db_engine)["checked_out"] == 0
        finally:
            proxy.release_answers()
            await leaving
        assert pool_figures(app.state.mgf_db_engine)["checked_out"] == 0
        await asyncio.gather(*tasks, return_exceptions=True)
        async with session_scope(app, world.b) as session:
            assert await visible(session) == ["b1", "b2"]


@asynccontextmanager
async def echoing() -> AsyncGenerator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def echo(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"word\n")
    assert await reader.readline() == b"word\n"
    writer.close()
    await writer.wait_closed()


MANY = text(
    "SELECT g AS id, 'note' AS note, NULL AS country_code FROM generate_series(1, 10000) AS g"
)


@pytest.mark.parametrize("end", ["commit", "rollback", "close", "block"])
@pytest.mark.parametrize("of_objects", [False, True])
async def test_a_result_that_is_still_open_does_not_read_from_the_next_users_connection(
    url: URL, world: World, end: str, of_objects: bool
) -> None:
    app = FastAPI()
    async with setup_db(app, database_url=url, pool_size=1, max_overflow=0):
        scope = session_scope(app, world.a)
        session = await scope.__aenter__()
        statement = select(Invoice).from_statement(MANY) if of_objects else MANY
        result = await session.stream_scalars(statement)
        await anext(result)
        if end == "block":
            await scope.__aexit__(None, None, None)
        else:
            await getattr(session, end)()
        async with session_scope(app, world.b) as other:
            assert await visible(other) == ["b1", "b2"]
            with pytest.raises(ResourceClosedError):
                async for _ in result:
                    pass
            assert await visible(other) == ["b1", "b2"]
        if end != "block":
            await scope.__aexit__(None, None, None)


async def test_an_endpoint_that_yields_is_a_stream(url: URL, world: World) -> None:
    pytest.importorskip("fastapi.sse", reason="this FastAPI has no such endpoints")
    app = make_app(router, url)

    @app.get("/lines")
    async def lines(session: TenantStreamDep) -> AsyncIterable[str]:
        for note in await visible(session):
            yield note

    @app.get("/lines/ended")
    async def lines_of_an_ended_session(session: TenantSessionDep) -> AsyncIterable[str]:
        for note in await visible(session):
            yield note

    async with serving(app) as client:
        answer = await client.get("/lines", headers=of(world.a))
        assert answer.text == '"a1"\n"a2"\n'
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/lines/ended", headers=of(world.a))
        assert (await client.get("/notes", headers=of(world.b))).json() == ["b1", "b2"]


@router.post("/upload")
async def upload(request: Request, session: TenantSessionDep) -> str:
    async for _ in request.stream():
        await asyncio.sleep(0)
    return str(current_tenant_id())


@router.get("/who")
async def who() -> str:
    return str(current_tenant_id())


async def test_the_next_request_of_a_connection_does_not_begin_with_the_tenant_of_the_last(
    world: World,
) -> None:
    """A large body makes uvicorn begin those that follow in the context of the first."""
    async with serving(make_app(router, world.app)) as client:
        first = await client.post("/upload", content=b"x" * 3_000_000, headers=of(world.a))
        following = [(await client.get("/who")).json() for _ in range(2)]
    assert [first.json(), *following] == [str(world.a), "None", "None"]


@router.get("/refused")
async def refuse(session: TenantSessionDep) -> None:
    raise HTTPException(409)


async def test_an_exception_handler_finds_the_tenant_in_the_state_of_the_request(
    world: World,
) -> None:
    app = make_app(router, world.app)

    @app.exception_handler(HTTPException)
    async def answer(request: Request, exc: HTTPException) -> JSONResponse:
        return JSONResponse([str(request.state.mgf_tenant_id), str(current_tenant_id())])

    async with serving(app) as client:
        response = await client.get("/refused", headers=of(world.a))
    assert response.json() == [str(world.a), "None"]


async def test_the_end_of_a_block_is_told_to_copies_of_its_context(world: World) -> None:
    app = FastAPI()
    async with setup_db(app, database_url=world.app):
        async with session_scope(app, world.a):
            async with session_scope(app, world.b):
                copy = copy_context()
                seen = [copy.run(current_tenant_id)]
            seen.append(copy.run(current_tenant_id))
        seen.append(copy.run(current_tenant_id))
    assert seen == [world.b, world.a, None]


@router.get("/forged/{name}")
async def wait(name: str) -> None:
    waiting.set()
    await asyncio.Event().wait()


@router.get("/conflict/{name}")
async def conflict(name: str, session: TenantSessionDep) -> None:
    await session.execute(text("INSERT INTO once VALUES (1), (1)"))
    await session.commit()


waiting = asyncio.Event()
FORGED = "x%0AERROR%20forged%1B[2J"


async def test_a_path_cannot_forge_log_records(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mgf.fastapi.db")
    waiting.clear()
    app = make_app(router, world.app)
    app.add_middleware(CancelOnDisconnect)
    install_error_handlers(app)
    async with listening(app) as port:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            answer = await client.get(f"/conflict/{FORGED}", headers=of(world.a))
            assert answer.status_code == 409
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /forged/{FORGED} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        await waiting.wait()
        writer.close()
        await writer.wait_closed()
    texts = [record.getMessage() for record in caplog.records if record.name == "mgf.fastapi.db"]
    assert len(texts) == 2
    assert all("%0AERROR%20forged%1B" in one and one.isprintable() for one in texts)


ONE = UUID(int=1)
HOSTS = [
    "acme.example.com:80:80",
    "eve@acme.example.com",
    "acme.example.com..",
    "acme..example.com",
]


def giving(claim: object) -> Callable[[], dict[str, object]]:
    return lambda: {"tenant": claim}


@pytest.mark.parametrize(
    ("resolver", "headers", "status"),
    [
        *(
            (tenant_from_header(), {"X-Tenant-Id": value}, 400)
            for value in (f"urn:uuid:{ONE}", f"{ONE}-", f"{ONE},", "\xb2" * 32, "0" * 50_000)
        ),
        (tenant_from_header(), {"X_Tenant_Id": str(ONE)}, 401),
        *(
            (tenant_from_subdomain("example.com", lambda _label, _: ONE), {"Host": host}, 400)
            for host in HOSTS
        ),
        *(
            (tenant_from_claim(giving(claim)), {}, 400)
            for claim in ([str(ONE)], {"id": str(ONE)}, True, ONE.bytes, ONE.int, "")
        ),
    ],
)
async def test_what_only_looks_like_a_tenant_is_refused(
    resolver: Any, headers: dict[str, str], status: int
) -> None:
    app = FastAPI()

    @app.get("/")
    async def endpoint(tenant: Any = Depends(resolver)) -> str:
        return str(tenant)

    async with asking(app) as client:
        sent = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        assert (await client.get("/", headers=sent)).status_code == status
