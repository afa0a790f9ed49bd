"""Ctrl-C in the middle of a migration ends it at once, and its connection."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from harness.migrations import (
    ALEMBIC,
    SLEEP,
    SLEEPING,
    Project,
    environment,
    open_connections,
    rows,
)

if TYPE_CHECKING:
    from sqlalchemy import URL


# psycopg2 waits in C, and looks at signals only when the server has answered.
async_drivers = pytest.mark.parametrize("driver", ["postgresql+asyncpg", "postgresql+psycopg"])


def wait_for_the_migration(database: URL) -> None:
    deadline = time.monotonic() + 30
    while not rows(database, SLEEPING):
        assert time.monotonic() < deadline, "the migration did not begin"
        time.sleep(0.05)


@async_drivers
def test_the_command_ends_and_leaves_no_connection(
    project: Project, database: URL, driver: str
) -> None:
    project.add(SLEEP)
    with subprocess.Popen(
        [ALEMBIC, "upgrade", "head"],
        cwd=project.folder,
        env=environment(database.set(drivername=driver)),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for_the_migration(database)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()

    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "Warning" not in errors
    assert open_connections(database) == []


@async_drivers
def test_a_coroutine_ends_and_leaves_no_connection(
    project: Project, database: URL, driver: str
) -> None:
    """Its loop is one that leaves Ctrl-C to Python's own handler, which raises."""
    project.add(SLEEP)

    def press_ctrl_c() -> None:
        wait_for_the_migration(database)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    async def migrate() -> None:
        project.upgrade(database.set(drivername=driver))

    loop = asyncio.new_event_loop()
    started = time.monotonic()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(migrate())
    loop.close()

    assert time.monotonic() - started < 40
    assert open_connections(database) == []
