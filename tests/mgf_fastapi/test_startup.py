"""What an application waits for, and refuses to serve without; and how it lets go."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest
from fastapi import FastAPI
from sqlalchemy import Column, MetaData, Table, Uuid, text
from sqlalchemy.exc import DBAPIError

from harness.migrations import Project
from harness.proxy import Proxy, proxied
from harness.schemas import ROLE
from harness.servers import new_database, run_sql
from harness.tenants import APP_PASSWORD, World
from mgf.alembic import is_at_head, upgrade
from mgf.fastapi.db import DatabaseNotReadyError, session_scope, setup_db
from mgf.sqlalchemy.audit import RlsNotActiveError
from mgf.sqlalchemy.errors import sqlstate
from mgf.sqlalchemy.rls import protect_metadata, tenant_table

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncConnection

CONNECTIONS = """
    SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND datname = current_database()
"""
DRIVERS = pytest.mark.parametrize("driver", ["postgresql+asyncpg", "postgresql+psycopg"])
LONG = 600.0  # seconds that no test has: whoever waits so long fails otherwise


class StartingServer(Proxy):
    """A server that hangs up on its first clients."""

    refuses = 3

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.connections < self.refuses:
            self.connections += 1
            writer.close()
            return
        await super()._accept(reader, writer)


@asynccontextmanager
async def starting(target: URL) -> AsyncGenerator[StartingServer]:
    proxy = StartingServer(target)
    server = await proxy.start()
    try:
        yield proxy
    finally:
        server.close()
        await proxy.stop()


def nowhere() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if (record.name, record.levelno) == ("mgf.fastapi.db", logging.WARNING)
    ]


@DRIVERS
async def test_it_waits_for_a_database_that_is_starting(
    world: World, caplog: pytest.LogCaptureFixture, driver: str
) -> None:
    app = FastAPI()
    caplog.set_level(logging.INFO, "mgf.fastapi.db")
    async with (
        starting(world.app.set(drivername=driver)) as proxy,
        setup_db(app, database_url=proxy.url, wait=LONG),
        session_scope(app) as session,
    ):
        assert await session.scalar(text("SELECT 1")) == 1
    assert warnings(caplog)
    assert caplog.records[-1].getMessage().endswith("is ready")
    assert APP_PASSWORD not in caplog.text


@DRIVERS
async def test_a_wrong_password_fails_at_once(
    world: World, caplog: pytest.LogCaptureFixture, driver: str
) -> None:
    url = world.app.set(drivername=driver, password="wrong")
    with pytest.raises(DBAPIError, match="password authentication failed"):
        async with setup_db(FastAPI(), database_url=url, wait=LONG):
            pytest.fail("entered")
    assert warnings(caplog) == []


async def test_a_missing_database_fails_at_once(world: World) -> None:
    url = world.app.set(database="missing")
    with pytest.raises(DBAPIError) as caught:
        async with setup_db(FastAPI(), database_url=url, wait=LONG):
            pytest.fail("entered")
    assert sqlstate(caught.value) == "3D000"


@DRIVERS
async def test_a_database_that_never_comes_is_given_up(
    world: World, caplog: pytest.LogCaptureFixture, driver: str
) -> None:
    app = FastAPI()
    url = world.app.set(drivername=driver, port=nowhere())
    with pytest.raises(DatabaseNotReadyError, match=f"127.0.0.1:{url.port}") as caught:
        async with setup_db(app, database_url=url, wait=0.3):
            pytest.fail("entered")
    assert isinstance(caught.value.__cause__, DBAPIError)
    assert warnings(caplog)
    assert APP_PASSWORD not in caplog.text + str(caught.value)
    assert not hasattr(app.state, "mgf_db_engine")


@DRIVERS
async def test_a_database_that_never_answers_is_given_up(world: World, driver: str) -> None:
    async with proxied(world.app.set(drivername=driver)) as proxy:
        proxy.swallow_all()
        with pytest.raises(DatabaseNotReadyError, match=r"not ready within 0\.2 s"):
            async with setup_db(FastAPI(), database_url=proxy.url, wait=0.2):
                pytest.fail("entered")


async def test_a_timeout_of_the_applications_own_check_is_no_reason_of_ours() -> None:
    async def check(_connection: AsyncConnection) -> bool:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        async with setup_db(FastAPI(), database_url="sqlite://", check_migrations=check):
            pytest.fail("entered")


async def test_nothing_is_connected_unless_it_is_asked_for(world: World) -> None:
    app = FastAPI()
    async with proxied(world.app) as proxy, setup_db(app, database_url=proxy.url):
        assert proxy.connections == 0


async def test_without_waiting_the_first_error_ends_the_start(world: World) -> None:
    url = world.app.set(port=nowhere())
    with pytest.raises(DBAPIError):
        async with setup_db(FastAPI(), database_url=url, require_rls=True):
            pytest.fail("entered")


APP = """
import os
from contextlib import AsyncExitStack, asynccontextmanager
from fastapi import FastAPI
from mgf.fastapi.db import setup_db

