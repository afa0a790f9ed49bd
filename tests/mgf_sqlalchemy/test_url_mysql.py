"""Parameters of MySQL and MariaDB URLs, where a driver for them is installed."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import make_url

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import create_engine, normalize_url


@pytest.mark.parametrize("backend", ["mysql", "mariadb"])
def test_asyncmy_comes_first(backend: str) -> None:
    assert normalize_url(f"{backend}://u:p@h/db").drivername == f"{backend}+asyncmy"


@pytest.mark.parametrize("driver", ["asyncmy", "aiomysql"])
async def test_parameters_of_the_driver_are_taken(driver: str) -> None:
    query = "charset=utf8mb4&connect_timeout=3&unix_socket=/run/mysql&local_infile=true"
    url = normalize_url(f"mysql+{driver}://u:p@h/db?{query}")
    assert url == make_url(f"mysql+{driver}://u:p@h/db?{query}")
    await create_engine(url).dispose()


@pytest.mark.parametrize(
    "query", ["user=u&password=p&database=db", "user=u&passwd=p&db=db", "password=p&user=u&db=db"]
)
def test_identity_moves_before_the_database(query: str) -> None:
    assert normalize_url(f"mysql://h?{query}") == make_url("mysql+asyncmy://u:p@h/db")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mysql+asyncmy://h/db?ssl-mode=REQUIRED", "'ssl-mode', which"),
        ("mysql+asyncmy://h/db?autocommit=true", "'autocommit', which"),
        ("mysql+asyncmy://h/db?auth_plugin=x", "'auth_plugin', which"),
        ("mysql+aiomysql://h/db?ssl_ca=/ca", "'ssl_ca', which"),
        ("mysql+aiomysql://h/db?read_timeout=3", "'read_timeout', which"),
        ("mysql+aiomysql://h/db?connect_timeout=abc", "connect_timeout='abc', expected"),
        ("mariadb+aiomysql://h/db?sslmode=require", "'sslmode', which"),
    ],
)
def test_what_the_driver_does_not_take_is_refused(given: str, message: str) -> None:
    with pytest.raises(AppConfigError, match=message):
        normalize_url(given)


def test_tls_files_reach_asyncmy() -> None:
    url = normalize_url("mysql+asyncmy://h/db?ssl_ca=/ca&ssl_check_hostname=false")
    dialect = url.get_dialect()()
    assert dialect.create_connect_args(url)[1]["ssl"] == {"ca": "/ca", "check_hostname": False}
