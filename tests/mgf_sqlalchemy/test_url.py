"""Which URL comes out of `normalize_url`, and what it refuses."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from sqlalchemy import URL
from sqlalchemy.engine import make_url

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import normalize_url
from mgf.sqlalchemy._url import connect_arguments, describe_url

ASYNCPG = "postgresql+asyncpg://u:p@h/db"
PSYCOPG = "postgresql+psycopg://u:p@h/db"
SQLITE = "sqlite+aiosqlite:///file:db"

NORMALISED = {
    # schemes and what stands around them
    "postgres://u:p@h/db": ASYNCPG,
    "postgresql://u:p@h/db": ASYNCPG,
    "postgres+asyncpg://u:p@h/db": ASYNCPG,
    "postgres+psycopg://u:p@h/db": PSYCOPG,
    "postgresql+psycopg_async://u:p@h/db": "postgresql+psycopg_async://u:p@h/db",
    " \t postgres://u:p@h/db\r\n": ASYNCPG,
    '"postgres://u:p@h/db"': ASYNCPG,
    " ' postgres://u:p@h/db ' ": ASYNCPG,
    "sqlite://": "sqlite+aiosqlite://",
    "sqlite:///relative.db": "sqlite+aiosqlite:///relative.db",
    "sqlite:////home/me@work/a.db": "sqlite+aiosqlite:////home/me@work/a.db",
    "sqlite:///C:/data/a.db": "sqlite+aiosqlite:///C:/data/a.db",
    # hosts
    "postgres://u:p@h:6432/db": "postgresql+asyncpg://u:p@h:6432/db",
    "postgres://u:p@h:/db": ASYNCPG,
    "postgres://u:p@/db": "postgresql+asyncpg://u:p@/db",
    "postgres://u:p@:6432/db": "postgresql+asyncpg://u:p@:6432/db",
    "postgres://u:p@[::1]:6432/db": "postgresql+asyncpg://u:p@[::1]:6432/db",
    "postgres://u:p@[fe80::1%25eth0]/db": "postgresql+asyncpg://u:p@[fe80::1%eth0]/db",
    "postgres://u:p@/db?host=h": ASYNCPG,
    "postgres://u:p@/db?host=::1": "postgresql+asyncpg://u:p@[::1]/db",
    "postgres://u:p@/db?host=h:6432": "postgresql+asyncpg://u:p@h:6432/db",
    "postgres://u:p@h/db?port=6432": "postgresql+asyncpg://u:p@h:6432/db",
    "postgres://u:p@a:1,b:2/db": "postgresql+asyncpg://u:p@/db?host=a,b&port=1,2",
    "postgres://u:p@a,b:2/db": "postgresql+asyncpg://u:p@/db?host=a,b&port=5432,2",
    "postgres://u:p@[::1]:1,b/db": "postgresql+asyncpg://u:p@/db?host=::1,b&port=1,5432",
    "postgres://u:p@/db?host=a:1&host=b:2": "postgresql+asyncpg://u:p@/db?host=a,b&port=1,2",
    "postgres://u:p@/db?host=a,b&port=7": "postgresql+asyncpg://u:p@/db?host=a,b&port=7,7",
    "postgres://u:p@/db?host=/run/pg": "postgresql+asyncpg://u:p@/db?host=/run/pg",
    "postgres://u:p@:7/db?host=/run/pg": "postgresql+asyncpg://u:p@/db?host=/run/pg&port=7",
    "postgres://u:p@%2Frun%2Fpg:7/db": "postgresql+asyncpg://u:p@/db?host=/run/pg&port=7",
    "postgres://u:p@/db?host=/cloudsql/p:eu:i": (
        "postgresql+asyncpg://u:p@/db?host=/cloudsql/p:eu:i"
    ),
    # user, password and database
    "postgres:///?user=u&password=p%40&host=h&dbname=db": "postgresql+asyncpg://u:p%40@h/db",
    "postgres://h/db?password=p": "postgresql+asyncpg://:p@h/db",
    "postgres://me@server:p@h/db": "postgresql+asyncpg://me%40server:p@h/db",
    "postgres://u:a:b/c?d#e@h/db": "postgresql+asyncpg://u:a%3Ab%2Fc%3Fd%23e@h/db",
    # parameters
    "postgres://u:p@h/db?sslmode=verify-full": f"{ASYNCPG}?ssl=verify-full",
    "postgres://u:p@h/db?sslmode=require&ssl=require": f"{ASYNCPG}?ssl=require",
    "postgres://u:p@h/db?ssl=true": f"{ASYNCPG}?ssl=require",
    "postgres://u:p@h/db?timeout=3": f"{ASYNCPG}?connect_timeout=3",
    "postgres://u:p@h/db?channel_binding=prefer&gssencmode=disable": ASYNCPG,
    "postgres://u:p@h/db?application_name=me@work": f"{ASYNCPG}?application_name=me%40work",
    "postgres://u:p@h/db?plugin=tracing&tracing_level=2": (
        f"{ASYNCPG}?plugin=tracing&tracing_level=2"
    ),
    f"{PSYCOPG}?ssl=require": f"{PSYCOPG}?sslmode=require",
    "postgresql+psycopg_async://h/db?ssl=require": (
        "postgresql+psycopg_async://h/db?sslmode=require"
    ),
    f"{PSYCOPG}?channel_binding=require": f"{PSYCOPG}?channel_binding=require",
    f"{SQLITE}?uri=true&mode=memory&cache=shared": f"{SQLITE}?uri=true&mode=memory&cache=shared",
    f"{SQLITE}?uri=1&vfs=encrypted&key=k": f"{SQLITE}?uri=1&vfs=encrypted&key=k",
}


@pytest.mark.parametrize(("given", "expected"), NORMALISED.items())
def test_url_is_normalised(given: str, expected: str) -> None:
    assert normalize_url(given) == make_url(expected)


@pytest.mark.parametrize("given", NORMALISED)
def test_normalised_url_normalises_to_itself(given: str) -> None:
    once = normalize_url(given)
    assert normalize_url(once) == once
    assert normalize_url(once.render_as_string(hide_password=False)) == once


@pytest.mark.parametrize(
    "given",
    [
        "postgres://u:p@h:6432/db?sslmode=require",
        "postgres://u:p@[::1]:6432/db",
        "postgres://u:p@%2Frun%2Fpg:7/db",
        "postgres://u:p@:7/db?host=/cloudsql/p:eu:i",
        "postgres:///?user=u&password=p&host=a:1&host=b:2&dbname=db",
        "sqlite:////tmp/a.db",
    ],
)
def test_url_object_is_normalised_as_its_text(given: str) -> None:
    assert normalize_url(make_url(given)) == normalize_url(given)


@pytest.mark.parametrize("backend", ["postgresql+asyncpg", "mysql"])
def test_url_object_parsed_from_an_unescaped_password_is_refused(backend: str) -> None:
    with pytest.raises(AppConfigError, match="is malformed"):
        normalize_url(make_url(f"{backend}://u:p@ss@h/db"))


def test_url_object_names_nothing_of_an_unescaped_password() -> None:
    with pytest.raises(AppConfigError, match="which of them is not said"):
        normalize_url(make_url("postgresql://u:p@ss?w=x@h/db"))


def test_hosts_within_a_url_object_are_read_as_in_text() -> None:
    url = URL.create("postgresql", "u", "p", host="a:1,b", database="db")
    assert normalize_url(url) == normalize_url("postgresql://u:p@a:1,b/db")


def test_blank_parameter_of_a_url_object_means_the_default() -> None:
    url = make_url("postgresql://u:p@h/db").set(query={"sslmode": ""})
    assert normalize_url(url) == make_url(ASYNCPG)


def test_list_of_one_in_a_url_object_is_that_one() -> None:
    url = make_url("postgresql://u:p@h/db").set(query={"sslmode": ["require"]})
    assert normalize_url(url) == make_url(f"{ASYNCPG}?ssl=require")


def test_password_object_is_kept() -> None:
    """SQLAlchemy takes any object with ``__str__``, for instance one that makes tokens."""

    class Token:
        def __str__(self) -> str:
            return "token"

    token: Any = Token()
    assert normalize_url(URL.create("postgresql", "u", token, "h")).password is token


def test_password_of_the_query_is_masked() -> None:
    assert "secret" not in str(normalize_url("postgres://u@h/db?password=secret"))


def test_parameters_of_an_unknown_driver_pass() -> None:
    """Checked on a dialect whose driver is there: asyncpg's, registered under another name."""
    from sqlalchemy.dialects import registry

    registry.register(
        "elephant.asyncpg", "sqlalchemy.dialects.postgresql.asyncpg", "PGDialect_asyncpg"
    )
    url = "elephant+asyncpg://u:p@h/db?sslmode=require&anything=1"
    assert normalize_url(url) == make_url(url)
    assert connect_arguments(normalize_url(url)) == (make_url(url), {})


