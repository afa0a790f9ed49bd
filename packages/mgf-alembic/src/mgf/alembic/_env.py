"""What an ``env.py`` does: find out how Alembic was called, and run the migrations so."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from alembic import context
from sqlalchemy import Connection, MetaData
from sqlalchemy.ext.asyncio import AsyncEngine

from mgf.alembic._database import create_migration_engine, read_dialect
from mgf.alembic._naming import apply_naming_convention
from mgf.alembic._run import run_coroutine
from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    **options: Any,
) -> None:
    """Run Alembic's migrations: the whole of an ``env.py``, offline and online.

    Serves the command ``alembic`` and ``alembic.command``, also from code whose event loop is
    running, which then waits. A connection in ``config.attributes["connection"]`` is used as it
    is, and neither closed nor, where its transaction was open before, committed. Otherwise one
    connection is made, without a pool, and closed whatever happens; what a migration raises
    arrives unchanged. With ``--sql`` nothing is connected, and no driver needed.

    Args:
        database_url: as for `mgf.sqlalchemy.create_engine`, and any synchronous driver
            (``postgresql+psycopg2://``, ``mysql+pymysql://``). ``sqlite://`` without a driver is
            synchronous. Not looked at when a connection was handed over.
        target_metadata: what autogenerate compares the database with.
        compare_type: let autogenerate see a changed column type, or a function that compares.
        compare_server_default: the same for server defaults.
        naming_convention: put on the metadata before anything else. Constraints that the models
            left without a name are named by it; indexes keep their names.
        include_object: handed to ``alembic.context.configure`` as it is.
        include_schemas: likewise.
        options: further arguments of ``alembic.context.configure``, such as ``version_table``,
            ``include_name`` or ``transaction_per_migration``. ``render_as_batch`` is on for
            SQLite unless given, since SQLite alters hardly anything in place; ``literal_binds``
            is on with ``--sql``.

    On SQLite foreign keys are off while migrations run: a batch operation drops the old table,
    which would delete the rows that refer to it. Logging is left alone.

    Raises:
        AppConfigError: called outside Alembic, no URL or one that cannot work, a connection that
            is no `sqlalchemy.Connection`, or an option that the URL settles.
    """
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
    if offline:
        _write_sql(database_url, options)
    elif (connection := _given_connection()) is not None:
        _migrate(connection, options)
    else:
        _connect_and_migrate(database_url, options)


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


def _write_sql(database_url: str | URL | None, options: Mapping[str, Any]) -> None:
    url = read_dialect(database_url)
    offline = {
        "literal_binds": True,
        # The driver's own style would double every percent sign in the script.
        "dialect_opts": {"paramstyle": "named"},
    }
    _run(url.get_backend_name(), {"url": url, **offline, **options})


def _connect_and_migrate(database_url: str | URL | None, options: Mapping[str, Any]) -> None:
    engine = create_migration_engine(database_url)
    if isinstance(engine, AsyncEngine):
        run_coroutine(partial(_migrate_async, engine, options))
        return
    try:
        with engine.connect() as connection:
            _migrate(connection, options)
    finally:
        engine.dispose()


async def _migrate_async(engine: AsyncEngine, options: Mapping[str, Any]) -> None:
    try:
        # Not begin(): inside its transaction autocommit_block() could not commit.
        async with engine.connect() as connection:
            await connection.run_sync(_migrate, options)
    finally:
        await engine.dispose()


def _migrate(connection: Connection, options: Mapping[str, Any]) -> None:
    _run(connection.dialect.name, {"connection": connection, **options})


def _run(dialect: str, options: Mapping[str, Any]) -> None:
    settings: dict[str, Any] = {"render_as_batch": dialect == "sqlite", **options}
    context.configure(**settings)
    with context.begin_transaction():
        context.run_migrations()
