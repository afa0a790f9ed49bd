"""The async drivers: which serve a database, and what they take from its URL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy._url.parameters import (
    Reader,
    boolean,
    choice,
    connect_names,
    move_identity,
    read_parameter,
    read_parameters,
    seconds,
    whole_number,
)
from mgf.sqlalchemy._url.postgresql import (
    asyncpg_arguments,
    canonical_postgresql,
    psycopg_arguments,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import URL

# By database; a driver's name is also its package's. Where a URL names no driver, the first
# installed one serves.
ASYNC_DRIVERS: Mapping[str, tuple[str, ...]] = {
    "postgresql": ("asyncpg", "psycopg"),
    "sqlite": ("aiosqlite",),
    "mysql": ("asyncmy", "aiomysql"),
    "mariadb": ("asyncmy", "aiomysql"),
    "oracle": ("oracledb",),
    "mssql": ("aioodbc",),
}

_MYSQL_IDENTITY = {
    "user": "username",
    "password": "password",
    "passwd": "password",
    "database": "database",
    "db": "database",
}
# SQLAlchemy's dialect makes the numbers and booleans of the text; the rest is text for the driver.
_MYSQL: Mapping[str, Reader] = {
    "auth_plugin": str,
    "charset": str,
    "client_flag": whole_number,
    "connect_timeout": whole_number,
    "init_command": str,
    "local_infile": boolean,
    "program_name": str,
    "read_default_file": str,
    "read_default_group": str,
    "read_timeout": whole_number,
    "server_public_key": str,
    "sql_mode": str,
    "unix_socket": str,
    "use_unicode": boolean,
}
# SQLAlchemy makes a dict of them, which asyncmy takes. aiomysql wants an ssl.SSLContext.
_ASYNCMY_TLS: Mapping[str, Reader] = {
    "ssl_ca": str,
    "ssl_capath": str,
    "ssl_cert": str,
    "ssl_check_hostname": boolean,
    "ssl_cipher": str,
    "ssl_key": str,
}

# What SQLAlchemy's dialect reads itself.
_SQLITE: Mapping[str, Reader] = {
    "cached_statements": whole_number,
    "check_same_thread": boolean,
    "detect_types": whole_number,
    "isolation_level": choice(
        "DEFERRED", "IMMEDIATE", "EXCLUSIVE", "deferred", "immediate", "exclusive"
    ),
    "timeout": seconds,
    "uri": boolean,
}
# Part of the file name when that is a URI: https://www.sqlite.org/uri.html
_SQLITE_URI: Mapping[str, Reader] = {
    "cache": choice("shared", "private"),
    "immutable": boolean,
    "mode": choice("ro", "rw", "rwc", "memory"),
    "modeof": str,
    "nolock": boolean,
    "psow": boolean,
    "vfs": str,
}


def canonical(url: URL) -> tuple[URL, list[str]]:
    """Give every host and parameter its one name, for drivers whose parameters are known here.

    Returns the URL, and the names of what it requires but the driver cannot do.
    """
    driver = _known_driver(url)
    if not driver:
        return url, []
    # As if it had come as text: without blanks, which mean the default, and lists of one.
    query = {name: values for name, values in url.normalized_query.items() if any(values)}
    url = url.set(query={n: v[0] if len(v) == 1 else v for n, v in query.items()})
    if driver in ASYNC_DRIVERS["postgresql"]:
        return canonical_postgresql(url, driver)
    if driver in ASYNC_DRIVERS["mysql"]:
        return move_identity(url, _MYSQL_IDENTITY), []
    return url, []


def connect_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    """Split a normalised URL into what SQLAlchemy's dialect reads and the driver's arguments.

    Returns the URL to create the engine from, and its ``connect_args``.

    Raises:
        AppConfigError: the driver does not take a parameter or its value.
    """
    driver = _known_driver(url)
    return _ARGUMENTS[driver](url) if driver else (url, {})


def _known_driver(url: URL) -> str:
    """Return the driver's name, or ``""`` when its parameters are not known here."""
    backend, _, driver = url.drivername.partition("+")
    driver = driver.removesuffix("_async")  # SQLAlchemy's name for the async half of psycopg
    return driver if driver in _ARGUMENTS and driver in ASYNC_DRIVERS.get(backend, ()) else ""


def _aiosqlite_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    if url.host or url.port or url.username or url.password:
        raise AppConfigError(
            "an SQLite URL has a path and no host; write sqlite:///relative/path, "
            "sqlite:////absolute/path, or sqlite:// for a database in memory"
        )
    readers = dict(_SQLITE)
    if "uri" in url.query and read_parameter("uri", url.query["uri"], boolean):
        readers |= _SQLITE_URI
    if "vfs" in readers and "vfs" in url.query:
        readers |= dict.fromkeys(url.query.keys() - readers.keys(), str)  # the VFS reads them
    read_parameters(url, readers)
    return url, {}


def _mysql_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    driver = _known_driver(url)
    readers = {name: _MYSQL[name] for name in _MYSQL.keys() & connect_names(driver)}
    if driver == "asyncmy":
        readers |= _ASYNCMY_TLS
    read_parameters(url, readers)
    return url, {}


_ARGUMENTS: Mapping[str, Callable[[URL], tuple[URL, dict[str, Any]]]] = {
    "aiomysql": _mysql_arguments,
    "aiosqlite": _aiosqlite_arguments,
    "asyncmy": _mysql_arguments,
    "asyncpg": asyncpg_arguments,
    "psycopg": psycopg_arguments,
}
