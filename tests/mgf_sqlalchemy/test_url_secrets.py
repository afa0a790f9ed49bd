"""No part of a password gets out of `normalize_url`, and none is changed by it."""

from __future__ import annotations

import random
import re
import string
import traceback
import warnings
from urllib.parse import quote

import pytest
from sqlalchemy import URL

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import normalize_url
from mgf.sqlalchemy._url import connect_arguments, describe_url

# Letters that no message of ours holds three in a row of, and every character that means something.
LETTERS = "QXZJVKW379"
SPECIAL = string.punctuation + " äß€"


def passwords(count: int) -> list[str]:
    rng = random.Random(20261123)
    drawn = [
        "".join(rng.choice(LETTERS if rng.random() < 0.6 else SPECIAL) for _ in range(length))
        for length in (rng.randrange(5, 16) for _ in range(count))
    ]
    around = [f"QXZ{character}JVK{other}W37" for character in SPECIAL for other in "@:/?#"]
    return drawn + around


PASSWORDS = passwords(300)

TEMPLATES = [
    "postgres://user:{}@host:5432/db",
    "postgres://user:{}@host/db?sslmode=banana",
    "postgres://user:{}@host/db?unknown=1",
    "postgres://user:{}@host:port/db",
    "postgres://user:{}@a:1,b:2/db?target_session_attrs=any",
    "postgres://user:{}@[::1]:5432/db",
    "postgres://:{}@host/db",
    "postgres://user@host/db?password={}&connect_timeout=abc",
    "postgresql+psycopg://user@host/db?connect_timeout=5&password={}",
    "postgres:user:{}@host/db",
    "postgresql+psycopg://user:{}@host/db?keepalives=no&unknown=1",
    "postgresql+psycopg2://user:{}@host/db",
    "elephant://user:{}@host/db",
    "mysql+pymysql://user:{}@host/db",
    "mysql://user:{}@host/db",
    "sqlite://user:{}@host/a.db",
]


def fragments(password: str) -> set[str]:
    """Every three characters of it, as they are and percent-encoded, that are not just signs."""
    pieces = {password[i : i + 3] for i in range(len(password) - 2)}
    pieces = {piece for piece in pieces if sum(c in LETTERS for c in piece) >= 2}
    return pieces | {quote(piece, safe="") for piece in pieces}


def everything_said(error: BaseException) -> str:
    said: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        said += [str(seen), repr(seen), *map(repr, seen.args)]
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "\n".join(said + traceback.format_exception(error))


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_part_of_an_unescaped_password_gets_out(template: str) -> None:
    for password in PASSWORDS:
        try:
            url = normalize_url(template.format(password))
        except AppConfigError as error:
            said = everything_said(error)
        else:
            said = f"{url} {url!r} {describe_url(url)}"
        assert not [piece for piece in fragments(password) if piece in said], (password, said)


@pytest.mark.parametrize("suffix", ["", ":5432", "?x=1", "/db?sslmode=banana"])
def test_no_part_of_a_password_without_a_host_gets_out(suffix: str) -> None:
    """``user:password`` alone is read as host and port; left out are those that would be."""
    for password in PASSWORDS:
        if "@" in password or re.match(r"[0-9]*[,/?]", password):
            continue
        url = f"postgres://user:{password}{suffix}"
        with pytest.raises(AppConfigError) as caught:
            normalize_url(url)
        said = everything_said(caught.value)
        assert not [piece for piece in fragments(password) if piece in said], (password, said)


def test_refused_value_is_named_and_the_password_is_not() -> None:
    password = "QXZJVK"
    for parameter in ("sslmode", "connect_timeout", "pgbouncer", "statement_cache_size", "port"):
        url = f"postgres://user:{password}@host/db?{parameter}=banana"
        with pytest.raises(AppConfigError) as caught:
            normalize_url(url)
        said = everything_said(caught.value)
        assert "banana" in said or parameter == "port"
        assert not [piece for piece in fragments(password) if piece in said]


def test_warning_keeps_the_password_out() -> None:
    with pytest.warns(UserWarning, match="channel_binding") as caught:
        normalize_url("postgres://user:QXZJVK@host/db?channel_binding=require")
    assert "QXZ" not in str(caught[0].message)


def test_no_error_carries_another_one_along() -> None:
    """What SQLAlchemy or Python said before may quote the password."""
    for url in ("postgres://u:p@h:x/db", "mysql://u:p@h:x/db", "elephant://u:p@h/db", "x"):
        with pytest.raises(AppConfigError) as caught:
            normalize_url(url)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
def test_escaped_password_arrives_unchanged(driver: str) -> None:
    for password in PASSWORDS:
        url = normalize_url(f"{driver}://user:{quote(password, safe='')}@host/db")
        assert (url.username, url.password, url.host) == ("user", password, "host")


def test_password_of_the_query_arrives_unchanged() -> None:
    for password in PASSWORDS:
        url = normalize_url(f"postgres://user@host/db?password={quote(password, safe='')}")
        assert (url.password, url.host) == (password, "host")


def test_any_url_object_normalises_to_itself_also_as_text() -> None:
    rng = random.Random(7)
    for password in PASSWORDS:
        url = URL.create(
            rng.choice(["postgresql", "postgresql+psycopg"]),
            rng.choice([None, "", "user", password]),
            rng.choice([None, "", password]),
            rng.choice([None, "host", "::1", "a,b", "/run/pg:x"]),
            rng.choice([None, 5432]),
            rng.choice([None, "db", "a b"]),
            {"application_name": password, "options": rng.choice(["", password])},
        )
        once = normalize_url(url)
        assert normalize_url(once) == once
        assert normalize_url(once.render_as_string(hide_password=False)) == once


def test_engine_url_holds_no_secret_of_the_query() -> None:
    """SQLAlchemy masks the password before the host and nothing else."""
    for driver in ("asyncpg", "psycopg"):
        given = f"postgresql+{driver}://u:p@h/db?sslkey=/k&sslpassword=QXZJVK"
        url, arguments = connect_arguments(normalize_url(given))
        assert "QXZ" not in url.render_as_string(hide_password=False)
        assert "QXZJVK" in str(arguments)


def test_warnings_are_not_raised_for_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normalize_url("postgres://u:p@h/db?channel_binding=disable&gssencmode=prefer")
