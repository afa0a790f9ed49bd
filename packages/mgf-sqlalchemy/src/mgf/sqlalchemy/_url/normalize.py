"""Database URLs: from what people and platforms write to what SQLAlchemy's async dialects read."""

from __future__ import annotations

import importlib.util
import re
import warnings
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlencode

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy._url.drivers import ASYNC_DRIVERS, canonical, connect_arguments

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

# SQLAlchemy's reading of a URL: a password may hold anything but "@", also "/" and "?".
_SHAPE = re.compile(
    r"(?P<scheme>[\w+]+)://"
    r"(?:(?P<userinfo>[^:/]*(?::[^@]*)?)@)?"
    r"(?P<hosts>[^/?]*)"
    r"(?P<path>/[^?]*)?"
    r"(?:\?(?P<query>.*))?"
)
# A host and perhaps a port, in one of the forms of an authority.
_HOST_PORT = re.compile(r"(?:\[[^\]]*\]|[^\[\]:@]*)(?::[0-9]{1,5})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

# No part of the URL is quoted: when it is malformed, any of them may hold the password's rest.
_MALFORMED = (
    "the database URL is malformed; write dialect+driver://user:password@host:port/database?name="
    "value with a number from 1 to 65535 as port, and percent-encode the characters @ : / ? # of "
    "user name, password, database and values (urllib.parse.quote(text, safe='')), or build it "
    "with sqlalchemy.URL.create()"
)
# As little is said where the query may hold one.
_UNNAMED = (
    "the database URL has malformed parameters, or some that its driver does not take; which of "
    "them is not said, since they may be parts of a password that was not percent-encoded "
    "(urllib.parse.quote(text, safe=''))"
)


def normalize_url(url: str | URL) -> URL:
    """Return the URL with an async driver, and every parameter under one name.

    Nothing is opened; the dialect and its driver are imported, as creating an engine does. The
    result normalises to itself, also after ``render_as_string(hide_password=False)``.

    Args:
        url: any SQLAlchemy URL, or one that a platform hands out: surrounding blanks or one pair
            of quotes, ``postgres://``, libpq's forms of hosts (``h1:1,h2:2``, socket folders)
            and its query parameters are understood. A scheme without a driver gets the first
            installed one: asyncpg, psycopg; aiosqlite; asyncmy, aiomysql. For PostgreSQL, SQLite
            and MySQL every parameter is checked; parameters of other dialects, and any beside
            ``plugin=``, pass as they are.

    For asyncpg, ``sslmode`` becomes ``ssl``, and ``channel_binding`` and ``gssencmode`` are
    dropped, with a warning when one says ``require``. ``user`` and ``password`` in the query move
    before the host, so that ``str()`` of the URL masks them; other secrets (``sslpassword``)
    stay in the query.

    Raises:
        AppConfigError: neither a string nor a URL, malformed, an unknown dialect, a synchronous
            or missing driver, a parameter or a value that the driver does not take. The message
            holds no part of a password.
    """
    if isinstance(url, URL):
        result, unmet = _normalize(url, urlencode(url.query, doseq=True, safe="@"))
    elif isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance] - settings are untyped
        result, unmet = _normalize(*_parse(_cleaned(url)))
    else:
        raise AppConfigError(
            f"the database URL is of type {type(url).__name__}, expected str or sqlalchemy.URL; "
            "pass str(url) of a pydantic DSN, get_secret_value() of a SecretStr"
        )
    if unmet:
        warnings.warn(
            f"asyncpg cannot enforce {' and '.join(f'{name}=require' for name in unmet)} of the "
            "database URL and connects without; psycopg can: install it and write "
            "postgresql+psycopg://",
            UserWarning,
            stacklevel=2,
        )
    return result


def describe_url(url: URL) -> str:
    """Return driver, host, port and database of a URL, for messages: no user, no password."""
    place = {name: value for name, value in url.query.items() if name in {"host", "port"}}
    bare = URL.create(
        url.drivername, host=url.host, port=url.port, database=url.database, query=place
    )
    return unquote(bare.render_as_string())


