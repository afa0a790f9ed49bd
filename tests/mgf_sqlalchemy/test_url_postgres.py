"""What a URL promises about a connection, kept on a real server by both drivers."""

from __future__ import annotations

import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import SQLAlchemyError

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import create_engine
from mgf.sqlalchemy._url.parameters import connect_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DRIVERS = ["asyncpg", "psycopg"]


@asynccontextmanager
async def connection(url: str | URL) -> AsyncIterator[Any]:
    engine = create_engine(url)
    try:
        async with engine.connect() as conn:
            yield conn
    finally:
        await engine.dispose()


async def scalar(url: str | URL, statement: str) -> Any:
    async with connection(url) as conn:
        return (await conn.execute(text(statement))).scalar()


@pytest.fixture(params=DRIVERS)
def server(request: pytest.FixtureRequest, postgres_url: URL) -> URL:
    return postgres_url.set(drivername=f"postgresql+{request.param}")


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def test_application_name_reaches_the_server(server: URL) -> None:
    url = server.set(query={"application_name": "billing"})
    assert await scalar(url, "SHOW application_name") == "billing"


@pytest.mark.parametrize(
    ("options", "setting", "value"),
    [
        ("-c statement_timeout=1234", "statement_timeout", "1234ms"),
        ("-cwork_mem=5MB --statement-timeout=1234", "statement_timeout", "1234ms"),
        (r"-c app.note=a\ b\\c", "app.note", r"a b\c"),
    ],
)
async def test_options_reach_the_server(
    server: URL, options: str, setting: str, value: str
) -> None:
    url = server.set(query={"options": options})
    assert await scalar(url, f"SHOW {setting}") == value


async def test_options_that_the_server_does_not_know_are_its_error(server: URL) -> None:
    with pytest.raises(SQLAlchemyError, match="invalid command-line argument"):
        await scalar(server.set(query={"options": "endpoint=blue"}), "SELECT 1")


@pytest.mark.parametrize(
    "query",
    [
        {"sslmode": "disable"},
        {"sslmode": "prefer"},
        {"connect_timeout": "5"},
        {"connect_timeout": "2.5"},
        {"connect_timeout": "0"},
        {"target_session_attrs": "primary"},
        {"gssencmode": "disable", "channel_binding": "prefer"},
        {"pgbouncer": "false"},
    ],
    ids=str,
)
async def test_parameter_lets_connect(server: URL, query: dict[str, str]) -> None:
    assert await scalar(server.set(query=query), "SELECT 1") == 1


@pytest.mark.parametrize(
    "query",
    [
        {"command_timeout": "5", "statement_cache_size": "0"},
        {"max_cached_statement_lifetime": "0", "max_cacheable_statement_size": "0"},
        {"prepared_statement_cache_size": "0", "timeout": "5"},
    ],
    ids=str,
)
async def test_parameter_of_asyncpg_lets_connect(postgres_url: URL, query: dict[str, str]) -> None:
    assert await scalar(postgres_url.set(query=query), "SELECT 1") == 1


async def test_required_tls_is_not_given_up(server: URL) -> None:
    with pytest.raises(SQLAlchemyError, match="SSL"):
        await scalar(server.set(query={"sslmode": "require"}), "SELECT 1")


async def test_missing_root_certificate_is_noticed(postgres_url: URL) -> None:
    query = {"sslmode": "verify-full", "sslrootcert": "/missing/root.crt"}
    with pytest.raises(SQLAlchemyError, match="No such file"):
        await scalar(postgres_url.set(query=query), "SELECT 1")


async def test_command_timeout_ends_a_statement(postgres_url: URL) -> None:
    with pytest.raises(TimeoutError):
        await scalar(postgres_url.set(query={"command_timeout": "0.1"}), "SELECT pg_sleep(5)")


async def test_host_that_refuses_is_passed_over(server: URL) -> None:
    hosts = f"127.0.0.1:{closed_port()},127.0.0.1:{server.port}"
    text_url = server.render_as_string(hide_password=False)
    text_url = text_url.replace(f"127.0.0.1:{server.port}", hosts)
    assert await scalar(text_url, "SELECT 1") == 1


async def test_host_without_the_session_attributes_is_refused(server: URL) -> None:
    with pytest.raises(Exception, match=r"None of the hosts match|not in hot standby"):
        await scalar(server.set(query={"target_session_attrs": "standby"}), "SELECT 1")


async def test_whole_identity_may_stand_in_the_query(server: URL) -> None:
    query = {
        "host": "127.0.0.1",
        "port": str(server.port),
        "user": server.username or "",
        "password": str(server.password),
        "dbname": "template1",
    }
    url = URL.create(server.drivername, query=query)
    assert await scalar(url, "SELECT current_database()") == "template1"


async def test_service_file_gives_the_host(
    server: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = tmp_path / "pg_service.conf"
    service.write_text(f"[blue]\nhost=127.0.0.1\nport={server.port}\ndbname=template1\n")
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    url = URL.create(server.drivername, server.username, server.password, query={"service": "blue"})
    if "asyncpg" in server.drivername and "service" not in connect_names("asyncpg"):
        with pytest.raises(AppConfigError, match="'service', which"):  # asyncpg before 0.31
            create_engine(url)
        return
    assert await scalar(url, "SELECT current_database()") == "template1"


@pytest.mark.parametrize("driver", DRIVERS)
async def test_connect_timeout_gives_a_silent_host_up(driver: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # the system takes connections, nobody answers
        url = f"postgresql+{driver}://u@127.0.0.1:{silent.getsockname()[1]}/db?connect_timeout=1"
        started = time.monotonic()
        with pytest.raises((SQLAlchemyError, OSError)):
            await scalar(url, "SELECT 1")
    assert time.monotonic() - started < 10  # psycopg waits for 2 s at least


async def statements_left(url: URL) -> int:
    async with connection(url) as conn:
        for number in range(8):  # psycopg prepares at the sixth time
            await conn.execute(text("SELECT CAST(:number AS int)"), {"number": number})
        count = await conn.execute(text("SELECT count(*) FROM pg_prepared_statements"))
        return int(count.scalar())


async def test_pgbouncer_leaves_no_prepared_statement(server: URL) -> None:
    assert await statements_left(server.set(query={"pgbouncer": "true"})) == 0


async def test_without_pgbouncer_statements_are_prepared(server: URL) -> None:
    """Shows that the test before sees them."""
    assert await statements_left(server) > 0
