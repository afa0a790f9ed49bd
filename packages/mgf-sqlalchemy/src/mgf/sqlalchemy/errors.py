"""What mgf.sqlalchemy raises on purpose, and how to read what a database raised.

::

    mgf.common.exceptions.AppError
    |-- ConfigError
    |   `-- AppConfigError       a URL, a driver or an option that cannot work
    `-- OperationError
        `-- TenantScopeError     a session or connection that cannot be scoped to a tenant
"""

from __future__ import annotations

import re
import ssl
import sys
from typing import TYPE_CHECKING, Any

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

# What PostgreSQL (53300, 57P01) and libpq say of a server that is full, or lost while connecting.
_PASSING = re.compile(
    "too many connections|connection slots are reserved|terminating connection"
    "|closed the connection|could not (?:receive|send) data"
)

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

    psycopg gives no SQLSTATE for a connection that was not made. A refusal before a password was
    asked for reads as True, one without any password included, such as an unknown role. After it
    only the text tells a server that is full or was lost from one that said no: where
    ``lc_messages`` is not English, the former reads as False too.
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
    if isinstance(exc, sa_exc.DBAPIError) and exc.connection_invalidated:
        return True
    psycopg: Any = sys.modules.get("psycopg")  # users pick their drivers
    return psycopg is not None and isinstance(exc, psycopg.OperationalError) and _is_passing(exc)


def _is_passing(exc: Any) -> bool:
    """Tell psycopg's "could not connect", or "was lost", from "was refused for good".

    It gives no SQLSTATE for any of them. Where it did not connect, its error carries what is left
    of the libpq connection, which knows whether the server had asked for a password: then it was
    up, and said no.
    """
    asked = exc.pgconn is not None and getattr(exc.pgconn, "used_password", True)
    return not asked or bool(_PASSING.search(str(exc)))


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