def sync_driver_error(url: URL) -> AppConfigError:
    """Return the error for a synchronous driver, naming the async ones of that database."""
    backend = url.get_backend_name()
    drivers = ASYNC_DRIVERS.get(backend, ("<its async driver>",))
    return AppConfigError(
        f"the driver of {url.drivername}:// is synchronous; write "
        + " or ".join(f"{backend}+{driver}://" for driver in drivers)
    )


def _normalize(url: URL, query: str) -> tuple[URL, list[str]]:
    """Normalise a URL that was parsed, with its query as that was written."""
    if "@" in (url.host or ""):
        raise AppConfigError(_MALFORMED)
    url = _with_async_driver(url)
    try:
        url, unmet = canonical(url)
        connect_arguments(url)  # refuses what the driver does not take
        _refuse_bare_names(query)
    except AppConfigError:
        # An unescaped password ends in the query after "password=", by an "&" in it, and before
        # the host, by an "@" and a "?" in it.
        if "@" not in query and "passw" not in query:
            raise
    else:
        return url, unmet
    raise AppConfigError(_UNNAMED)


def _cleaned(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    if not text:
        raise AppConfigError("the database URL is empty; is the environment variable set?")
    return text


def _parse(text: str) -> tuple[URL, str]:
    match = _SHAPE.fullmatch(text)
    if match is None or _CONTROL.search(text) or _has_ambiguous_at(match):
        raise AppConfigError(_MALFORMED)
    query = match["query"] or ""
    if match["scheme"].partition("+")[0] in {"postgres", "postgresql"}:
        # make_url reads one host; canonical() reads all of libpq's forms.
        rest = text[: match.start("hosts")] + text[match.end("hosts") :]
        return make_url(rest).set(host=match["hosts"]), query
    if _HOST_PORT.fullmatch(match["hosts"]) is None:
        # make_url would raise a ValueError that quotes what stands in the port's place.
        raise AppConfigError(_MALFORMED)
    return make_url(text), query


def _has_ambiguous_at(match: re.Match[str]) -> bool:
    """Tell whether an unescaped "@" leaves open where the host begins."""
    userinfo, hosts = match["userinfo"], match["hosts"]
    # A path after no host is a file's, and that may hold one.
    if "@" in hosts or ("@" in (match["path"] or "") and (hosts or userinfo is not None)):
        return True
    # RFC 3986 ends the authority at the first of these: is "h:5432/db?x=a@b" a host and a
    # value, or a user and a password?
    authority, *rest = re.split("[/?#]", userinfo or "", maxsplit=1)
    return bool(rest) and _HOST_PORT.fullmatch(authority.rpartition("@")[2]) is not None


def _refuse_bare_names(query: str) -> None:
    bare = [field for field in query.split("&") if field and "=" not in field]
    if bare:
        raise AppConfigError(
            f"the database URL has {bare[0]!r} without a value; write {bare[0]}=value"
        )


def _with_async_driver(url: URL) -> URL:
    backend, _, driver = url.drivername.partition("+")
    backend = "postgresql" if backend == "postgres" else backend
    if not driver and backend in ASYNC_DRIVERS:
        driver = _installed_driver(backend)
    url = url.set(drivername=f"{backend}+{driver}" if driver else backend)
    dialect = _async_dialect(url)
    if not dialect.is_async:
        raise sync_driver_error(url)
    try:
        dialect.import_dbapi()
    except ImportError as error:
        raise AppConfigError(
            f"the driver of {url.drivername}:// cannot be imported ({error}); install or repair it"
        ) from None
    return url


def _installed_driver(backend: str) -> str:
    for driver in ASYNC_DRIVERS[backend]:
        if importlib.util.find_spec(driver) is not None:
            return driver
    raise AppConfigError(
        f"no async driver for {backend}:// is installed; install "
        + " or ".join(ASYNC_DRIVERS[backend])
    )


def _async_dialect(url: URL) -> type[Dialect]:
    try:
        # The same steps as create_async_engine: psycopg's dialect is two, sync and async.
        return url.get_dialect().get_async_dialect_cls(url)
    except (ArgumentError, AttributeError, ImportError, ValueError):
        # All four come out of its registry, AttributeError for postgresql+types, say.
        raise AppConfigError(
            f"SQLAlchemy knows no dialect or driver {url.drivername!r}; check the spelling, or "
            "install the package that provides it"
        ) from None
