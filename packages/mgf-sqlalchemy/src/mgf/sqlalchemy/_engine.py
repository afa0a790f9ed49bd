"""The engine: SQLAlchemy's own, made from what platforms hand out, with safe defaults."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import sqlalchemy.ext.asyncio
from sqlalchemy import event
from sqlalchemy.pool import QueuePool, StaticPool

from mgf.common import UnconfiguredWarning, current_context
from mgf.sqlalchemy._carrier import carrier_class
from mgf.sqlalchemy._pool import validate_checkouts
from mgf.sqlalchemy._url import connect_arguments, normalize_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import URL
    from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry, Pool

# How long a writer waits for another one on a SQLite file, in milliseconds.
_SQLITE_BUSY_TIMEOUT = 5000


def create_engine(
    database_url: str | URL,
    *,
    echo: bool = False,
    pool_pre_ping: bool = True,
    pool_ping_idle: float = 1.0,
    pool_recycle: int = 3600,
    pool_size: int = 5,
    max_overflow: int = 10,
    **extra: Any,
) -> AsyncEngine:
    """Make an async engine; the first connection is made by its first use.

    Args:
        database_url: any SQLAlchemy URL or one that a platform hands out, see `normalize_url`.
        echo: log every statement.
        pool_pre_ping: never hand out a connection whose closing has reached this host (known
            without a round trip), and ping one that was idle for longer than `pool_ping_idle`.
        pool_ping_idle: seconds of rest after which a connection is pinged when it is checked
            out: one round trip, given up after 2 seconds with asyncpg and psycopg. 0 pings at
            every checkout.
        pool_recycle: seconds after which a connection is replaced when it is checked out.
        pool_size: connections that are kept. Without effect for SQLite and for pools that have
            no size.
        max_overflow: connections beyond `pool_size` under load. As `pool_size`.
        extra: goes to ``create_async_engine`` untouched; `connect_args` is merged with what the
            URL asks for and wins over it. ``hide_parameters`` is on unless given: SQLAlchemy
            adds no bound values to errors and logs. The database's own message may quote one.

    On PostgreSQL ``application_name`` is the name given to `mgf.common.bootstrap`, if it was
    called by then and the caller names none. SQLite files get foreign keys, a write-ahead log
    and a busy timeout of 5 seconds; a SQLite database in memory is one shared connection.

    Raises:
        AppConfigError: the URL cannot work, see `normalize_url`.
    """
    url, arguments = connect_arguments(normalize_url(database_url))
    dialect: Dialect = url.get_dialect().get_async_dialect_cls(url)()
    options: dict[str, Any] = {
        "echo": echo,
        "hide_parameters": True,
        "pool_recycle": pool_recycle,
        **extra,
    }
    options["connect_args"] = _merge(
        _identity(dialect, url), arguments, options.get("connect_args") or {}
    )
    if "pool" in extra:
        del options["pool_recycle"]  # a ready-made pool has its own
    else:
        pool_class = options.setdefault("poolclass", _pool_class(dialect, url))
        if issubclass(pool_class, QueuePool) and dialect.name != "sqlite":
            options |= {"pool_size": pool_size, "max_overflow": max_overflow}
    # Through the module, so that instrumentation which replaces the function there applies.
    engine = sqlalchemy.ext.asyncio.create_async_engine(url, **options)
    if engine.dialect.driver == "asyncpg":
        _replace_connect(engine.dialect)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _set_pragmas)
        if url.query.get("mode") != "ro":
            event.listen(engine.sync_engine, "connect", _write_ahead)
    elif pool_pre_ping:
        validate_checkouts(engine, ping_idle=pool_ping_idle)
    return engine


def _pool_class(dialect: Dialect, url: URL) -> type[Pool]:
    # SQLAlchemy takes the URI form for a file, and gives each connection its own database.
    if dialect.name == "sqlite" and ":memory:" in (url.database or ":memory:"):
        return StaticPool
    if dialect.name == "sqlite" and url.query.get("mode") == "memory":
        return StaticPool
    return dialect.get_dialect_pool_class(url)


def _identity(dialect: Dialect, url: URL) -> dict[str, Any]:
    """Return the connect arguments that name the application to PostgreSQL."""
    # Also when "options" sets it: a setting of ours would win over that.
    if dialect.name != "postgresql" or "application_name" in str(dict(url.query)):
        return {}
    with warnings.catch_warnings():
        # The mgf-common that others publish warns when it is asked before there is one.
        warnings.simplefilter("ignore", UnconfiguredWarning)
        context = current_context()
    if context is None:
        return {}
    if dialect.driver == "asyncpg":
        return {"server_settings": {"application_name": context.app_name}}
    return {"fallback_application_name": context.app_name}


def _merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge connect arguments, later ones winning; nested mappings are merged too."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            before = merged.get(key)
            if isinstance(before, dict) and isinstance(value, dict):
                merged[key] = before | value
            else:
                merged[key] = value
    return merged


def _replace_connect(dialect: Any) -> None:
    """Connect with a class of ours, and raise SQLAlchemy's ``OperationalError`` when that fails.

    SQLAlchemy lets an ``OSError`` (refused, unknown host, timeout) pass, 2.0 asyncpg's own errors
    (wrong password) too, and 2.1 makes them a bare ``DBAPIError``. This is no listener for
    ``do_connect``: the one that returns a connection keeps all others from being asked, and users
    have their own there, for passwords that change.
    """
    import asyncpg  # only where an engine uses it: users pick their drivers

    connect, dbapi = dialect.connect, dialect.loaded_dbapi

    def replacement(*arguments: Any, **options: Any) -> DBAPIConnection:
        if "async_creator_fn" not in options:  # it may not know what to do with the class
            base = options.get("connection_class", asyncpg.Connection)
            options["connection_class"] = carrier_class(base, dbapi.OperationalError)
        try:
            connection: DBAPIConnection = connect(*arguments, **options)
        except (
            OSError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            dbapi.Error,
        ) as exc:
            message = f"cannot connect to {_place(options)}: {_reason(exc)}"
            error = dbapi.OperationalError(message)
            error.sqlstate = getattr(exc, "sqlstate", None)
            raise error from exc
        return connection

    dialect.connect = replacement


def _place(options: Mapping[str, Any]) -> str:
    host, port = options.get("host") or "the default host", options.get("port") or "default port"
    if isinstance(host, str):
        return f"{host}:{port}"
    return f"{', '.join(map(str, host))} (port {port})"


def _reason(exc: BaseException) -> str:
    # A timeout has no text of its own.
    return str(exc) or type(exc).__name__


def _set_pragmas(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    _run(connection, "PRAGMA foreign_keys = ON")
    _run(connection, f"PRAGMA busy_timeout = {_SQLITE_BUSY_TIMEOUT}")


def _write_ahead(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    # In memory there is nothing to write ahead to: SQLite answers "memory".
    _run(connection, "PRAGMA journal_mode = WAL")


def _run(connection: DBAPIConnection, statement: str) -> None:
    cursor = connection.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()
