"""What orchestrators, load balancers and metrics libraries are told."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import NullPool, text

from harness.proxy import proxied
from harness.servers import run_sql
from harness.tenants import APP_PASSWORD, new_world
from mgf.fastapi.db import Health, check_database, health_router, pool_figures, setup_db
from mgf.sqlalchemy import create_engine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

LIMIT = 0.3
LIVE, READY = "/health/live", "/health/ready"
# No port of anybody's.
NOWHERE = "postgresql+asyncpg://app:secret-word@127.0.0.1:1/nothing"


@pytest.fixture(scope="module")
def server(postgres_url: URL) -> URL:
    return asyncio.run(new_world(postgres_url))


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(server: URL, request: pytest.FixtureRequest) -> URL:
    return server.set(
        drivername=f"postgresql+{request.param}", username="app", password=APP_PASSWORD
    )


class Service(NamedTuple):
    client: httpx.AsyncClient
    engine: AsyncEngine

    async def ask(self, path: str = READY) -> tuple[int, dict[str, Any]]:
        response = await self.client.get(path)
        assert response.headers["cache-control"] == "no-store"
        body: dict[str, Any] = response.json()
        return response.status_code, body


@asynccontextmanager
async def service(url: str | URL, *, pool_size: int = 2, **options: Any) -> AsyncGenerator[Service]:
    app = FastAPI()
    app.include_router(health_router(**options))
    async with (
        setup_db(app, database_url=url, pool_size=pool_size, max_overflow=0),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        yield Service(client, app.state.mgf_db_engine)


def answer(status: int, state: str) -> tuple[int, dict[str, Any]]:
    return status, {"status": state, "checks": {"database": state}}


async def test_a_process_is_alive_without_its_database() -> None:
    async with service(NOWHERE) as broken:
        assert await broken.ask(LIVE) == (200, {"status": "ok"})
        assert pool_figures(broken.engine)["checked_in"] == 0


async def test_ready_is_asked_over_one_connection_of_the_pool(url: URL) -> None:
    async with service(url, timeout=60) as well:
        for _ in range(3):
            assert await well.ask() == answer(200, "ok")
        figures = pool_figures(well.engine)
    assert (figures["checked_in"], figures["checked_out"]) == (1, 0)


async def test_head_is_answered_too(url: URL) -> None:
    async with service(url, timeout=60) as well:
        for path in (LIVE, READY):
            assert (await well.client.head(path)).status_code == 200


async def test_a_full_pool_is_busy_and_not_waited_for(url: URL, server: URL) -> None:
    async with service(url, pool_size=1, timeout=60) as crowded, crowded.engine.connect() as held:
        await held.execute(text("SELECT 1"))
        # The pool's own timeout is 30 seconds, and nobody gives the connection back.
        assert await crowded.ask() == answer(200, "busy")
        assert pool_figures(crowded.engine)["checked_out"] == 1
        name = held.engine.url.database
        count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND usename='app'"
        # The connection of its own has been closed, which the server sees a moment later.
        async with asyncio.timeout(60):
            while await held.scalar(text(count)) != 1:
                await held.rollback()  # or it would go on to see the same
    async with service(url, pool_size=1, timeout=60) as again:
        assert await again.ask() == answer(200, "ok")


async def test_a_full_pool_on_a_server_that_is_gone_has_failed(url: URL) -> None:
    async with (
        proxied(url) as proxy,
        service(proxy.url, pool_size=1, timeout=LIMIT) as crowded,
        crowded.engine.connect(),
    ):
        proxy.swallow_all()
        assert await crowded.ask() == answer(503, "failed")
        proxy.cut()


async def test_a_full_pool_on_a_full_server_is_busy_but_on_one_that_refuses_it_failed(
    server: URL,
) -> None:
    """With psycopg it has failed: it does not say why it could not connect."""
    await run_sql(server, "CREATE ROLE two LOGIN CONNECTION LIMIT 1 PASSWORD 'two'")
    url = server.set(drivername="postgresql+asyncpg", username="two", password="two")
    async with service(url, pool_size=1, timeout=60) as crowded, crowded.engine.connect() as held:
        await held.execute(text("SELECT 1"))
        assert await crowded.ask() == answer(200, "busy")
        await run_sql(server, "ALTER ROLE two NOLOGIN")
        assert await crowded.ask() == answer(503, "failed")
    await run_sql(server, "DROP ROLE two")


async def test_on_a_full_server_a_process_with_connections_in_use_is_busy_but_one_without_failed(
    server: URL,
) -> None:
    await run_sql(server, "CREATE ROLE few LOGIN CONNECTION LIMIT 1 PASSWORD 'few'")
    url = server.set(drivername="postgresql+asyncpg", username="few", password="few")
    async with service(url, timeout=60) as working, service(url, timeout=60) as starved:
        async with working.engine.connect() as held:
            await held.execute(text("SELECT 1"))
            # Its pool could hold another one.
            assert pool_figures(working.engine)["limit"] == 2
            assert await working.ask() == answer(200, "busy")
            assert await starved.ask() == answer(503, "failed")
        assert await working.ask() == answer(200, "ok")
    await run_sql(server, "DROP ROLE few")


async def test_a_database_that_refuses_is_not_ready_and_tells_no_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "mgf.fastapi.db")
    async with service(NOWHERE) as broken:
        response = await broken.client.get(READY)
    assert (response.status_code, response.json()) == answer(503, "failed")
    assert "check 'database' failed: OperationalError: " in caplog.text
    assert "secret-word" not in caplog.text + response.text


async def test_a_wrong_password_is_not_ready(url: URL) -> None:
    async with service(url.set(password="wrong"), timeout=60) as broken:
        assert await broken.ask() == answer(503, "failed")


async def test_a_black_hole_is_answered_in_time_and_asked_once(url: URL) -> None:
    """By themselves the drivers wait for a connection for 60 seconds, or for ever."""
    async with proxied(url) as proxy, service(proxy.url, timeout=LIMIT) as lost:
        async with lost.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        proxy.swallow_all()
        asked = [asyncio.create_task(lost.ask()) for _ in range(20)]
        done, _ = await asyncio.wait(asked, timeout=30)
        assert [task.result() for task in done] == [answer(503, "failed")] * 20
        assert pool_figures(lost.engine)["checked_out"] <= 1
        assert await lost.ask() == answer(503, "failed")
        assert pool_figures(lost.engine)["checked_out"] <= 1
        proxy.cut()
        # Ready again by itself.
        async with asyncio.timeout(60):
            while await lost.ask() != answer(200, "ok"):
                pass


async def test_checks_of_the_user_run_beside_the_databases_own(url: URL) -> None:
    async def well(app: FastAPI) -> None:
        assert isinstance(app, FastAPI)

    async def crowded(app: FastAPI) -> Health:
        return Health.BUSY

    async def broken(app: FastAPI) -> None:
        raise RuntimeError("no")

    async def silent(app: FastAPI) -> None:
        await asyncio.sleep(3600)

    async with service(url, timeout=60, checks={"cache": well, "queue": crowded}) as one:
        checks = {"database": "ok", "cache": "ok", "queue": "busy"}
        assert await one.ask() == (200, {"status": "busy", "checks": checks})
    async with service(url, timeout=60, checks={"queue": crowded, "mail": broken}) as one:
        checks = {"database": "ok", "queue": "busy", "mail": "failed"}
        assert await one.ask() == (503, {"status": "failed", "checks": checks})
    async with service("sqlite://", timeout=LIMIT, checks={"mail": silent}) as one:
        checks = {"database": "ok", "mail": "failed"}
        assert await one.ask() == (503, {"status": "failed", "checks": checks})


async def test_the_databases_check_can_be_replaced(url: URL) -> None:
    engine = create_engine(url)

    async def other(app: FastAPI) -> Health:
        return await check_database(engine)

    async with service(NOWHERE, timeout=60, checks={"database": other}) as one:
        assert await one.ask() == answer(200, "ok")
    await engine.dispose()


async def test_without_setup_db_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    app.include_router(health_router())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get(READY)).status_code == 503
    assert "setup_db" in caplog.text


async def test_neither_answer_is_in_the_schema() -> None:
    app = FastAPI()
    app.include_router(health_router(live="/a", ready="/b"), prefix="/internal")
    assert app.openapi()["paths"] == {}
    assert [str(app.url_path_for("answer_live")), str(app.url_path_for("answer_ready"))] == [
        "/internal/a",
        "/internal/b",
    ]


async def test_figures_of_a_pool(url: URL) -> None:
    engine = create_engine(url, pool_size=1, max_overflow=2)
    empty = {"size": 1, "limit": 3, "checked_out": 0, "checked_in": 0, "overflow": 0}
    assert pool_figures(engine) == empty
    async with engine.connect(), engine.connect():
        assert pool_figures(engine) == {**empty, "checked_out": 2, "overflow": 1}
    assert pool_figures(engine) == {**empty, "checked_in": 1}
    await engine.dispose()


@pytest.mark.parametrize("options", [{"max_overflow": -1}, {"pool_size": 0}])
async def test_a_pool_without_limit_has_none(url: URL, options: dict[str, Any]) -> None:
    engine = create_engine(url, **options)
    assert "limit" not in pool_figures(engine)
    assert await check_database(engine) is Health.OK
    await engine.dispose()


async def test_a_pool_that_counts_nothing_has_no_figures(url: URL) -> None:
    engine = create_engine(url, poolclass=NullPool)
    assert pool_figures(engine) == {}
    assert await check_database(engine) is Health.OK
    await engine.dispose()
