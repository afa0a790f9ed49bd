"""Which driver serves, on interpreters that lack some of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import sqlalchemy

import mgf.common
import mgf.sqlalchemy
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import normalize_url

SITE = Path(sqlalchemy.__file__).parent.parent
SOURCES = [Path(module.__path__[0]).parents[1] for module in (mgf.common, mgf.sqlalchemy)]

PROGRAM = """
import sys
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import normalize_url
for url in sys.argv[1:]:
    try:
        print(normalize_url(url).drivername)
    except AppConfigError as error:
        print(str(error).replace("\\n", " "))
"""


def normalize_without(missing: set[str], *urls: str, **environment: str) -> list[str]:
    """Return drivers or errors of an interpreter in which these packages are not installed."""
    with tempfile.TemporaryDirectory() as folder:
        for entry in SITE.iterdir():
            if entry.name.partition("-")[0].partition(".")[0] not in missing:
                Path(folder, entry.name).symlink_to(entry)
        path = os.pathsep.join(map(str, [folder, *SOURCES]))
        done = subprocess.run(
            [sys.executable, "-S", "-c", PROGRAM, *urls],
            env={**os.environ, **environment, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_psycopg_serves_where_asyncpg_is_missing() -> None:
    url = "postgres://u:p@h/db?ssl=require&channel_binding=require"
    assert normalize_without({"asyncpg"}, url) == ["postgresql+psycopg"]


def test_asyncpg_serves_where_psycopg_is_missing() -> None:
    assert normalize_without({"psycopg"}, "postgres://h/db") == ["postgresql+asyncpg"]


def test_psycopg_without_libpq_is_refused() -> None:
    missing = {"asyncpg", "psycopg_binary"}
    [said] = normalize_without(missing, "postgres://h/db", PSYCOPG_IMPL="binary")
    assert said.startswith("the driver of postgresql+psycopg:// cannot be imported")


NO_DRIVER = {
    "postgres://h/db": "install asyncpg or psycopg",
    "sqlite://": "install aiosqlite",
    "mysql://h/db": "install asyncmy or aiomysql",
    "mariadb://h/db": "install asyncmy or aiomysql",
    "mssql://h/db": "install aioodbc",
    "postgresql+asyncpg://h/db": "cannot be imported (No module named 'asyncpg'); install",
    "postgresql+psycopg://h/db": "cannot be imported (No module named 'psycopg'); install",
    "sqlite+aiosqlite://": "cannot be imported (No module named 'aiosqlite'); install",
    "mysql+aiomysql://h/db": "cannot be imported (No module named 'aiomysql'); install",
}


@pytest.fixture(scope="module")
def said_without_drivers() -> dict[str, str]:
    drivers = {"asyncpg", "psycopg", "aiosqlite", "asyncmy", "aiomysql", "aioodbc"}
    return dict(zip(NO_DRIVER, normalize_without(drivers, *NO_DRIVER), strict=True))


@pytest.mark.parametrize("url", NO_DRIVER)
def test_error_names_the_driver_to_install(said_without_drivers: dict[str, str], url: str) -> None:
    assert NO_DRIVER[url] in said_without_drivers[url]


def test_driver_of_a_foreign_dialect_may_be_synchronous_too() -> None:
    from sqlalchemy.dialects import registry

    registry.register(
        "elephant.sync", "sqlalchemy.dialects.postgresql.psycopg2", "PGDialect_psycopg2"
    )
    with pytest.raises(AppConfigError, match=r"elephant\+sync:// is synchronous"):
        normalize_url("elephant+sync://h/db")
