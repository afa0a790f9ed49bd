"""What mgf.sqlalchemy raises on purpose, and how to read what a database raised.

::

    mgf.common.exceptions.AppError
    |-- ConfigError
    |   `-- AppConfigError       a URL, a driver or an option that cannot work
    `-- OperationError
        `-- TenantScopeError     a session or connection that cannot be scoped to a tenant
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from sqlalchemy import exc as sa_exc

from mgf.common.exceptions import OperationError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TenantScopeError", "is_transient", "sqlstate"]


class TenantScopeError(OperationError):
    """A session or connection cannot be scoped to a tenant, so no statement was sent."""


# PostgreSQL, appendix A (errcodes): connection exceptions, insufficient resources, and the
# single conditions that another attempt may not meet again.
_TRANSIENT_CLASSES = ("08", "53")
_TRANSIENT_CODES = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "55P03",  # lock_not_available
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
        "57P05",  # idle_session_timeout
        "25P03",  # idle_in_transaction_session_timeout
    }
)
# Conditions of those classes that time alone does not cure.
_LASTING_CODES = frozenset({"08P01", "53100"})  # protocol_violation, disk_full

# A wrong certificate, or a file that is not there or not to be read.
_LASTING_OS_ERRORS = (ssl.SSLCertVerificationError, PermissionError, FileNotFoundError)


def sqlstate(exc: BaseException) -> str | None:
    """Return the five-character SQLSTATE behind an exception, or None when there is none.

    Works on SQLAlchemy's exceptions and on the drivers' own (asyncpg, psycopg, psycopg2), also
    when they are the cause of another one. asyncpg's errors mostly arrive as a plain
    ``DBAPIError``, so the SQLSTATE, not the class, tells what happened.
    """
    for one in _chain(exc):
        for name in ("sqlstate", "pgcode"):
            code = getattr(one, name, None)
            if isinstance(code, str) and code:
                return code
    return None


def is_transient(exc: BaseException) -> bool:
    """Say whether the same work, done again from its start, may well succeed.

    True for connection trouble (refused, lost, timed out, SQLSTATE class 08), exhausted
    resources (class 53 but for a full disk, an exhausted pool), serialization failures,
    deadlocks, lock timeouts and a server that starts or stops. False for everything else, a
    wrong password and a statement timeout included. A commit whose connection was lost may have
    succeeded: repeat only work that may be done twice.

    psycopg gives no SQLSTATE for a connection that was not made. Once a password was asked for,
    all its failures read as False: also a connection limit of a role or database (53300 with
    asyncpg), and a network that broke at that moment.
    """
    code = sqlstate(exc)
    if code is not None:
        if code in _LASTING_CODES:
            return False
        return code in _TRANSIENT_CODES or code.startswith(_TRANSIENT_CLASSES)
    return any(_is_connection_trouble(one) for one in _chain(exc))


def _is_connection_trouble(exc: BaseException) -> bool:
    if isinstance(exc, _LASTING_OS_ERRORS):
        return False
    if isinstance(exc, sa_exc.TimeoutError | OSError):
        return True
    if isinstance(exc, sa_exc.DBAPIError):
        return exc.connection_invalidated or _is_failed_connect(exc.orig)
    return False


def _is_failed_connect(orig: BaseException | None) -> bool:
    """Tell psycopg's "could not connect" from its "was refused after a password was asked for".

    psycopg gives no SQLSTATE for either. Its error carries the unfinished libpq connection,
    which knows whether the server had asked for a password: then it was up, and said no.
    """
    connection = getattr(orig, "pgconn", None)
    return connection is not None and not getattr(connection, "used_password", True)


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """Yield the exception, what SQLAlchemy wrapped in it and what caused it, each once."""
    todo: list[BaseException | None] = [exc]
    seen: set[int] = set()
    while todo:
        one = todo.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [getattr(one, "orig", None), one.__cause__]
