"""`setup_db` and `get_session`, in real applications on real sockets where it matters."""

from __future__ import annotations

import subprocess
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID  # noqa: TC003 - FastAPI reads it from the signatures below

import httpx
import pytest
from fastapi import Depends, FastAPI, WebSocket
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from harness.serving import serving
from harness.tenants import World, visible
from mgf.common.exceptions import AppConfigError
from mgf.fastapi.db import get_session, setup_db
from mgf.sqlalchemy import tenant_session
from mgf.sqlalchemy.errors import sqlstate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import URL

CONNECTIONS = """
    SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND datname = current_database()
"""
Session = Annotated[AsyncSession, Depends(get_session)]


def make_app(database_url: str | URL, **options: Any) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with setup_db(app, database_url=database_url, **options):
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/{tenant}/notes")
    async def notes(tenant: UUID, session: Session) -> list[str]:
        async with tenant_session(session, tenant):
            return await visible(session)

    @app.get("/notes")
    async def unscoped(session: Session) -> list[str]:
        return await visible(session)

    @app.websocket("/one")
    async def one(websocket: WebSocket, session: Session) -> None:
        await websocket.accept()
        await websocket.send_json(await session.scalar(text("SELECT 1")))
        await websocket.close()

    return app


async def test_requests_of_two_tenants_see_their_own_rows(world: World) -> None:
    async with serving(make_app(world.app)) as client:
        answers = [await client.get(f"/{tenant}/notes") for tenant in (world.a, world.b)]
        assert [answer.json() for answer in answers] == [["a1", "a2"], ["b1", "b2"]]
        assert (await client.get("/notes")).json() == []


async def test_require_tenant_reaches_the_sessions(world: World) -> None:
    app = FastAPI()
    async with (
        setup_db(app, database_url=world.app, require_tenant=True),
        app.state.mgf_db_sessionmaker() as session,
    ):
        with pytest.raises(DBAPIError) as caught:
            await visible(session)
    assert sqlstate(caught.value) == "42501"


async def test_setup_db_sets_and_removes_the_state() -> None:
    app = FastAPI()
    async with setup_db(app, database_url="sqlite://"):
        assert isinstance(app.state.mgf_db_engine, AsyncEngine)
        assert isinstance(app.state.mgf_db_sessionmaker, async_sessionmaker)
    assert not hasattr(app.state, "mgf_db_engine")
    assert not hasattr(app.state, "mgf_db_sessionmaker")


async def test_engine_options_reach_the_engine() -> None:
    app = FastAPI()
    async with setup_db(app, database_url="postgresql+asyncpg://u@127.0.0.1/d", pool_size=3):
        assert app.state.mgf_db_engine.pool.size() == 3


async def test_the_engine_is_disposed_also_after_an_error(world: World) -> None:
    app = FastAPI()
    with pytest.raises(RuntimeError):
        async with setup_db(app, database_url=world.app):
            async with app.state.mgf_db_sessionmaker() as session:
                await session.execute(text("SELECT 1"))
            raise RuntimeError
    assert not hasattr(app.state, "mgf_db_engine")
    assert await world.truth(CONNECTIONS) == [0]


async def test_the_engine_is_disposed_when_somebody_emptied_the_state(world: World) -> None:
    app = FastAPI()
    async with setup_db(app, database_url=world.app):
        async with app.state.mgf_db_sessionmaker() as session:
            await session.execute(text("SELECT 1"))
        del app.state.mgf_db_engine
    assert await world.truth(CONNECTIONS) == [0]


async def test_a_second_setup_while_the_first_is_active_is_refused() -> None:
    app = FastAPI()
    async with setup_db(app, database_url="sqlite://"):
        engine = app.state.mgf_db_engine
        with pytest.raises(AppConfigError, match="active"):
            async with setup_db(app, database_url="sqlite://"):
                pytest.fail("entered")
        assert app.state.mgf_db_engine is engine


async def test_it_can_be_entered_again_afterwards() -> None:
    app = FastAPI()
    for _ in range(2):
        async with (
            setup_db(app, database_url="sqlite://"),
            app.state.mgf_db_sessionmaker() as session,
        ):
            assert await session.scalar(text("SELECT 1")) == 1


async def test_a_bad_url_is_refused_and_leaves_nothing() -> None:
    app = FastAPI()
    with pytest.raises(AppConfigError):
        async with setup_db(app, database_url="nonsense"):
            pytest.fail("entered")
    assert not hasattr(app.state, "mgf_db_engine")


async def test_get_session_without_setup_db_names_it() -> None:
    with pytest.raises(AppConfigError, match="setup_db"):
        await anext(get_session(SimpleNamespace(app=FastAPI())))  # type: ignore[arg-type]


async def test_get_session_needs_nothing_but_the_state() -> None:
    app = FastAPI()
    async with setup_db(app, database_url="sqlite://"):
        state = SimpleNamespace(mgf_db_sessionmaker=app.state.mgf_db_sessionmaker)
        request = SimpleNamespace(app=SimpleNamespace(state=state))
        sessions = get_session(request)  # type: ignore[arg-type]
        session = await anext(sessions)
        assert await session.scalar(text("SELECT 1")) == 1
        await sessions.aclose()
        assert not session.in_transaction()


async def test_one_session_for_a_request_and_another_for_the_next() -> None:
    app = FastAPI()
    seen: list[AsyncSession] = []

    @app.get("/")
    async def root(one: Session, two: Session) -> None:
        assert one is two
        seen.append(one)

    async with setup_db(app, database_url="sqlite://"):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.get("/")
            await client.get("/")
    assert seen[0] is not seen[1]


async def test_what_the_endpoint_did_not_commit_is_rolled_back(world: World) -> None:
    app = make_app(world.app)

    @app.post("/{tenant}/forgotten")
    async def forgotten(tenant: UUID, session: Session) -> None:
        async with tenant_session(session, tenant):
            await session.execute(text("INSERT INTO invoice (note) VALUES ('forgotten')"))

    async with serving(app) as client:
        assert (await client.post(f"/{world.a}/forgotten")).status_code == 200
    assert await world.notes(world.a) == ["a1", "a2"]


async def test_a_websocket_gets_a_session() -> None:
    """Driven over the ASGI protocol itself: no client library is needed for one message."""
    app = make_app("sqlite://")
    incoming = iter([{"type": "websocket.connect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(incoming)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/one", "headers": [], "query_string": b""}
    async with setup_db(app, database_url="sqlite://"):
        await app({**scope, "subprotocols": []}, receive, send)
    assert [message["type"] for message in sent] == [
        "websocket.accept",
        "websocket.send",
        "websocket.close",
    ]
    assert sent[1]["text"] == "1"


def test_importing_without_mgf_sqlalchemy_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['mgf.sqlalchemy'] = None\n"
        "import mgf.fastapi\n"
        "try:\n    import mgf.fastapi.db\n"
        "except ImportError as exc:\n    print(exc)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert "mgf-fastapi[sqlalchemy]" in result.stdout
