"""What went wrong between a request and its database, told by SQLSTATE and never by class.

asyncpg's errors mostly arrive as a plain ``DBAPIError``, and PostgreSQL translates its messages.
"""

from __future__ import annotations

import re
import traceback
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import exc as sa_exc

from mgf.sqlalchemy.errors import is_transient, sqlstate

if TYPE_CHECKING:
    from collections.abc import Iterator


class Trouble(StrEnum):
    """A kind of database trouble that is no bug of the service; its value is stable."""

    UNAVAILABLE = "database-unavailable"
    """Refused, lost, starting, stopping, no connection or memory left (classes 08, 53, 57P0x)."""
    POOL_EXHAUSTED = "pool-exhausted"
    """No connection of this process's pool became free within ``pool_timeout``."""
    CONTENTION = "contention"
    """Serialization failure, deadlock, lock timeout (40001, 40P01, 55P03)."""
    STATEMENT_TIMEOUT = "statement-timeout"
    """The server's ``statement_timeout`` (57014), or the driver's own limit."""
    CONFLICT = "conflict"
    """Another row forbids this one: unique, foreign key, exclusion (23505, 23503, ...)."""
    CHECK_FAILED = "check-failed"
    """A check constraint, or a view's check option, refuses the row (23514, 44000)."""
    BAD_VALUE = "bad-value"
    """The database cannot store or compute a value (class 22), or the driver not send it."""
    ROW_REFUSED = "row-refused"
    """A row-level security policy refuses to let a row be written (42501)."""


# PostgreSQL, appendix A. What a code has not here, its class may have below.
_BY_CODE = {
    "23502": None,  # not_null_violation: nearly always a column that the service forgot to fill
    "23514": Trouble.CHECK_FAILED,
    "44000": Trouble.CHECK_FAILED,  # with_check_option_violation
    "40001": Trouble.CONTENTION,
    "40P01": Trouble.CONTENTION,
    "55P03": Trouble.CONTENTION,
}
_BY_CLASS = {"22": Trouble.BAD_VALUE, "23": Trouble.CONFLICT}

# What a driver lets pass as it is; others' errors of these kinds are none of the database's.
RAW_ERRORS: tuple[type[Exception], ...] = (OSError, UnicodeEncodeError)


def trouble_of(exc: BaseException) -> Trouble | None:
    """Return the kind of database trouble that an exception tells of.

    None for everything else, which is a bug or a misconfiguration: a wrong password, a missing
    table or GRANT, a NOT NULL column that was left empty, a value of a type that the driver does
    not take, a statement that somebody cancelled with ``pg_cancel_backend``.

    psycopg has no SQLSTATE for a connection that was not made: what cannot be told apart there is
    said by `mgf.sqlalchemy.errors.is_transient`.
    """
    if isinstance(exc, RAW_ERRORS) and not _came_through_sqlalchemy(exc):
        return None
    if isinstance(exc, sa_exc.TimeoutError):
        return Trouble.POOL_EXHAUSTED
    if isinstance(exc, TimeoutError):  # the driver's: command_timeout of asyncpg
        return Trouble.STATEMENT_TIMEOUT
    code = sqlstate(exc)
    if code is None:
        if _is_unencodable(exc):
            return Trouble.BAD_VALUE
        return Trouble.UNAVAILABLE if is_transient(exc) else None
    return _trouble_of_code(code, exc)


def _trouble_of_code(code: str, exc: BaseException) -> Trouble | None:
    if code in _BY_CODE:
        return _BY_CODE[code]
    if code == "42501":
        return Trouble.ROW_REFUSED if _source_function(exc) == "ExecWithCheckOptions" else None
    if code == "57014":
        return None if _was_cancelled_by_somebody(exc) else Trouble.STATEMENT_TIMEOUT
    if code == "22000" and _is_of_wrong_type(exc):
        return None
    if is_transient(exc):
        return Trouble.UNAVAILABLE
    return _BY_CLASS.get(code[:2])


def constraint_of(exc: BaseException) -> str | None:
    """Return the name of the constraint that an error is about."""
    return _field(exc, "constraint_name", "constraint_name")


def driver_message(exc: BaseException) -> str:
    """Return what the driver says, without SQLAlchemy's statement. It may quote values."""
    return str(getattr(exc, "orig", None) or exc)


def _source_function(exc: BaseException) -> str | None:
    return _field(exc, "server_source_function", "source_function")


def _field(exc: BaseException, of_asyncpg: str, of_psycopg: str) -> str | None:
    for one in _driver_errors(exc):
        diagnosis: Any = getattr(one, "diag", None)
        value: str | None = getattr(one, of_asyncpg, None) or getattr(diagnosis, of_psycopg, None)
        if value:
            return value
    return None


def _driver_errors(exc: BaseException) -> Iterator[BaseException]:
    """Yield the error as SQLAlchemy and as the driver raised it."""
    orig = getattr(exc, "orig", None)
    yield from (one for one in (exc, orig, getattr(orig, "__cause__", None)) if one is not None)


def _was_cancelled_by_somebody(exc: BaseException) -> bool:
    # Both ways end in the same function with the same SQLSTATE: only the text tells them apart.
    # Where lc_messages is not English, whatever ended a statement counts as its timeout.
    return "user request" in driver_message(exc)


def _is_of_wrong_type(exc: BaseException) -> bool:
    """Say whether asyncpg refused to encode what is no value of the column's type at all.

    It raises its 22000 itself, with the reason as cause: an OverflowError or ValueError for a
    value, a TypeError where the service passed, say, a str for an integer.
    """
    return any(isinstance(one.__cause__, TypeError) for one in _driver_errors(exc))


def _is_unencodable(exc: BaseException) -> bool:
    """Say whether psycopg refused to send a text with a NUL, or with half a surrogate pair.

    A DataError without SQLSTATE is raised for what it cannot read too, such as an infinite
    timestamp, which is not the request's fault; its texts are not translated.
    """
    if isinstance(exc, UnicodeEncodeError):
        return True
    return isinstance(exc, sa_exc.DataError) and bool(re.search(r"\bNUL\b", str(exc.orig)))


def _came_through_sqlalchemy(exc: BaseException) -> bool:
    frames = traceback.walk_tb(exc.__traceback__)
    modules = (frame.f_globals.get("__name__", "") for frame, _ in frames)
    return any(name.startswith("sqlalchemy.") for name in modules)
