"""Requests whose client goes away, over real sockets to a real server and a real database."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from uuid import uuid4

import asyncpg
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.middleware.base import BaseHTTPMiddleware

from harness.servers import dsn
from harness.serving import listening
from harness.tenants import APP_PASSWORD, new_world
from mgf.common.exceptions import AppConfigError
from mgf.fastapi.db import CancelOnDisconnect, get_session, pool_figures, run_to_end, setup_db
from mgf.sqlalchemy import tenant_session

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import URL
    from starlette.types import Message, Receive, Scope, Send

TENANT = uuid4()
Session = Annotated[AsyncSession, Depends(get_session, scope="function")]
StreamingSession = Annotated[AsyncSession, Depends(get_session)]
# Until somebody ends it: longer than any test.
SLEEP = text("SELECT pg_sleep(3600)")
WRITE = text("INSERT INTO invoice (note) VALUES ('written')")


@pytest.fixture(scope="module")
def server(postgres_url: URL) -> URL:
    return asyncio.run(new_world(postgres_url))


@pytest.fixture
def url(server: URL) -> URL:
    return server.set(drivername="postgresql+asyncpg", username="app", password=APP_PASSWORD)


@pytest.fixture(params=["asyncpg", "psycopg"])
def any_url(url: URL, request: pytest.FixtureRequest) -> URL:
    return url.set(drivername=f"postgresql+{request.param}")


async def write(session: AsyncSession) -> None:
    async with tenant_session(session, TENANT):
        await session.execute(WRITE)
        await session.commit()


async def gone(request: Request) -> None:
    """Wait until the server has noticed that the client has gone."""
    while True:
        if await request.is_disconnected():
            return
        await asyncio.sleep(0.01)


def make_app(*middleware: tuple[Any, dict[str, Any]]) -> FastAPI:
    app = FastAPI()
    for one, options in middleware:
        app.add_middleware(one, **options)

    @app.get("/sleep")
    async def sleep(session: Session) -> None:
        await session.execute(SLEEP)

    @app.post("/sleep")
    async def sleep_with_body(body: dict[str, int], session: Session) -> None:
        assert body == {"a": 1}
        await session.execute(SLEEP)

    @app.get("/stream")
    async def stream(session: StreamingSession) -> StreamingResponse:
        async def parts() -> AsyncGenerator[bytes]:
            yield b"first"
            await session.execute(SLEEP)

        return StreamingResponse(parts())

    @app.post("/kept", dependencies=[Depends(run_to_end)])
    async def kept(request: Request, session: Session) -> None:
        await gone(request)
        await write(session)

    @app.post("/hooks/{name}")
    async def hook(name: str, request: Request, session: Session) -> None:
        await gone(request)
        await write(session)

    return app


class Service(NamedTuple):
    app: FastAPI
    port: int
    owner: asyncpg.Connection

    async def open(self, request: str, *headers: str, body: str = "") -> asyncio.StreamWriter:
        """Send a request over a socket of its own."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        lines = [f"{request} HTTP/1.1", "Host: test", *headers]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        writer.write("\r\n".join([*lines, "", body]).encode())
        await writer.drain()
        return writer

    async def active(self) -> int:
        """How many statements of the application the server is working on."""
        count: int = await self.owner.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND usename = 'app' AND wait_event = 'PgSleep'"
        )
        return count

    async def written(self) -> int:
        count: int = await self.owner.fetchval("SELECT count(*) FROM invoice")
        return count

    def checked_out(self) -> int:
        return pool_figures(self.app.state.mgf_db_engine)["checked_out"]

    async def until(self, **wanted: int) -> None:
        """Wait until these are so."""
        async with asyncio.timeout(60):
            while True:
                if await self.figures(wanted) == wanted:
                    return
                await asyncio.sleep(0.01)

    async def figures(self, names: Any) -> dict[str, int]:
        figures = {"active": await self.active(), "written": await self.written()}
        return {name: {**figures, "checked_out": self.checked_out()}[name] for name in names}