@pytest.mark.parametrize("name", ["channel_binding", "gssencmode"])
def test_what_asyncpg_cannot_enforce_is_dropped_with_a_warning(name: str) -> None:
    with pytest.warns(UserWarning, match=f"{name}=require.*psycopg") as caught:
        assert normalize_url(f"{ASYNCPG}?{name}=require") == make_url(ASYNCPG)
    assert len(caught) == 1


def test_both_together_are_one_warning() -> None:
    with pytest.warns(UserWarning, match="channel_binding=require and gssencmode") as caught:
        normalize_url(f"{ASYNCPG}?channel_binding=require&gssencmode=require")
    assert len(caught) == 1


def test_psycopg_needs_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normalize_url(f"{PSYCOPG}?channel_binding=require&gssencmode=require")


REFUSED = {
    # the whole
    "": "is empty",
    " ": "is empty",
    "''": "is empty",
    "h/db": "is malformed",
    "host=h dbname=db": "is malformed",
    "jdbc:postgresql://h/db": "is malformed",
    "postgres://u:p\n@h/db": "is malformed",
    # hosts and ports
    "postgres://u:p@h:port/db": "hosts .* malformed",
    "postgres://u:p@h:0/db": "hosts .* malformed",
    "postgres://u:p@h:65536/db": "hosts .* malformed",
    f"postgres://u:p@h:{'9' * 5000}/db": "hosts .* malformed",
    "postgres://u:p@h:٣/db": "hosts .* malformed",
    "postgres://u:p@a,,b/db": "hosts .* malformed",
    "postgres://u:p@h~x/db": "hosts .* malformed",
    "postgres://u:p@[::1/db": "hosts .* malformed",
    "postgres://u:p@[::1]x/db": "hosts .* malformed",
    "postgres://u:p@[h]/db": "hosts .* malformed",
    "postgres://u:p@/db?host=a,b&port=1,2,3": "hosts .* malformed",
    "postgres://u:p@h/db?port=1,2": "hosts .* malformed",
    "mysql://u:p@h:port/db": "is malformed",
    "mysql://u:p@h:/db": "is malformed",
    "mysql://u:p@[::1]x/db": "is malformed",
    "sqlite://relative.db": "sqlite:///relative/path",
    # an unescaped @ that leaves open where the host begins
    "postgres://u:p@ss@h/db": "is malformed",
    "postgres://u:p@ss:w@h/db": "is malformed",
    "postgres://u:p@ss/w@h/db": "is malformed",
    "postgres://u:p@ss?w@h/db": "which of them is not said",
    "postgres://u:p@ss?w=x@h/db": "which of them is not said",
    "postgres://h:5432/db?user=me@work": "is malformed",
    "postgres://h?user=me@work": "is malformed",
    "postgres://u:p@h/db?user=a@b&sslmodus=x": "which of them is not said",
    "postgres://u@h/db?password=p&sslmodus=x": "which of them is not said",
    "postgres://u@h/db?password=p&ss": "which of them is not said",
    # drivers
    "elephant://h/db": "no dialect or driver 'elephant'",
    "+x://h/db": r"no dialect or driver '\+x'",
    "postgresql+types://h/db": r"no dialect or driver 'postgresql\+types'",
    "postgresql+asyncpg+x://h/db": r"no dialect or driver 'postgresql\+asyncpg\+x'",
    "postgresql+asyncpgg://h/db": r"no dialect or driver 'postgresql\+asyncpgg'",
    "postgresql+psycopg2://h/db": r"synchronous; write postgresql\+asyncpg:// or postgresql\+psy",
    "postgresql+psycopg2://h/db?user=me%40work": "synchronous",
    "sqlite+pysqlite://": r"synchronous; write sqlite\+aiosqlite://",
    "mysql+pymysql://h/db": r"synchronous; write mysql\+asyncmy:// or mysql\+aiomysql://",
    # names
    f"{ASYNCPG}?sslmodus=require": "'sslmodus', which .*did you mean 'sslmode'",
    f"{ASYNCPG}?keepalives=1": r"'keepalives', .*postgresql\+psycopg:// takes every",
    f"{ASYNCPG}?schema=public": "'schema', which",
    f"{ASYNCPG}?pgbouncer": "'pgbouncer' without a value",
    f"{PSYCOPG}?statement_cache_size=0": "'statement_cache_size', which",
    f"{PSYCOPG}?conect_timeout=3": "did you mean 'connect_timeout'",
    f"{SQLITE}?mode=ro": "'mode', which",
    f"{SQLITE}?sslmode=require": "'sslmode', which",
    # values
    f"{ASYNCPG}?sslmode=banana": "sslmode='banana', expected one of disable, allow",
    f"{ASYNCPG}?ssl=false": "ssl='false', expected one of disable, allow",
    f"{ASYNCPG}?sslmode=require&sslmode=require": "'sslmode' 2 times",
    f"{ASYNCPG}?sslmode=require&ssl=disable": "'sslmode' and 'ssl' at odds",
    f"{ASYNCPG}?timeout=1&connect_timeout=2": "'timeout' and 'connect_timeout' at odds",
    f"{ASYNCPG}?connect_timeout=abc": "connect_timeout='abc', expected a number of seconds",
    f"{ASYNCPG}?connect_timeout=nan": "connect_timeout='nan', expected a number of seconds",
    f"{ASYNCPG}?command_timeout=0": "command_timeout='0', expected a number .* above 0",
    f"{ASYNCPG}?statement_cache_size=-1": "statement_cache_size='-1', expected a whole number",
    f"{ASYNCPG}?prepared_statement_cache_size=x": "prepared_statement_cache_size='x', expected",
    f"{ASYNCPG}?pgbouncer=maybe": "pgbouncer='maybe', expected true or false",
    f"{ASYNCPG}?target_session_attrs=any-thing": "target_session_attrs='any-thing', expected",
    f"{ASYNCPG}?channel_binding=must": "channel_binding='must', expected one of disable, prefer",
    f"{ASYNCPG}?pgbouncer=true&statement_cache_size=9": "'statement_cache_size' beside pgbouncer",
    f"{ASYNCPG}?sslrootcert=system&sslmode=require": "needs sslmode=verify-full",
    f"{ASYNCPG}?sslrootcert=system&sslcert=/c": "'sslcert' beside sslrootcert=system",
    f"{PSYCOPG}?sslmode=banana": "sslmode='banana', expected one of disable, allow",
    f"{PSYCOPG}?connect_timeout=abc": "connect_timeout='abc', expected a number of seconds",
    f"{PSYCOPG}?pgbouncer=true&prepare_threshold=5": "'prepare_threshold' beside pgbouncer",
    f"{SQLITE}?timeout=abc": "timeout='abc', expected a number of seconds",
    f"{SQLITE}?uri=maybe": "uri='maybe', expected true or false",
    f"{SQLITE}?uri=true&mode=write": "mode='write', expected one of ro, rw",
    f"{SQLITE}?uri=true&modus=ro": "did you mean 'mode",
}


