"""The parameters of PostgreSQL URLs, for asyncpg and psycopg."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy._url.hosts import unify_hosts
from mgf.sqlalchemy._url.parameters import (
    Reader,
    boolean,
    choice,
    connect_names,
    connect_timeout,
    move_identity,
    positive_seconds,
    read_parameter,
    read_parameters,
    seconds,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.engine import URL

_IDENTITY = {
    "user": "username",
    "password": "password",
    "dbname": "database",
    "database": "database",
}

_SSL_MODE = choice("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_TLS_VERSION = choice("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_DEMAND = choice("disable", "prefer", "require")

# Where libpq itself finds a bad value only when it connects.
_LIBPQ_VALUES: Mapping[str, Reader] = {
    "channel_binding": _DEMAND,
    "connect_timeout": seconds,
    "gssencmode": _DEMAND,
    "gsslib": choice("gssapi", "sspi"),
    "ssl_max_protocol_version": _TLS_VERSION,
    "ssl_min_protocol_version": _TLS_VERSION,
    "sslmode": _SSL_MODE,
    "sslnegotiation": choice("postgres", "direct"),
    "target_session_attrs": choice(
        "any", "read-write", "read-only", "primary", "standby", "prefer-standby"
    ),
}

# SQLAlchemy's dialect hands these on as asyncpg wants them.
_ASYNCPG_URL: Mapping[str, Reader] = {
    "gsslib": _LIBPQ_VALUES["gsslib"],
    "host": str,
    "krbsrvname": str,
    "passfile": str,
    "port": str,
    "prepared_statement_cache_size": whole_number,
    "ssl": _SSL_MODE,
    "target_session_attrs": _LIBPQ_VALUES["target_session_attrs"],
}
# For these asyncpg.connect() wants a number or a boolean, and the dialect would hand on text.
_ASYNCPG_ARGUMENTS: Mapping[str, Reader] = {
    "command_timeout": positive_seconds,
    "direct_tls": boolean,
    "max_cacheable_statement_size": whole_number,
    "max_cached_statement_lifetime": whole_number,
    "servicefile": str,
    "statement_cache_size": whole_number,
}
# Sent untouched when the connection starts, as libpq does it.
_ASYNCPG_SETTINGS: Mapping[str, Reader] = {"application_name": str, "options": str}
# asyncpg.connect() heeds them within `dsn` alone, and there does with them what libpq does.
_ASYNCPG_DSN: Mapping[str, Reader] = {
    "service": str,
    "ssl_max_protocol_version": _TLS_VERSION,
    "ssl_min_protocol_version": _TLS_VERSION,
    "sslcert": str,
    "sslcrl": str,
    "sslkey": str,
    "sslnegotiation": _LIBPQ_VALUES["sslnegotiation"],
    "sslpassword": str,
    "sslrootcert": str,
}
_NOT_IN_ASYNCPG = ("channel_binding", "gssencmode")


def unnamed_statement() -> str:
    """Name no prepared statement: the unnamed one ends with the next, on any server connection."""
    return ""


# Behind PgBouncer in transaction mode the next statement may meet another server connection,
# which knows none of the statements prepared so far. Both caches off alone is not enough for
# asyncpg before 0.31, which names even a statement that it does not keep.
_PGBOUNCER: Mapping[str, Any] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": unnamed_statement,
}


def canonical_postgresql(url: URL, driver: str) -> tuple[URL, list[str]]:
    """Give hosts and parameters their one name; see `canonical`."""
    url = unify_hosts(move_identity(url, _IDENTITY))
    query = dict(url.query)
    if query.get("ssl") == "true":
        query["ssl"] = "require"  # as libpq reads JDBC's ssl=true
    if driver == "psycopg":
        _rename(query, "ssl", "sslmode", _SSL_MODE)
        return url.set(query=query), []
    _rename(query, "sslmode", "ssl", _SSL_MODE)
    _rename(query, "timeout", "connect_timeout", seconds)
    demands = {name: query.pop(name) for name in _NOT_IN_ASYNCPG if name in query}
    unmet = [n for n, text in demands.items() if read_parameter(n, text, _DEMAND) == "require"]
    return url.set(query=query), unmet


def asyncpg_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    """Split an asyncpg URL; see `connect_arguments`."""
    others = {**_ASYNCPG_ARGUMENTS, **_ASYNCPG_SETTINGS, **_ASYNCPG_DSN}
    others |= {"connect_timeout": connect_timeout, "pgbouncer": boolean}
    for name in {"service", "servicefile"} - connect_names("asyncpg"):
        del others[name]  # asyncpg before 0.31 would send them to the server as settings
    values = read_parameters(url, {**_ASYNCPG_URL, **others})
    arguments = _pick(values, _ASYNCPG_ARGUMENTS)
    if "connect_timeout" in values:
        arguments["timeout"] = values["connect_timeout"]
    if settings := _pick(values, _ASYNCPG_SETTINGS):
        arguments["server_settings"] = settings
    dsn = _pick(values, _ASYNCPG_DSN)
    if dsn.get("sslrootcert") == "system":
        _refuse_beside_system_roots(values)
        del dsn["sslrootcert"]
        arguments["ssl"] = True
    if dsn:
        arguments["dsn"] = f"postgresql://?{urlencode(dsn)}"
    if values.get("pgbouncer"):
        _refuse_beside_pgbouncer(values, "statement_cache_size", "prepared_statement_cache_size")
        arguments |= _PGBOUNCER
    return url.difference_update_query(others), arguments


def psycopg_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    """Split a psycopg URL; see `connect_arguments`."""
    from psycopg.pq import Conninfo

    options = {option.keyword.decode(): option for option in Conninfo.get_defaults()}
    readers = {name: _LIBPQ_VALUES.get(name, str) for name in options}
    own: dict[str, Reader] = {"pgbouncer": boolean, "prepare_threshold": whole_number}
    values = read_parameters(url, {**readers, **own})
    # libpq marks what must not be shown; out of the URL it is in no repr() of the engine.
    secrets = [name for name, option in options.items() if option.dispchar == b"*"]
    arguments = _pick(values, [*secrets, "prepare_threshold"])
    if values.get("pgbouncer"):
        _refuse_beside_pgbouncer(values, "prepare_threshold")
        arguments["prepare_threshold"] = None
    return url.difference_update_query([*secrets, *own]), arguments


def _pick(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _rename(query: dict[str, Any], name: str, to: str, reader: Reader) -> None:
    if name not in query:
        return
    value = query.pop(name)
    read_parameter(name, value, reader)
    if query.setdefault(to, value) != value:
        raise AppConfigError(f"the database URL has {name!r} and {to!r} at odds; keep one")


def _refuse_beside_system_roots(values: Mapping[str, Any]) -> None:
    # libpq's rule; and asyncpg reads no other TLS parameter beside the system's certificates.
    if values.get("ssl", "verify-full") != "verify-full":
        raise AppConfigError(
            "the database URL has sslrootcert=system, which needs sslmode=verify-full"
        )
    combinable = {"service", "sslnegotiation", "sslrootcert"}
    if beside := sorted(values.keys() & _ASYNCPG_DSN.keys() - combinable):
        raise AppConfigError(
            f"the database URL has {beside[0]!r} beside sslrootcert=system, which asyncpg cannot "
            "combine; name the file of the root certificates, or use postgresql+psycopg://"
        )


def _refuse_beside_pgbouncer(values: Mapping[str, Any], *names: str) -> None:
    if kept := [name for name in names if values.get(name)]:
        raise AppConfigError(
            f"the database URL has {kept[0]!r} beside pgbouncer=true, which turns prepared "
            "statements off; keep one of them"
        )