@asynccontextmanager
async def service(app: FastAPI, url: URL, server: URL) -> AsyncGenerator[Service]:
    owner = await asyncpg.connect(dsn(server))
    try:
        await owner.execute("DELETE FROM invoice")
        async with setup_db(app, database_url=url), listening(app) as port:
            yield Service(app, port, owner)
    finally:
        # What a test that fails has left running would hold up the end of the server's process.
        await owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        )
        await owner.close()


async def pass_on(request: Request, call_next: Any) -> Any:
    return await call_next(request)


CANCEL = (CancelOnDisconnect, {"exempt": ["/hooks/"]})
BASE = (BaseHTTPMiddleware, {"dispatch": pass_on})
REQUESTS = {
    "GET": ("GET /sleep", ""),
    "POST with a body": ("POST /sleep", '{"a": 1}'),
    "stream": ("GET /stream", ""),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_disconnect_in_mid_query_frees_the_connection_and_ends_the_statement(
    any_url: URL, server: URL, name: str
) -> None:
    request, body = REQUESTS[name]
    async with service(make_app(CANCEL), any_url, server) as served:
        client = await served.open(request, body=body)
        await served.until(active=1)
        client.close()
        await served.until(active=0, checked_out=0)


async def test_the_same_inside_a_base_http_middleware(any_url: URL, server: URL) -> None:
    async with service(make_app(CANCEL, BASE), any_url, server) as served:
        client = await served.open("GET /sleep")
        await served.until(active=1)
        client.close()
        await served.until(active=0, checked_out=0)


async def test_a_middleware_around_it_sees_a_499_and_no_error(
    any_url: URL, server: URL, caplog: pytest.LogCaptureFixture
) -> None:
    seen: asyncio.Queue[int] = asyncio.Queue()

    async def note(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        seen.put_nowait(response.status_code)
        return response

    app = make_app(CANCEL, (BaseHTTPMiddleware, {"dispatch": note}))
    async with service(app, any_url, server) as served:
        client = await served.open("GET /sleep")
        await served.until(active=1)
        client.close()
        assert await asyncio.wait_for(seen.get(), 60) == 499
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_base_http_middleware_inside_still_frees_the_connection(
    any_url: URL, server: URL
) -> None:
    """The statement may go on: that is what client_connection_check_interval is for."""
    async with service(make_app(BASE, CANCEL), any_url, server) as served:
        client = await served.open("GET /sleep")
        await served.until(active=1)
        client.close()
        await served.until(checked_out=0)


async def test_a_crowd_that_leaves_gives_everything_back(any_url: URL, server: URL) -> None:
    async with service(make_app(CANCEL), any_url, server) as served:
        clients = [await served.open("GET /sleep") for _ in range(20)]
        # 15 of them have a connection, 5 wait in the pool's queue.
        await served.until(active=15, checked_out=15)
        for client in clients:
            client.close()
        await served.until(active=0, checked_out=0)


async def test_without_the_middleware_a_handler_goes_on(url: URL, server: URL) -> None:
    async with service(make_app(), url, server) as served:
        client = await served.open("POST /hooks/a", body="{}")
        client.close()
        await served.until(written=1, checked_out=0)


@pytest.mark.parametrize("path", ["/kept", "/hooks/a"])
async def test_what_must_finish_finishes(url: URL, server: URL, path: str) -> None:
    async with service(make_app(CANCEL), url, server) as served:
        client = await served.open(f"POST {path}", body="{}")
        await served.until(checked_out=0, written=0)
        client.close()
        await served.until(written=1, checked_out=0)


async def test_a_path_that_only_begins_like_an_exempt_one_is_cancelled(
    url: URL, server: URL
) -> None:
    app = make_app(CANCEL)
    cancelled = asyncio.Event()

    @app.get("/hooks2")
    async def endpoint() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with service(app, url, server) as served:
        client = await served.open("GET /hooks2")
        client.close()
        await asyncio.wait_for(cancelled.wait(), 60)


async def test_background_tasks_run_after_the_client_has_gone(url: URL, server: URL) -> None:
    app = make_app(CANCEL)
    has_left, ran = asyncio.Event(), asyncio.Event()

    async def later(request: Request) -> None:
        await has_left.wait()
        message = await request.receive()
        assert await request.receive() == message == DISCONNECT
        ran.set()

    @app.get("/later")
    async def endpoint(request: Request, tasks: BackgroundTasks) -> None:
        tasks.add_task(later, request)

    async with service(app, url, server) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET /later HTTP/1.1\r\nHost: test\r\n\r\n")
        await reader.readuntil(b"null")
        writer.close()
        await writer.wait_closed()
        has_left.set()
        await asyncio.wait_for(ran.wait(), 60)


async def test_a_protected_stream_ends_with_its_client_too(url: URL, server: URL) -> None:
    app = make_app(CANCEL)
    closed = asyncio.Event()

    async def parts() -> AsyncGenerator[bytes]:
        try:
            while True:
                yield b"."
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    @app.get("/dots", dependencies=[Depends(run_to_end)])
    async def endpoint() -> StreamingResponse:
        return StreamingResponse(parts())

    async with service(app, url, server) as served:
        client = await served.open("GET /dots")
        client.close()
        await asyncio.wait_for(closed.wait(), 60)


async def test_bodies_and_answers_pass_through_unchanged(url: URL, server: URL) -> None:
    """Several requests over one connection, one of them in many pieces and on demand."""
    app = make_app(CANCEL)

    @app.post("/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    @app.post("/unread")
    async def unread() -> str:
        return "unread"

    size = 3_000_000
    async with service(app, url, server) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        for path, header, expected in (
            ("/echo", "Expect: 100-continue", str(size).encode()),
            ("/echo", "X-Nothing: 1", str(size).encode()),
            ("/unread", "X-Nothing: 1", b'"unread"'),
        ):
            head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {size}\r\n{header}"
            writer.write(head.encode() + b"\r\n\r\n" + b"x" * size)
            assert expected in await asyncio.wait_for(reader.readuntil(expected), 60)
        writer.close()


class Asgi:
    """A server of one request, for what uvicorn does not do on demand."""

    def __init__(self, *messages: Message | Exception) -> None:
        self.messages = list(messages)
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if not self.messages:
            await asyncio.Event().wait()
        message = self.messages.pop(0)
        if isinstance(message, Exception):
            raise message
        return message

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def call(self, app: Any, *, kind: str = "http") -> None:
        scope = {"type": kind, "asgi": {}, "method": "GET", "path": "/", "headers": []}
        await CancelOnDisconnect(app)(scope, self.receive, self.send)


EMPTY: Message = {"type": "http.request", "body": b""}
DISCONNECT: Message = {"type": "http.disconnect"}


async def test_an_error_of_the_server_reaches_the_handler() -> None:
    class TooLargeError(Exception):
        pass

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    with pytest.raises(TooLargeError):
        await Asgi(TooLargeError()).call(app)


async def test_errors_of_the_handler_are_raised_but_not_those_of_its_cancellation() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError("its own")

    async def broken_by_cancellation(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("a rollback that failed")

    with pytest.raises(TimeoutError, match="its own"):
        await Asgi(EMPTY).call(broken)
    await Asgi(EMPTY, DISCONNECT).call(broken_by_cancellation)


async def test_a_handler_that_goes_on_in_spite_of_its_cancellation_is_told_of_it() -> None:
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.append(await receive())
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        received.extend([await receive(), await receive()])

    await asyncio.wait_for(Asgi(EMPTY, DISCONNECT).call(app), 60)
    assert received == [EMPTY, DISCONNECT, DISCONNECT]


async def test_a_server_that_stops_cancels_the_handler() -> None:
    begun = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(Asgi(EMPTY).call(app))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_is_no_http_request_passes_by() -> None:
    asgi = Asgi()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert receive == asgi.receive

    await asgi.call(app, kind="websocket")


async def test_run_to_end_without_the_middleware_does_nothing() -> None:
    await run_to_end(Request({"type": "http"}))


def test_a_single_path_is_refused() -> None:
    """Each of its characters would be taken for a path, and "/" for all of them."""
    with pytest.raises(AppConfigError, match="list of paths"):
        CancelOnDisconnect(FastAPI(), exempt="/hooks")
