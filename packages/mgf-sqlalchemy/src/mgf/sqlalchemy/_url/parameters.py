"""Read the parameters of a URL's query, refusing by name what a driver would trip over."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sqlalchemy.engine import URL

from mgf.common.exceptions import AppConfigError

# Gives the driver's value for a text; its ValueError says the accepted form.
Reader = Callable[[str], Any]


def choice(*accepted: str) -> Reader:
    """Return a reader of one of these words."""

    def read(text: str) -> str:
        if text not in accepted:
            raise ValueError(f"one of {', '.join(accepted)}")
        return text

    return read


def boolean(text: str) -> bool:
    """Read the words that SQLAlchemy's dialects take for a boolean."""
    if text.lower() in {"true", "yes", "on", "y", "t", "1"}:
        return True
    if text.lower() in {"false", "no", "off", "n", "f", "0"}:
        return False
    raise ValueError("true or false")


def whole_number(text: str) -> int:
    """Read a number of at most nine digits: drivers and servers keep them in 32 bits."""
    if text.isascii() and text.isdecimal() and len(text) <= 9:
        return int(text)
    raise ValueError("a whole number from 0 on")


def seconds(text: str) -> float:
    """Read a finite number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("a number of seconds")
    return value


def positive_seconds(text: str) -> float:
    """Read a number of seconds above 0."""
    if (value := seconds(text)) > 0:
        return value
    raise ValueError("a number of seconds above 0")


def connect_timeout(text: str) -> float | None:
    """Read libpq's timeout: "zero, negative, or not specified means wait indefinitely"."""
    return value if (value := seconds(text)) > 0 else None


def connect_names(package: str) -> frozenset[str]:
    """Return what the installed driver's ``connect()`` takes by name."""
    connect: Callable[..., Any] = importlib.import_module(package).connect
    return frozenset(inspect.signature(connect).parameters)


def move_identity(url: URL, names: Mapping[str, str]) -> URL:
    """Move user, password and database out of the query, over what stands before it.

    Args:
        url: the URL.
        names: parameters, with the URL's field that each of them means.
    """
    fields: dict[str, Any] = url._asdict()
    moved = names.keys() & url.query.keys()
    for name in moved:
        fields[names[name]] = read_parameter(name, url.query[name], str)
    if fields["password"] is not None and fields["username"] is None:
        fields["username"] = ""  # URL renders no password without a user
    return URL.create(**fields).difference_update_query(moved)


def read_parameters(url: URL, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """Read the query of a URL for a driver that takes just these parameters.

    ``plugin`` is SQLAlchemy's own; beside it a name may be the plugin's and passes.

    Raises:
        AppConfigError: another name, a value that its reader refuses, or a name given twice.
    """
    names = url.query.keys() - {"plugin"}
    unknown = sorted(names - readers.keys())
    if unknown and "plugin" not in url.query:
        raise _unknown_parameter(url.drivername, unknown[0], readers)
    return {
        name: read_parameter(name, url.query[name], readers[name])
        for name in sorted(names & readers.keys())
    }


def read_parameter(name: str, value: str | tuple[str, ...], reader: Reader) -> Any:
    """Read one parameter.

    Raises:
        AppConfigError: the reader refuses the value, or the name was given more than once.
    """
    if not isinstance(value, str):
        raise AppConfigError(f"the database URL has {name!r} {len(value)} times; keep one")
    try:
        return reader(value)
    except ValueError as error:
        message = f"the database URL has {name}={value!r}, expected {error}"
    raise AppConfigError(message)


def _unknown_parameter(drivername: str, name: str, known: Collection[str]) -> AppConfigError:
    message = (
        f"the database URL has {name!r}, which {drivername}:// does not take; remove it, or hand "
        "over in connect_args what it stands for"
    )
    if drivername == "postgresql+asyncpg":
        message += "; postgresql+psycopg:// takes every parameter of libpq"
        known = [*known, "sslmode"]  # renamed by now
    if guess := difflib.get_close_matches(name, known, n=1):
        message += f"; did you mean {guess[0]!r}?"
    return AppConfigError(message)