@pytest.mark.parametrize(("given", "message"), REFUSED.items(), ids=lambda text: text[:60])
def test_url_is_refused(given: str, message: str) -> None:
    with pytest.raises(AppConfigError, match=message):
        normalize_url(given)


@pytest.mark.parametrize("given", [None, b"postgres://h/db", 5, object()])
def test_what_is_no_url_is_refused_by_its_type(given: Any) -> None:
    with pytest.raises(AppConfigError, match=rf"of type {type(given).__name__}\b"):
        normalize_url(given)


ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    ASYNCPG: (ASYNCPG, {}),
    f"{ASYNCPG}?target_session_attrs=primary": (f"{ASYNCPG}?target_session_attrs=primary", {}),
    f"{ASYNCPG}?passfile=/f&krbsrvname=k&gsslib=sspi": (
        f"{ASYNCPG}?passfile=/f&krbsrvname=k&gsslib=sspi",
        {},
    ),
    f"{ASYNCPG}?prepared_statement_cache_size=5": (
        f"{ASYNCPG}?prepared_statement_cache_size=5",
        {},
    ),
    f"{ASYNCPG}?connect_timeout=2": (ASYNCPG, {"timeout": 2.0}),
    f"{ASYNCPG}?connect_timeout=0": (ASYNCPG, {"timeout": None}),
    f"{ASYNCPG}?connect_timeout=-1": (ASYNCPG, {"timeout": None}),
    f"{ASYNCPG}?command_timeout=1.5&statement_cache_size=0&direct_tls=true": (
        ASYNCPG,
        {"command_timeout": 1.5, "statement_cache_size": 0, "direct_tls": True},
    ),
    f"{ASYNCPG}?application_name=me&options=-c%20a.b%3D1": (
        ASYNCPG,
        {"server_settings": {"application_name": "me", "options": "-c a.b=1"}},
    ),
    f"{ASYNCPG}?sslmode=verify-ca&sslrootcert=/a b&sslpassword=%26": (
        f"{ASYNCPG}?ssl=verify-ca",
        {"dsn": "postgresql://?sslpassword=%26&sslrootcert=%2Fa+b"},
    ),
    f"{ASYNCPG}?sslrootcert=system": (ASYNCPG, {"ssl": True}),
    f"{ASYNCPG}?pgbouncer=false": (ASYNCPG, {}),
    f"{PSYCOPG}?sslmode=require&connect_timeout=2&options=-c%20a.b%3D1": (
        f"{PSYCOPG}?sslmode=require&connect_timeout=2&options=-c%20a.b%3D1",
        {},
    ),
    f"{PSYCOPG}?sslpassword=secret&prepare_threshold=7": (
        PSYCOPG,
        {"sslpassword": "secret", "prepare_threshold": 7},
    ),
    f"{PSYCOPG}?pgbouncer=true": (PSYCOPG, {"prepare_threshold": None}),
    f"{PSYCOPG}?pgbouncer=off": (PSYCOPG, {}),
    f"{SQLITE}?timeout=3&isolation_level=IMMEDIATE": (
        f"{SQLITE}?timeout=3&isolation_level=IMMEDIATE",
        {},
    ),
}


@pytest.mark.parametrize(("given", "expected"), ARGUMENTS.items())
def test_url_is_split_for_the_driver(given: str, expected: tuple[str, dict[str, Any]]) -> None:
    url, arguments = connect_arguments(normalize_url(given))
    assert (url, arguments) == (normalize_url(expected[0]), expected[1])


def test_name_of_the_unnamed_statement_can_be_pickled() -> None:
    import pickle

    _, arguments = connect_arguments(normalize_url(f"{ASYNCPG}?pgbouncer=true"))
    name = pickle.loads(pickle.dumps(arguments.pop("prepared_statement_name_func")))
    assert name() == ""
    assert arguments == {"statement_cache_size": 0, "prepared_statement_cache_size": 0}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (ASYNCPG, "postgresql+asyncpg://h/db"),
        (f"{ASYNCPG}?sslpassword=secret", "postgresql+asyncpg://h/db"),
        ("postgres://u:p@a:1,b/db", "postgresql+asyncpg:///db?host=a,b&port=1,5432"),
        ("sqlite:////tmp/a.db", "sqlite+aiosqlite:////tmp/a.db"),
    ],
)
def test_description_holds_the_place_alone(given: str, expected: str) -> None:
    assert describe_url(normalize_url(given)) == expected
