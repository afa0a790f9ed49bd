"""A cancelled `await upgrade(...)` ends the migration, and leaves nothing that runs."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from harness.migrations import (
    ACCOUNT,
    MIGRATORS,
    SHORT_ENV,
    SLEEP,
    SLEEPING,
    Project,
    environment,
    open_connections,
    rows,
    wait_for,
)
from mgf.alembic import is_at_head, upgrade
from mgf.sqlalchemy import create_engine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from sqlalchemy import URL

DRIVERS = ["postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2"]
BOTH = f"SELECT 1 FROM ({MIGRATORS}) AS migrator HAVING count(*) = 2"
SHORT = """
    SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT 1'
"""
SHORT_STATEMENTS = "for _ in range(300000):\n    op.execute('SELECT 1')"
WAIT = """
import pathlib, time
until = time.monotonic() + 30
while not pathlib.Path({!r}).exists() and time.monotonic() < until:
    time.sleep(0.01)
"""
# About a minute of work in one statement.
SQLITE_WORK = """
op.execute('''
    WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 300000000)
    SELECT max(n) FROM c
''')
"""
PROGRAM = """
import asyncio, os
from mgf.alembic import upgrade
asyncio.run(upgrade("alembic.ini", database_url=os.environ["DATABASE_URL"]))
"""


@pytest.fixture(params=DRIVERS)
def url(request: pytest.FixtureRequest, database: URL) -> URL:
    return database.set(drivername=request.param)


@pytest.fixture
def ini(project: Project) -> Path:
    project.write("migrations/env.py", SHORT_ENV)
    return project.folder / "alembic.ini"


@asynccontextmanager
async def cancelled(ini: Path, url: URL | str) -> AsyncGenerator[None]:
    """Upgrade, and cancel that at the end of the block; it has to end soon, with its threads."""
    before = set(threading.enumerate())
    task = asyncio.create_task(upgrade(ini, database_url=url))
    yield
    assert not task.done()
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 20
    assert {one.name for one in set(threading.enumerate()) - before if "mgf" in one.name} == set()


async def test_in_a_statement(project: Project, ini: Path, database: URL, url: URL) -> None:
    project.add(f"{ACCOUNT}\n{SLEEP}")

    async with cancelled(ini, url):
        await asyncio.to_thread(wait_for, database, SLEEPING)

    assert open_connections(database) == []
    assert rows(database, "SELECT to_regclass('account')") == [None]


async def test_between_two_statements(project: Project, ini: Path, database: URL, url: URL) -> None:
    project.add(f"{ACCOUNT}\n{SHORT_STATEMENTS}")

    async with cancelled(ini, url):
        await asyncio.to_thread(wait_for, database, SHORT)

    assert open_connections(database) == []


@pytest.mark.parametrize("driver", ["sqlite", "sqlite+aiosqlite"])
async def test_in_a_statement_of_sqlite(
    project: Project, ini: Path, tmp_path: Path, driver: str
) -> None:
    project.add(SQLITE_WORK)

    async with cancelled(ini, f"{driver}:///{tmp_path}/a.db"):
        await asyncio.sleep(1.5)


async def test_while_another_process_migrates(
    project: Project, ini: Path, database: URL, url: URL
) -> None:
    project.add(SLEEP)
    env = SHORT_ENV.replace("NO_URL", "DATABASE_URL")
    project.write("migrations/env.py", env)

    with project.started("upgrade", "head", database_url=database):
        await asyncio.to_thread(wait_for, database, SLEEPING)
        async with cancelled(ini, url):
            await asyncio.to_thread(wait_for, database, BOTH)

    assert open_connections(database) == []


async def test_between_two_tries(project: Project, ini: Path, database: URL, url: URL) -> None:
    env = SHORT_ENV.replace("MetaData()", "MetaData(), lock_retries=1")
    project.write("migrations/env.py", env)
    project.add("""op.execute("DO $$ BEGIN RAISE 'x' USING ERRCODE = '55P03'; END $$")""")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mgf.alembic._retry._FIRST_PAUSE", 60)
        patch.setattr("mgf.alembic._retry._LONGEST_PAUSE", 60)
        async with cancelled(ini, url):
            await asyncio.sleep(1.5)

    assert open_connections(database) == []


async def test_before_its_turn(project: Project, ini: Path, database: URL, tmp_path: Path) -> None:
    """The other one goes on."""
    end = tmp_path / "end"
    project.add(WAIT.format(str(end)))
    first = asyncio.create_task(upgrade(ini, database_url=database))
    await asyncio.to_thread(wait_for, database, MIGRATORS)

    async with cancelled(ini, database):
        await asyncio.sleep(0.1)
    assert not first.done()
    end.touch()
    await first

    assert await is_at_head(ini, database_url=database)


async def test_at_once(project: Project, ini: Path, database: URL, url: URL) -> None:
    project.add(SLEEP)

    async with cancelled(ini, url):
        await asyncio.sleep(0)

    assert open_connections(database) == []


async def test_by_a_timeout(project: Project, ini: Path, database: URL, url: URL) -> None:
    project.add(SLEEP)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await upgrade(ini, database_url=url)

    assert open_connections(database) == []


async def test_by_a_cancel_scope_of_anyio(
    project: Project, ini: Path, database: URL, url: URL
) -> None:
    """It cancels again at every turn of the loop."""
    project.add(SLEEP)

    with anyio.move_on_after(1.5) as scope:
        await upgrade(ini, database_url=url)

    assert scope.cancelled_caught
    assert open_connections(database) == []


async def test_again_and_again(project: Project, ini: Path, database: URL, url: URL) -> None:
    """What cancels does not wait for a cleaning up: whenever it ends, nothing is left."""
    project.add(SLEEP)
    task = asyncio.create_task(upgrade(ini, database_url=url))
    await asyncio.to_thread(wait_for, database, SLEEPING)

    while not task.done():
        task.cancel()
        await asyncio.sleep(0)

    assert task.cancelled()
    assert open_connections(database) == []


@pytest.mark.parametrize("driver", DRIVERS[:2])
async def test_on_a_connection_of_the_caller(
    project: Project, ini: Path, database: URL, driver: str
) -> None:
    project.add(SLEEP)
    engine = create_engine(database.set(drivername=driver))

    async def migrate() -> None:
        async with engine.connect() as connection:
            await upgrade(ini, connection=connection)

    task = asyncio.create_task(migrate())
    await asyncio.to_thread(wait_for, database, SLEEPING)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.dispose()

    assert open_connections(database) == []


async def test_the_next_upgrade_finds_nothing_in_its_way(
    project: Project, ini: Path, database: URL, url: URL
) -> None:
    project.add(SLEEP)
    async with cancelled(ini, url):
        await asyncio.to_thread(wait_for, database, SLEEPING)
    project.write(
        "migrations/versions/r1.py", "revision = 'r1'\ndown_revision = None\ndef upgrade(): pass\n"
    )

    await upgrade(ini, database_url=url)

    assert await is_at_head(ini, database_url=url)


def test_ctrl_c_ends_a_program(project: Project, ini: Path, database: URL, url: URL) -> None:
    project.add(SLEEP)

    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=project.folder,
        env=environment(url),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for(database, SLEEPING)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()

    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "Warning" not in errors
    assert open_connections(database) == []
