"""`await upgrade(...)` and its like, for programs whose event loop runs."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError

from harness.migrations import ACCOUNT, SHORT_ENV, Project, open_connections, rows
from mgf.alembic import current, downgrade, is_at_head, upgrade
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import create_engine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

DRIVERS = [
    "postgresql+asyncpg",
    "postgresql+psycopg",
    "postgresql+psycopg2",
    "sqlite",
    "sqlite+aiosqlite",
]
# Alembic's own template calls it, with the default that turns existing loggers off.
FILE_CONFIG = """
from logging.config import fileConfig
from alembic import context

if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name)
"""
LOGGING = """
[loggers]
keys = root
[handlers]
keys =
[formatters]
keys =
[logger_root]
level = CRITICAL
handlers =
"""
request_id: ContextVar[str] = ContextVar("request_id")


@pytest.fixture(params=DRIVERS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    if request.param.startswith("sqlite"):
        return URL.create(request.param, database=str(tmp_path / "a.db"))
    database: URL = request.getfixturevalue("database")
    return database.set(drivername=request.param)


@pytest.fixture
def project(project: Project) -> Project:
    project.write("migrations/env.py", SHORT_ENV)
    return project


@pytest.fixture
def ini(project: Project) -> Path:
    return project.folder / "alembic.ini"


@pytest.fixture
async def memory() -> AsyncGenerator[AsyncEngine]:
    engine = create_engine("sqlite+aiosqlite://")
    yield engine
    await engine.dispose()


def branches(project: Project) -> None:
    """Add r1, and two heads upon it: r2 and b1."""
    project.add("pass")
    project.add("pass")
    script = (project.folder / "migrations/versions/r2.py").read_text()
    project.write("migrations/versions/b1.py", script.replace("'r2'", "'b1'"))


class TestUpgrade:
    async def test_up_and_down_again(self, project: Project, ini: Path, url: URL) -> None:
        project.add(ACCOUNT, 'op.drop_table("account")')

        await upgrade(ini, database_url=url)
        assert await current(ini, database_url=url) == ("r1",)
        await downgrade(ini, "base", database_url=url)
        assert await current(ini, database_url=url) == ()

        assert url.get_backend_name() != "postgresql" or open_connections(url) == []

    async def test_to_a_revision(self, project: Project, ini: Path, url: URL) -> None:
        project.add("pass")
        project.add("pass")

        await upgrade(ini, "r1", database_url=url)

        assert await current(ini, database_url=url) == ("r1",)

    async def test_the_loop_goes_on_meanwhile(self, project: Project, ini: Path, url: URL) -> None:
        project.add("import time\ntime.sleep(1)")
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.01)
                turns += 1

        counting = asyncio.create_task(count())
        await upgrade(ini, database_url=url)
        counting.cancel()

        assert turns > 40

    async def test_no_thread_is_left(self, project: Project, ini: Path, url: URL) -> None:
        project.add(ACCOUNT)
        before = set(threading.enumerate())

        await upgrade(ini, database_url=url)

        assert set(threading.enumerate()) == before

    async def test_context_variables_are_seen(self, project: Project, ini: Path, url: URL) -> None:
        project.add('op.get_context().config.attributes["probe"]()')
        found: list[str] = []
        config = Config(ini, attributes={"probe": lambda: found.append(request_id.get())})
        request_id.set("r-17")

        await upgrade(config, database_url=url)

        assert found == ["r-17"]

    async def test_an_error_arrives_with_its_type_and_traceback(
        self, project: Project, ini: Path, url: URL
    ) -> None:
        project.add("raise LookupError('no such account')")

        with pytest.raises(LookupError, match="no such account") as caught:
            await upgrade(ini, database_url=url)

        frames = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert frames[-1].endswith("r1.py")
        assert caught.value.__context__ is None

    async def test_while_the_application_uses_the_database(
        self, project: Project, ini: Path, database: URL
    ) -> None:
        """Among it the table that is changed: the migration waits until the request has ended."""
        project.add(ACCOUNT)
        await upgrade(ini, database_url=database)
        project.add('op.add_column("account", sa.Column("name", sa.String))')
        engine = create_engine(database)

        async with engine.connect() as connection:
            await connection.execute(text("SELECT * FROM account"))
            migration = asyncio.create_task(upgrade(ini, database_url=database))
            await asyncio.sleep(0.5)
            assert not migration.done()
            await connection.rollback()
            await migration
            assert (await connection.execute(text("SELECT name FROM account"))).all() == []
        await engine.dispose()

    async def test_several_at_once_take_turns(
        self, project: Project, ini: Path, database: URL, tmp_path: Path
    ) -> None:
        """Alembic's state is one for the whole process."""
        project.add("import time\ntime.sleep(0.2)")
        project.add(ACCOUNT)
        urls = [database, *(URL.create("sqlite", database=f"{tmp_path}/{n}.db") for n in range(3))]

        await asyncio.gather(*(upgrade(ini, database_url=url) for url in urls * 2))

        assert [await is_at_head(ini, database_url=url) for url in urls] == [True] * 4

    async def test_several_loops_at_once_take_turns(
        self, project: Project, ini: Path, tmp_path: Path
    ) -> None:
        project.add("import time\ntime.sleep(0.2)")
        urls = [f"sqlite:///{tmp_path}/{number}.db" for number in range(3)]

        def run(url: str) -> None:
            asyncio.run(upgrade(ini, database_url=url))

        await asyncio.gather(*(asyncio.to_thread(run, url) for url in urls))

        assert [await current(ini, database_url=url) for url in urls] == [("r1",)] * 3


