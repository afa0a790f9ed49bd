from __future__ import annotations

from ssl import SSLCertVerificationError
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mgf.sqlalchemy import create_engine
from mgf.sqlalchemy.errors import is_transient, sqlstate

if TYPE_CHECKING:
    from sqlalchemy import URL

RAISED = {
    "22012": ("SELECT 1/0", False),
    "42P01": ("SELECT * FROM no_such_table", False),
    "57014": ("SET LOCAL statement_timeout = 1; SELECT pg_sleep(5)", False),
    "40001": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$", True),
    "40P01": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$", True),
    "53300": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '53300'; END $$", True),
    "53100": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '53100'; END $$", False),
    "08006": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '08006'; END $$", True),
}


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("code", RAISED)
async def test_what_the_database_raised_is_known_by_its_sqlstate(
    postgres_url: URL, driver: str, code: str
) -> None:
    sql, transient = RAISED[code]
    engine = create_engine(postgres_url.set(drivername=f"postgresql+{driver}"))
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError) as caught:
            for statement in sql.split("; ") if sql.startswith("SET") else [sql]:
                await connection.execute(text(statement))
    assert sqlstate(caught.value) == code
    assert is_transient(caught.value) is transient
    await engine.dispose()


async def test_an_error_that_was_caused_by_the_databases(postgres_url: URL) -> None:
    engine = create_engine(postgres_url)
    async with engine.connect() as connection:
        with pytest.raises(RuntimeError) as caught:
            try:
                await connection.execute(text("SELECT 1/0"))
            except SQLAlchemyError as exc:
                raise RuntimeError from exc
    assert sqlstate(caught.value) == "22012"
    await engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("place", ["127.0.0.1:1", "nowhere.invalid"])
async def test_a_refused_connection_is_transient(driver: str, place: str) -> None:
    engine = create_engine(f"postgresql+{driver}://me@{place}/nowhere")
    with pytest.raises(SQLAlchemyError) as caught:
        await engine.connect()
    assert is_transient(caught.value)
    assert sqlstate(caught.value) is None


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_killed_backend_is_transient(postgres_url: URL, driver: str) -> None:
    engine = create_engine(postgres_url.set(drivername=f"postgresql+{driver}"))
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError) as caught:
            await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert is_transient(caught.value)
    await engine.dispose()


async def test_an_exhausted_pool_is_transient(postgres_url: URL) -> None:
    engine = create_engine(postgres_url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    async with engine.connect():
        with pytest.raises(PoolTimeoutError) as caught:
            await engine.connect()
    assert is_transient(caught.value)
    await engine.dispose()


def test_other_errors_have_no_sqlstate_and_are_not_transient() -> None:
    error = ValueError("x")
    error.__cause__ = error
    assert sqlstate(error) is None
    assert not is_transient(error)


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, SSLCertVerificationError])
def test_a_file_or_certificate_that_is_wrong_stays_wrong(error: type[OSError]) -> None:
    assert not is_transient(error("x"))
    assert is_transient(ConnectionRefusedError("x"))
