"""The database of a migration run: its dialect, and an engine that keeps no connection."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import sqlalchemy
from sqlalchemy import URL, NullPool, event, make_url
from sqlalchemy.exc import ArgumentError

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import create_engine

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry

# Where a URL names no driver, mgf.sqlalchemy.normalize_url finds an async one for these. For
# SQLite, and for what SQLAlchemy itself does not know, the dialect's own default is taken.
_ASYNC_BY_DEFAULT = {"mariadb", "mssql", "mysql", "oracle", "postgresql"}

# No part of the URL is quoted: when it is malformed, any of them may hold the password's rest.
_MALFORMED = (
    "the database URL is malformed; write dialect+driver://user:password@host:port/database, and "
    "percent-encode the characters @ : / ? # of user name, password, database and values "
    "(urllib.parse.quote(text, safe='')), or build it with sqlalchemy.URL.create()"
)


def read_dialect(database_url: str | URL | None) -> URL:
    """Return a URL of nothing but the dialect and, if named, the driver, which is not imported.

    Raises:
        AppConfigError: no URL, none that can be read, or SQLAlchemy does not know the dialect.
    """
    given = _require(database_url)
    if isinstance(given, URL):
        name = given.drivername
    else:
        name, separator, _ = given.partition("://")
        if not separator or re.fullmatch(r"[\w+]+", name) is None:
            raise AppConfigError(_MALFORMED)
    url = URL.create(re.sub(r"^postgres\b", "postgresql", name))
    try:
        url.get_dialect()
    except (ArgumentError, AttributeError, ImportError, ValueError):
        raise AppConfigError(
            f"SQLAlchemy knows no dialect or driver {name!r}; check the spelling, or install the "
            "package that provides it"
        ) from None
    return url


def create_migration_engine(database_url: str | URL | None) -> Engine | AsyncEngine:
    """Make the engine that the URL asks for, with no pool and no values in its errors.

    Raises:
        AppConfigError: the URL cannot work, or its driver is not installed.
    """
    dialect = read_dialect(database_url)
    given = _require(database_url)
    if _is_async(dialect):
        async_engine = create_engine(given, poolclass=NullPool)
        _leave_foreign_keys_off(async_engine.sync_engine)
        return async_engine
    url = _parse(given).set(drivername=dialect.drivername)
    try:
        # Through the module, so that instrumentation which replaces the function there applies.
        engine = sqlalchemy.create_engine(url, poolclass=NullPool, hide_parameters=True)
    except ImportError as error:
        raise AppConfigError(
            f"the driver of {url.drivername}:// cannot be imported ({error}); install it"
        ) from None
    except (ArgumentError, TypeError, ValueError) as error:
        raise _parameter_error(url, error) from None
    _leave_foreign_keys_off(engine)
    return engine


def connect(engine: Engine) -> Connection:
    """Connect with a synchronous driver.

    Raises:
        AppConfigError: the driver does not take a parameter of the URL.
    """
    try:
        return engine.connect()
    except (TypeError, ValueError) as error:
        raise _parameter_error(engine.url, error) from None


def _require(database_url: str | URL | None) -> str | URL:
    if isinstance(database_url, URL):
        return database_url
    if not isinstance(database_url, str | None):
        raise AppConfigError(
            f"database_url is of type {type(database_url).__name__}, expected str or "
            "sqlalchemy.URL; pass str(url) of a pydantic DSN, get_secret_value() of a SecretStr"
        )
    # Blanks and quotes come from files of environment variables; nothing inside is touched.
    text = re.sub(r"""^(["'])(.*)\1$""", r"\2", (database_url or "").strip()).strip()
    if not text:
        raise AppConfigError(
            f"configure_env() got database_url={database_url!r}; pass it in migrations/env.py, "
            "for example database_url=os.environ['DATABASE_URL'], and set that variable where "
            "the migrations run (sqlalchemy.url of alembic.ini is not read)"
        )
    return text


def _parameter_error(url: URL, error: Exception) -> AppConfigError:
    # What looks like a parameter may be the rest of a password that was not percent-encoded.
    query = urlencode(url.query, doseq=True, safe="@")
    reason = "" if "@" in query or "passw" in query else f": {error}"
    return AppConfigError(
        f"the driver of {url.drivername}:// does not take the parameters of the database URL"
        f"{reason}; check what stands behind its '?'"
    )


def _is_async(dialect: URL) -> bool:
    if dialect.drivername in _ASYNC_BY_DEFAULT:
        return True
    # As create_async_engine does it: psycopg's dialect is two, sync and async.
    return dialect.get_dialect().get_async_dialect_cls(dialect).is_async


def _parse(given: str | URL) -> URL:
    if isinstance(given, URL):
        return given
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):  # the latter for the port, and quotes it
        raise AppConfigError(_MALFORMED) from None
    if url.username is not None and _holds_more_password(given.partition("@")[2], url.database):
        raise AppConfigError(_MALFORMED)
    return url


def _holds_more_password(rest: str, database: str | None) -> bool:
    """Say whether an "@" follows the first one, which SQLAlchemy takes for the password's end.

    Drivers quote what they take for a host. In the value of a parameter an "@" may stand.
    """
    place, _, query = rest.partition("?")
    if "@" in place or "@" not in query:
        return "@" in place
    names = [item.partition("=")[0] for item in query.split("&")]
    return not database or "=" not in query or not all(re.fullmatch(r"\w+", n) for n in names)


def _leave_foreign_keys_off(engine: Engine) -> None:
    """Keep SQLite from deleting what refers to a table that a batch operation replaces.

    DROP TABLE deletes the rows first, and with foreign keys on that reaches other tables:
    https://www.sqlite.org/lang_droptable.html. Within a transaction the switch has no effect.
    """
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _switch_foreign_keys_off)


def _switch_foreign_keys_off(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA foreign_keys = OFF")
    finally:
        cursor.close()
