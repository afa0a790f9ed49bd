from __future__ import annotations

import socket
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy.ext.asyncio
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, QueuePool, StaticPool

from mgf.common import bootstrap
from mgf.sqlalchemy import create_engine
from mgf.sqlalchemy.errors import is_transient, sqlstate

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

NOWHERE = "postgresql+asyncpg://me:sesame@127.0.0.1:1/nowhere"


async def value(engine: AsyncEngine, sql: str) -> Any:
    async with engine.connect() as connection:
        return await connection.scalar(text(sql))


def test_it_never_connects() -> None:
    engine = create_engine(NOWHERE)
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedin() == 0


def test_the_defaults_are_those_of_the_contract() -> None:
    pool: Any = create_engine(NOWHERE).pool
    assert (pool.size(), pool._max_overflow, pool._recycle) == (5, 10, 3600)
    assert create_engine(NOWHERE).sync_engine.hide_parameters is True
    assert create_engine(NOWHERE).echo is False


def test_pool_arguments_reach_the_pool() -> None:
    pool: Any = create_engine(NOWHERE, pool_size=2, max_overflow=3, pool_recycle=60).pool
    assert (pool.size(), pool._max_overflow, pool._recycle) == (2, 3, 60)


@pytest.mark.parametrize("poolclass", [NullPool, StaticPool])
def test_pools_without_a_size_take_the_size_without_effect(poolclass: Any) -> None:
    engine = create_engine(NOWHERE, poolclass=poolclass, pool_size=2, max_overflow=3)
    assert type(engine.pool) is poolclass


def test_a_pool_made_by_the_user_is_taken_as_it_is() -> None:
    pool = create_engine(NOWHERE, pool_size=2).pool
    assert create_engine(NOWHERE, pool=pool, pool_size=7).pool is pool


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]
)
async def test_a_sqlite_database_in_memory_is_one_shared_connection(url: str) -> None:
    engine = create_engine(url, pool_size=3)
    assert type(engine.pool) is StaticPool
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (n int)"))
        await connection.execute(text("INSERT INTO t VALUES (1)"))
    assert await value(engine, "SELECT n FROM t") == 1
    await engine.dispose()


async def test_a_sqlite_file_gets_foreign_keys_a_write_ahead_log_and_a_timeout(
    tmp_path: Path,
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}", pool_size=1)
    assert type(engine.pool) is AsyncAdaptedQueuePool
    assert await value(engine, "PRAGMA foreign_keys") == 1
    assert await value(engine, "PRAGMA journal_mode") == "wal"
    assert await value(engine, "PRAGMA busy_timeout") == 5000
    await engine.dispose()


async def test_sqlite_in_memory_enforces_foreign_keys_too() -> None:
    engine = create_engine("sqlite://")
    assert await value(engine, "PRAGMA foreign_keys") == 1
    await engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_postgresql_sees_the_applications_name(postgres_url: URL, driver: str) -> None:
    url = postgres_url.set(drivername=f"postgresql+{driver}")
    with bootstrap("shop", "1.0"):
        engine = create_engine(url)
    assert await value(engine, "SHOW application_name") == "shop"
    await engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_the_callers_own_name_wins(postgres_url: URL, driver: str) -> None:
    url = postgres_url.set(drivername=f"postgresql+{driver}")
    own: dict[str, Any] = {"application_name": "mine"}
    arguments = {"server_settings": own} if driver == "asyncpg" else own
    with bootstrap("shop", "1.0"):
        by_url = create_engine(url.update_query_dict(own))
        by_arguments = create_engine(url, connect_args=arguments)
    assert await value(by_url, "SHOW application_name") == "mine"
    assert await value(by_arguments, "SHOW application_name") == "mine"
    await by_url.dispose()
    await by_arguments.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_without_an_identity_postgresql_is_told_none(postgres_url: URL, driver: str) -> None:
    engine = create_engine(postgres_url.set(drivername=f"postgresql+{driver}"))
    assert await value(engine, "SHOW application_name") == ""
    await engine.dispose()