class TestHeads:
    async def test_no_scripts_and_an_empty_database(self, ini: Path, url: URL) -> None:
        assert await is_at_head(ini, database_url=url)

    async def test_scripts_and_an_empty_database(
        self, project: Project, ini: Path, url: URL
    ) -> None:
        project.add("pass")

        assert not await is_at_head(ini, database_url=url)
        assert await current(ini, database_url=url) == ()

    async def test_asking_makes_no_version_table(
        self, project: Project, ini: Path, url: URL
    ) -> None:
        project.add("pass")

        await is_at_head(ini, database_url=url)
        await current(ini, database_url=url)

        tables = {
            "postgresql": "SELECT relname FROM pg_class WHERE relname = 'alembic_version'",
            "sqlite": "SELECT name FROM sqlite_master",
        }
        backend = url.get_backend_name()
        assert rows(url.set(drivername=backend), tables[backend]) == []

    async def test_a_revision_short_of_it(self, project: Project, ini: Path, url: URL) -> None:
        project.add("pass")
        await upgrade(ini, database_url=url)
        assert await is_at_head(ini, database_url=url)

        project.add("pass")
        assert not await is_at_head(ini, database_url=url)

    async def test_a_database_that_is_further_than_the_scripts(
        self, project: Project, ini: Path, url: URL
    ) -> None:
        """Newer code has migrated it."""
        project.add("pass")
        project.add("pass")
        await upgrade(ini, database_url=url)
        (project.folder / "migrations/versions/r2.py").unlink()

        assert not await is_at_head(ini, database_url=url)
        assert await current(ini, database_url=url) == ("r2",)

    async def test_every_branch_counts(self, project: Project, ini: Path, url: URL) -> None:
        branches(project)

        await upgrade(ini, "r2", database_url=url)
        assert not await is_at_head(ini, database_url=url)
        await upgrade(ini, "heads", database_url=url)
        assert await is_at_head(ini, database_url=url)
        assert await current(ini, database_url=url) == ("b1", "r2")

    async def test_a_head_that_another_depends_on(
        self, project: Project, ini: Path, url: URL
    ) -> None:
        """It has no row of its own in the version table."""
        project.add("pass")
        project.add("pass")
        script = project.folder / "migrations/versions/r2.py"
        own = script.read_text().replace("down_revision = 'r1'", "down_revision = None")
        script.write_text(own + "\ndepends_on = 'r1'\n")

        await upgrade(ini, "heads", database_url=url)

        assert await is_at_head(ini, database_url=url)

    async def test_one_head_of_several_has_to_be_named(
        self, project: Project, ini: Path, url: URL
    ) -> None:
        branches(project)

        with pytest.raises(CommandError, match="Multiple head revisions"):
            await upgrade(ini, database_url=url)


class TestConnection:
    """It is used as it is, in this loop."""

    async def test_a_database_in_memory(
        self, project: Project, ini: Path, memory: AsyncEngine
    ) -> None:
        project.add(ACCOUNT)

        async with memory.begin() as connection:
            await upgrade(ini, connection=connection)
            assert await is_at_head(ini, connection=connection)
            assert await current(ini, connection=connection) == ("r1",)

    @pytest.mark.parametrize("driver", DRIVERS[:2])
    async def test_its_transaction_is_left_to_the_caller(
        self, project: Project, ini: Path, database: URL, driver: str
    ) -> None:
        project.add(ACCOUNT)
        engine = create_engine(database.set(drivername=driver))

        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            await upgrade(ini, connection=connection)
            await connection.rollback()
            assert not await is_at_head(ini, connection=connection)
        await engine.dispose()

    async def test_beside_a_url_it_is_refused(self, ini: Path, memory: AsyncEngine) -> None:
        async with memory.connect() as connection:
            with pytest.raises(AppConfigError, match="both database_url and connection"):
                await upgrade(ini, database_url="sqlite://", connection=connection)

    async def test_what_is_none_is_named_by_its_type(self, ini: Path, memory: AsyncEngine) -> None:
        with pytest.raises(AppConfigError, match=r"type AsyncEngine, expected .*AsyncConnection"):
            await upgrade(ini, connection=memory)  # type: ignore[arg-type]


async def test_loggers_of_the_application_stay_alive(project: Project, ini: Path, url: URL) -> None:
    project.write("migrations/env.py", FILE_CONFIG + SHORT_ENV)
    project.append("alembic.ini", LOGGING)
    logger = logging.getLogger("some.application")
    before = logging.root.level, list(logging.root.handlers)

    await upgrade(ini, database_url=url)

    assert not logger.disabled
    assert (logging.root.level, logging.root.handlers) == before


async def test_a_failed_upgrade_leaves_no_connection(
    project: Project, ini: Path, database: URL
) -> None:
    project.add('op.execute("SELECT 1/0")')

    with pytest.raises(DBAPIError, match="division by zero"):
        await upgrade(ini, database_url=database)
    assert open_connections(database) == []