@asynccontextmanager
async def lifespan(app):
    async with setup_db(app, database_url=os.environ["DATABASE_URL"], require_rls=True) as state:
        yield state

app = FastAPI(lifespan=lifespan)
"""


@pytest.fixture
async def declared_url(postgres_url: URL) -> URL:
    """The application's URL of a database whose tables belong to somebody else."""
    owner = await new_database(postgres_url)
    await run_sql(
        owner,
        ROLE,
        "CREATE TABLE t (tenant_id uuid); GRANT SELECT ON t TO app;"
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    )
    return owner.set(username="app", password=APP_PASSWORD)


async def test_a_role_that_policies_hold_serves(declared_url: URL) -> None:
    app = FastAPI()
    async with setup_db(app, database_url=declared_url, require_rls=True), session_scope(app) as s:
        assert await s.scalar(text("SELECT current_user")) == "app"


def test_a_role_that_bypasses_policies_does_not_serve(world_database: URL, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    url = world_database.render_as_string(hide_password=False)
    # Without an end of its own, it would be killed after a while: no exit code then.
    ended = subprocess.run(
        [sys.executable, "-m", "uvicorn", "app:app", "--port", "0"],
        cwd=tmp_path,
        env=os.environ | {"DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 3  # uvicorn's STARTUP_FAILURE
    assert "is a superuser" in ended.stderr


async def test_the_tables_of_a_metadata_have_to_be_there(declared_url: URL) -> None:
    metadata = MetaData()
    tenant_table()(Table("missing", metadata, Column("tenant_id", Uuid, primary_key=True)))
    protect_metadata(metadata, role="app")
    with pytest.raises(RlsNotActiveError, match=r"public\.missing"):
        async with setup_db(FastAPI(), database_url=declared_url, require_rls=metadata):
            pytest.fail("entered")


async def test_migrations_have_to_be_at_head(
    world: World, postgres_url: URL, tmp_path: Path
) -> None:
    owner = await new_database(postgres_url)
    project = Project(tmp_path)
    project.add("op.execute('GRANT SELECT ON alembic_version TO app')")

    async def check(connection: AsyncConnection) -> bool:
        return await is_at_head(tmp_path / "alembic.ini", connection=connection)

    app = owner.set(username="app", password=APP_PASSWORD)
    await upgrade(tmp_path / "alembic.ini", database_url=owner)
    async with setup_db(FastAPI(), database_url=app, check_migrations=check, wait=LONG):
        pass
    project.add("pass")
    with pytest.raises(DatabaseNotReadyError, match="alembic upgrade head"):
        async with setup_db(FastAPI(), database_url=app, check_migrations=check, wait=LONG):
            pytest.fail("entered")


async def test_after_a_refused_start_nothing_is_left(world: World) -> None:
    app = FastAPI()
    with pytest.raises(RlsNotActiveError):
        async with setup_db(app, database_url=world.owner, require_rls=True):
            pytest.fail("entered")
    assert not hasattr(app.state, "mgf_db_engine")
    backends = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    assert await world.truth(backends) == [1]  # the one that asks


async def open_pool(app: FastAPI) -> None:
    """Leave several connections in the pool: the end of the first is not yet the others'."""
    async with AsyncExitStack() as sessions:
        for _ in range(4):
            session = await sessions.enter_async_context(session_scope(app))
            await session.execute(text("SELECT 1"))


async def test_a_cancelled_scope_disposes_the_engine(world: World) -> None:
    app = FastAPI()
    with anyio.CancelScope() as scope:
        async with setup_db(app, database_url=world.app):
            await open_pool(app)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert await world.truth(CONNECTIONS) == [0]


async def test_a_task_that_is_cancelled_again_and_again_disposes_the_engine(world: World) -> None:
    app = FastAPI()

    async def serve() -> None:
        async with setup_db(app, database_url=world.app):
            await open_pool(app)
            opened.set()
            await asyncio.Event().wait()

    opened = asyncio.Event()
    serving = asyncio.create_task(serve())
    await opened.wait()
    while not serving.done():
        serving.cancel()
        await asyncio.sleep(0)
    assert serving.cancelled()
    assert await world.truth(CONNECTIONS) == [0]
