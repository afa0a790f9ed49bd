"""Migrations run from any code, whatever event loop or thread it is on."""

from __future__ import annotations

import asyncio
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import URL, Connection, NullPool, inspect, text
from sqlalchemy import create_engine as sync_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util.concurrency import greenlet_spawn

from harness.migrations import ACCOUNT, PROBE, Project, open_connections, rows
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import create_engine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy.ext.asyncio import AsyncEngine

VERSION = "SELECT version_num FROM alembic_version"
request_id: ContextVar[str] = ContextVar("request_id")


@pytest.fixture(params=["postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2"])
def url(request: pytest.FixtureRequest, database: URL) -> URL:
    return database.set(drivername=request.param)


@pytest.fixture
async def engine(database: URL) -> AsyncGenerator[AsyncEngine]:
    engine = create_engine(database, poolclass=NullPool)
    yield engine
    await engine.dispose()


def has_account(connection: Connection) -> bool:
    return inspect(connection).has_table("account")


async def test_in_a_coroutine(project: Project, url: URL) -> None:
    project.add(ACCOUNT)

    project.upgrade(url)

    assert rows(url, VERSION) == ["r1"]
    assert open_connections(url) == []


async def test_in_run_sync(project: Project, url: URL, engine: AsyncEngine) -> None:
    """The migrations have a connection of their own, unless they are given this one."""
    project.add(ACCOUNT)

    async with engine.connect() as connection:
        await connection.run_sync(lambda _: project.upgrade(url))

    assert rows(url, VERSION) == ["r1"]


async def test_in_greenlet_spawn(project: Project, url: URL) -> None:
    project.add(ACCOUNT)

    await greenlet_spawn(project.upgrade, url)

    assert rows(url, VERSION) == ["r1"]


async def test_in_another_thread(project: Project, url: URL) -> None:
    project.add(ACCOUNT)

    await asyncio.to_thread(project.upgrade, url)

    assert rows(url, VERSION) == ["r1"]


async def test_several_times_in_one_process(project: Project, url: URL) -> None:
    for number in (1, 2, 3):
        project.add(f'op.create_table("t{number}", sa.Column("id", sa.Integer))')
        project.upgrade(url)

    assert rows(url, VERSION) == ["r3"]


async def test_an_autocommit_block_commits(project: Project, url: URL) -> None:
    project.add(ACCOUNT)
    project.add(
        """
        with op.get_context().autocommit_block():
            op.execute("CREATE INDEX CONCURRENTLY ix_account ON account (id)")
        """
    )

    project.upgrade(url)

    assert rows(url, "SELECT to_regclass('ix_account')::text") == ["ix_account"]


async def test_context_variables_are_seen(project: Project, url: URL) -> None:
    project.add(PROBE)
    found: list[str] = []
    request_id.set("r-17")

    project.upgrade(url, probe=lambda: found.append(request_id.get()))

    assert found == ["r-17"]


async def test_an_error_arrives_with_its_type_and_traceback(project: Project, url: URL) -> None:
    project.add('raise LookupError("no such account")')

    with pytest.raises(LookupError, match="no such account") as caught:
        project.upgrade(url)

    frames = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-1].endswith("r1.py")
    assert __file__ in frames
    assert caught.value.__context__ is None
    assert open_connections(url) == []


def test_an_error_arrives_with_its_type_where_no_loop_runs(project: Project, url: URL) -> None:
    project.add('raise LookupError("no such account")')

    with pytest.raises(LookupError, match="no such account") as caught:
        project.upgrade(url)
    assert caught.value.__context__ is None


def test_the_loop_that_a_thread_holds_stays(project: Project, url: URL) -> None:
    """`asyncio.run` would take it away from a program that asks for it afterwards."""

    def keeps_its_loop() -> bool:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            project.upgrade(url)
            return asyncio.get_event_loop() is loop
        finally:
            loop.close()

    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(keeps_its_loop).result()


class TestGivenConnection:
    """`config.attributes["connection"]` is used as it is."""

    async def test_its_open_transaction_is_left_to_the_caller(
        self, project: Project, engine: AsyncEngine
    ) -> None:
        project.add(ACCOUNT)

        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            await connection.run_sync(self.upgrade, project)
            assert await connection.run_sync(has_account)
            await connection.rollback()
            assert not await connection.run_sync(has_account)

    async def test_without_a_transaction_the_migrations_commit(
        self, project: Project, engine: AsyncEngine, database: URL
    ) -> None:
        project.add(ACCOUNT)

        async with engine.connect() as connection:
            await connection.run_sync(self.upgrade, project)

        assert rows(database, VERSION) == ["r1"]

    async def test_it_stays_open(self, project: Project, engine: AsyncEngine) -> None:
        project.add(ACCOUNT)

        async with engine.connect() as connection:
            await connection.run_sync(self.upgrade, project)
            assert not connection.closed
            assert await connection.scalar(text("SELECT 1")) == 1

    async def test_it_stays_open_after_an_error(
        self, project: Project, engine: AsyncEngine
    ) -> None:
        project.add('op.execute("SELECT 1/0")')

        async with engine.connect() as connection:
            with pytest.raises(DBAPIError, match="division by zero"):
                await connection.run_sync(self.upgrade, project)
            assert await connection.scalar(text("SELECT 1")) == 1

    def test_a_synchronous_one_serves_as_well(self, project: Project, tmp_path: Any) -> None:
        project.add(ACCOUNT)
        engine = sync_engine(f"sqlite:///{tmp_path}/a.db", poolclass=NullPool)

        with engine.begin() as connection:
            self.upgrade(connection, project)
        with engine.connect() as connection:
            assert has_account(connection)

    async def test_an_async_connection_is_refused_with_the_recipe(
        self, project: Project, engine: AsyncEngine
    ) -> None:
        async with engine.connect() as connection:
            with pytest.raises(AppConfigError, match=r"AsyncConnection.*connection\.run_sync"):
                self.upgrade(connection, project)

    async def test_an_engine_is_refused(self, project: Project, engine: AsyncEngine) -> None:
        with pytest.raises(AppConfigError, match=r"type AsyncEngine, expected sqlalchemy\.Conn"):
            self.upgrade(engine, project)

    @staticmethod
    def upgrade(connection: Any, project: Project) -> None:
        project.upgrade(None, connection=connection)