def test_no_unconfigured_warning_escapes() -> None:
    program = (
        "import warnings; warnings.simplefilter('error')\n"
        f"from mgf.sqlalchemy import create_engine; create_engine({NOWHERE!r})"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_connect_args_are_merged_with_what_the_url_asks_for(postgres_url: URL) -> None:
    url = postgres_url.update_query_dict({"options": "-c statement_timeout=4321"})
    engine = create_engine(url, connect_args={"server_settings": {"lock_timeout": "1234"}})
    assert await value(engine, "SHOW statement_timeout") == "4321ms"
    assert await value(engine, "SHOW lock_timeout") == "1234ms"
    await engine.dispose()


async def test_extra_goes_to_sqlalchemy_untouched(postgres_url: URL) -> None:
    engine = create_engine(postgres_url, isolation_level="SERIALIZABLE")
    assert await value(engine, "SHOW transaction_isolation") == "serializable"
    await engine.dispose()


async def test_bound_values_stay_out_of_errors(postgres_url: URL) -> None:
    engine = create_engine(postgres_url)
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError) as caught:
            await connection.execute(text("SELECT 1/0, CAST(:v AS text)"), {"v": "salary"})
    assert "salary" not in str(caught.value)
    await engine.dispose()


def test_instrumentation_that_replaces_sqlalchemys_function_applies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    original = sqlalchemy.ext.asyncio.create_async_engine

    def instrumented(*args: Any, **kwargs: Any) -> AsyncEngine:
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(sqlalchemy.ext.asyncio, "create_async_engine", instrumented)
    create_engine(NOWHERE)
    assert len(calls) == 1


async def test_an_unreachable_server_is_an_operational_error_without_the_password() -> None:
    engine = create_engine(NOWHERE)
    with pytest.raises(OperationalError, match=r"cannot connect to 127\.0\.0\.1:1") as caught:
        await value(engine, "SELECT 1")
    assert is_transient(caught.value)
    assert "sesame" not in str(caught.value)


async def test_a_host_that_does_not_exist_and_several_hosts_are_named() -> None:
    engine = create_engine("postgresql+asyncpg://me:sesame@127.0.0.1:1,127.0.0.1:2/nowhere")
    with pytest.raises(OperationalError, match=r"127\.0\.0\.1, 127\.0\.0\.1 \(port \[1, 2\]\)"):
        await value(engine, "SELECT 1")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_wrong_password_is_an_operational_error_that_does_not_show_it(
    postgres_url: URL, driver: str
) -> None:
    url = postgres_url.set(drivername=f"postgresql+{driver}", password="open-sesame")
    engine = create_engine(url)
    with pytest.raises(OperationalError, match="password authentication failed") as caught:
        await value(engine, "SELECT 1")
    assert not is_transient(caught.value)
    assert "open-sesame" not in repr(caught.value) + str(caught.value) + repr(engine)
    if driver == "asyncpg":
        assert sqlstate(caught.value) == "28P01"


async def test_a_connect_timeout_has_a_reason(postgres_url: URL) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = postgres_url.set(port=silent.getsockname()[1])
        engine = create_engine(url, connect_args={"timeout": 0.2})
        with pytest.raises(OperationalError, match="TimeoutError") as caught:
            await value(engine, "SELECT 1")
    assert is_transient(caught.value)


def test_no_warning_is_made_by_the_defaults() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_engine(NOWHERE)
        create_engine("sqlite://")


async def test_a_do_connect_listener_of_the_users_is_asked(postgres_url: URL) -> None:
    """SQLAlchemy's own recipe for passwords that change."""
    engine = create_engine(postgres_url.set(password="outdated"))

    @event.listens_for(engine.sync_engine, "do_connect")
    def give_password(
        _dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]
    ) -> None:
        options["password"] = postgres_url.password

    assert await value(engine, "SELECT 1") == 1
    await engine.dispose()


@pytest.mark.parametrize(
    "arguments", [{"host": ["127.0.0.1", "127.0.0.1"], "port": 1}, {"port": 1}]
)
async def test_hosts_given_as_arguments_are_named(arguments: dict[str, Any]) -> None:
    engine = create_engine("postgresql+asyncpg://me@127.0.0.1:1/x", connect_args=arguments)
    with pytest.raises(OperationalError, match=r"cannot connect to 127\.0\.0\.1"):
        await value(engine, "SELECT 1")


async def test_a_sqlite_file_can_be_opened_read_only(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    writing = create_engine(f"sqlite:///{file}")
    await value(writing, "PRAGMA journal_mode")
    await writing.dispose()
    reading = create_engine(f"sqlite:///file:{file}?mode=ro&uri=true")
    assert await value(reading, "PRAGMA foreign_keys") == 1
    await reading.dispose()
