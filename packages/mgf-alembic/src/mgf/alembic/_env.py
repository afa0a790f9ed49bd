"""What an ``env.py`` does: find out how Alembic was called, and run the migrations so."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from alembic import context
from sqlalchemy import Connection, MetaData
from sqlalchemy.ext.asyncio import AsyncEngine

from mgf.alembic._database import connect, create_migration_engine, read_dialect
from mgf.alembic._naming import apply_naming_convention
from mgf.alembic._run import run_coroutine
from mgf.alembic._runner import Limits, run, run_alone, run_on
from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alembic.runtime.environment import CompareServerDefault, CompareType, IncludeObjectFn
    from sqlalchemy import URL

# How to reach the database is settled by the URL, or by a connection that was handed over.
_SETTLED = ("connection", "url", "dialect", "dialect_name")


def configure_env(
    *,
    database_url: str | URL | None,
    target_metadata: MetaData | Sequence[MetaData] | None,
    compare_type: bool | CompareType = True,
    compare_server_default: bool | CompareServerDefault = True,
    naming_convention: Mapping[Any, Any] | None = None,
    include_object: IncludeObjectFn | None = None,
    include_schemas: bool = False,
    migrator_timeout: float | None = 600.0,
    lock_timeout: float | None = 5.0,
    lock_retries: int | None = 10,
    **options: Any,
) -> None:
    """Run Alembic's migrations: the whole of an ``env.py``, offline and online.

    Serves the command ``alembic``, `mgf.alembic.upgrade` and its like, and ``alembic.command``,
    also from code whose event loop is running, which then waits. A connection in
    ``config.attributes["connection"]`` is used as it is, and neither closed nor, where its
    transaction was open before, committed. Otherwise connections are made, without a pool, and
    closed whatever happens; what a migration raises arrives unchanged. With ``--sql`` nothing is
    connected, and no driver needed.

    On PostgreSQL the commands ``upgrade``, ``downgrade`` and ``stamp`` first take a lock, so that
    of several processes one migrates and the others then find nothing left to do. It is an
    advisory lock, named by database and version table, in a transaction on a connection of its
    own: it goes when the process ends, however, also behind a pooler in transaction mode, and is
    looked at before each step commits. Who hands over a connection has to keep others off
    himself, and waits for locks as he likes.

    Progress is shown on standard error when that is a terminal and the run takes longer than a
    second; otherwise logged to ``mgf.alembic``, a line for each step.

    Args:
        database_url: as for `mgf.sqlalchemy.create_engine`, and any synchronous driver
            (``postgresql+psycopg2://``, ``mysql+pymysql://``). ``sqlite://`` without a driver is
            synchronous. Not looked at when a connection was handed over, nor when a URL was, in
            ``config.attributes["database_url"]``.
        target_metadata: what autogenerate compares the database with.
        compare_type: let autogenerate see a changed column type, or a function that compares.
        compare_server_default: the same for server defaults.
        naming_convention: put on the metadata before anything else. Constraints that the models
            left without a name are named by it; indexes keep their names.
        include_object: handed to ``alembic.context.configure`` as it is.
        include_schemas: likewise.
        migrator_timeout: seconds to wait for another process that migrates; 0 does not wait.
            None takes no lock at all.
        lock_timeout: PostgreSQL's setting of that name, in seconds, for each transaction: a
            statement that waits longer for a lock fails, instead of stopping all traffic that
            queues behind it. Where the URL or the role has set one, that stays. None or 0 sets
            nothing.
        lock_retries: how often a step is tried again that failed so (SQLSTATE 55P03), or by a
            deadlock (40P01). The pauses grow from about half a second to half a minute. A step
            that was in an ``autocommit_block()``, or committed by itself, is not tried again, since
            it left something behind. None or 0 is never.
        options: further arguments of ``alembic.context.configure``, such as ``version_table`` or
            ``include_name``. ``transaction_per_migration`` is on unless given, so that another
            try resumes where the last one failed; ``render_as_batch`` for SQLite, which alters
            hardly anything in place; ``literal_binds`` with ``--sql``.

    On SQLite foreign keys are off while migrations run: a batch operation drops the old table,
    which would delete the rows that refer to it. Logging is left alone.

    Raises:
        AppConfigError: called outside Alembic, no URL or one that cannot work, a connection that
            is no `sqlalchemy.Connection`, or an option that the URL settles.
        MigrationLockError: another process still migrated after ``migrator_timeout``, a pooler
            gave no connection beside the one that holds the lock, or that one was lost; the step
            that ran is then rolled back.
    """
    limits = Limits(migrator_timeout, lock_timeout, lock_retries)
    offline = _is_offline()
    if settled := [name for name in _SETTLED if name in options]:
        raise AppConfigError(
            f"configure_env() takes no {settled[0]!r}; the database is database_url, or the "
            "connection in config.attributes['connection']"
        )
    if naming_convention is not None:
        for metadata in _listed(target_metadata):
            apply_naming_convention(metadata, naming_convention)
    options |= {
        "target_metadata": target_metadata,
        "compare_type": compare_type,
        "compare_server_default": compare_server_default,
        "include_object": include_object,
        "include_schemas": include_schemas,
    }
    if (url := _given_url()) is not None:
        database_url = url
    if offline:
        _write_sql(database_url, options)
    elif (connection := _given_connection()) is not None:
        run_on(connection, options)
    else:
        _connect(database_url, partial(run_alone, options=options, limits=limits))


def _is_offline() -> bool:
    try:
        return context.is_offline_mode()
    except (AttributeError, NameError):  # before the first command in a process, and after it
        raise AppConfigError(
            "configure_env() was called outside Alembic; call it in migrations/env.py, which "
            "the command alembic and the functions of alembic.command run"
        ) from None


def _listed(target_metadata: MetaData | Sequence[MetaData] | None) -> Sequence[MetaData]:
    if isinstance(target_metadata, MetaData):
        return [target_metadata]
    return target_metadata or []


def _given_connection() -> Connection | None:
    # Alembic's functions may have been replaced one by one, and then no config is there.
    config = getattr(context, "config", None)
    connection = None if config is None else config.attributes.get("connection")
    if connection is None or isinstance(connection, Connection):
        return connection
    raise AppConfigError(
        f"config.attributes['connection'] is of type {type(connection).__name__}, expected "
        "sqlalchemy.Connection; of an AsyncConnection hand over the connection that the "
        "function in `await connection.run_sync(function)` receives"
    )


def _given_url() -> str | URL | None:
    config = getattr(context, "config", None)
    if config is None:
        return None
    config.attributes["configure_env"] = True  # says that a URL would have been looked at
    url: str | URL | None = config.attributes.get("database_url")
    return url


def _write_sql(database_url: str | URL | None, options: Mapping[str, Any]) -> None:
    url = read_dialect(database_url)
    offline = {
        "literal_binds": True,
        # The driver's own style would double every percent sign in the script.
        "dialect_opts": {"paramstyle": "named"},
    }
    run(url.get_backend_name(), {"url": url, **offline, **options})


def _connect(database_url: str | URL | None, work: Callable[[Connection], None]) -> None:
    engine = create_migration_engine(database_url)
    if isinstance(engine, AsyncEngine):
        run_coroutine(partial(_connect_async, engine, work))
        return
    try:
        with connect(engine) as connection:
            work(connection)
    finally:
        engine.dispose()


async def _connect_async(engine: AsyncEngine, work: Callable[[Connection], None]) -> None:
    try:
        # Not begin(): inside its transaction autocommit_block() could not commit.
        async with engine.connect() as connection:
            await connection.run_sync(work)
    finally:
        await engine.dispose()
