"""Alembic's commands for programs that run an event loop."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from alembic import command
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.ext.asyncio import AsyncConnection

from mgf.alembic._config import own_config, stable_path
from mgf.alembic._run import run_in_thread
from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from os import PathLike

    from alembic.config import Config
    from sqlalchemy import URL, Connection

T = TypeVar("T")

# Alembic keeps the command that runs in module globals: one at a time in a process.
_alembic = threading.Lock()


async def upgrade(
    config: Config | str | PathLike[str],
    revision: str = "head",
    *,
    database_url: str | URL | None = None,
    connection: AsyncConnection | None = None,
) -> None:
    """Upgrade the database to a revision, by ``env.py`` and `configure_env`.

    It runs in a thread, so that the event loop goes on, and may run in several processes at once.
    Cancelled, it stops what the migration does, waits until its connections are closed, and
    leaves steps that had committed. A synchronous driver that cannot interrupt a statement
    (pymysql) is waited for. Logging is left alone: ``config.config_file_name`` is None meanwhile,
    which is how Alembic's template of ``env.py`` learns not to call ``fileConfig()``.

    Args:
        config: the path of ``alembic.ini`` or of ``pyproject.toml``, or of the folder with
            ``env.py``, or an `alembic.config.Config`, which is not changed.
        revision: as for ``alembic upgrade``; "heads" where there are several.
        database_url: in place of the one that ``env.py`` gives to `configure_env`. It may hold
            any character, and no parser of a configuration file reads it.
        connection: run on it as it is, in this event loop and without a lock, for example on
            SQLite in memory. A transaction that is open on it is left to the caller.

    Raises:
        AppConfigError: no such configuration, both a URL and a connection, or a URL and an
            ``env.py`` that does not call `configure_env`, which is found out when it has run.
        MigrationLockError: see `configure_env`.
    """

    def run(config: Config) -> None:
        command.upgrade(config, revision)

    await _run(run, config, database_url, connection)


async def downgrade(
    config: Config | str | PathLike[str],
    revision: str,
    *,
    database_url: str | URL | None = None,
    connection: AsyncConnection | None = None,
) -> None:
    """Downgrade the database to a revision; in all else as `upgrade`.

    Args:
        config: as for `upgrade`.
        revision: as for ``alembic downgrade``, such as "base" or "-1".
        database_url: as for `upgrade`.
        connection: as for `upgrade`.

    Raises:
        AppConfigError: as for `upgrade`.
        MigrationLockError: as for `upgrade`.
    """

    def run(config: Config) -> None:
        command.downgrade(config, revision)

    await _run(run, config, database_url, connection)


async def current(
    config: Config | str | PathLike[str],
    *,
    database_url: str | URL | None = None,
    connection: AsyncConnection | None = None,
) -> tuple[str, ...]:
    """Return the revisions of the database, sorted: none, one, or one for each branch.

    Nothing is changed, not even the version table made, and no lock taken. A revision that the
    scripts do not know is returned as well.

    Args:
        config: as for `upgrade`.
        database_url: as for `upgrade`.
        connection: as for `upgrade`.

    Raises:
        AppConfigError: as for `upgrade`.
    """
    return await _run(_current, config, database_url, connection)


async def is_at_head(
    config: Config | str | PathLike[str],
    *,
    database_url: str | URL | None = None,
    connection: AsyncConnection | None = None,
) -> bool:
    """Say whether ``upgrade`` to "heads" would find nothing to do, on every branch.

    True where there are no scripts at all and the database has no revision. False where it has
    one that the scripts do not know: newer code migrated it. It imports the scripts each time:
    ask at start, not for each request.

    Args:
        config: as for `upgrade`.
        database_url: as for `upgrade`.
        connection: as for `upgrade`.

    Raises:
        AppConfigError: as for `upgrade`.
    """
    return await _run(_is_at_head, config, database_url, connection)


def _current(config: Config) -> tuple[str, ...]:
    revisions, _ = _read(config)
    return tuple(sorted(revisions))


def _is_at_head(config: Config) -> bool:
    revisions, scripts = _read(config)
    try:
        # With those that others depend on, which have no row of their own.
        applied = {script.revision for script in scripts.get_all_current(revisions)}
    except CommandError:  # no such script
        return False
    return applied == set(scripts.get_heads())


def _read(config: Config) -> tuple[tuple[str, ...], ScriptDirectory]:
    scripts = ScriptDirectory.from_config(config)
    found: list[tuple[str, ...]] = []

    def note(revisions: tuple[str, ...], _context: Any) -> list[Any]:
        found.append(revisions)
        return []

    # As the command "current" does it, whose answer is printed.
    with EnvironmentContext(config, scripts, fn=note, dont_mutate=True):
        scripts.run_env()
    if not found:
        raise AppConfigError("env.py ran no migrations; it has to call configure_env()")
    return found[0], scripts


async def _run(
    function: Callable[[Config], T],
    config: Config | str | PathLike[str],
    database_url: str | URL | None,
    connection: AsyncConnection | None,
) -> T:
    own = own_config(config)
    if connection is None:
        own.attributes["database_url"] = database_url
        async with _alone():
            return await run_in_thread(partial(_run_with_url, function, own))
    if database_url is not None:
        raise AppConfigError("both database_url and connection were given; give one of them")
    if not isinstance(connection, AsyncConnection):
        raise AppConfigError(
            f"connection is of type {type(connection).__name__}, expected "
            "sqlalchemy.ext.asyncio.AsyncConnection; of an engine give database_url=engine.url"
        )
    async with _alone():
        return await connection.run_sync(_run_on, function, own)


def _run_with_url(function: Callable[[Config], T], config: Config) -> T:
    with stable_path(config):
        result = function(config)
    if config.attributes["database_url"] is not None and "configure_env" not in config.attributes:
        raise AppConfigError(
            "database_url was not looked at: env.py does not call configure_env(), and has run on "
            "the database that it knows itself; let it call mgf.alembic.configure_env()"
        )
    return result


def _run_on(connection: Connection, function: Callable[[Config], T], config: Config) -> T:
    config.attributes["connection"] = connection
    with stable_path(config):
        return function(config)


@asynccontextmanager
async def _alone() -> AsyncGenerator[None]:
    # Threads and event loops share it, which asyncio's own locks cannot.
    while not _alembic.acquire(blocking=False):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    try:
        yield
    finally:
        _alembic.release()
