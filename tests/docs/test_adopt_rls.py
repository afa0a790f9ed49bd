"""The locks that docs/how-to/adopt-rls.md names are those that PostgreSQL takes."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from architecture.workspace import ROOT
from sqlalchemy import Connection, Engine, NullPool, create_engine, text

from harness.migrations import wait_for
from harness.schemas import ROLE
from harness.servers import new_database, run_sql

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from sqlalchemy import URL

PAGE = ROOT / "docs/how-to/adopt-rls.md"
ROW = re.compile(r"^\| `(?P<statement>[^`]+)` \| (?P<lock>[A-Za-z ]+) \|", re.MULTILINE)
TABLE = re.compile(r"\b(?:TABLE|ON|UPDATE) (invoice|payment)\b")

# From PostgreSQL's chapter "Explicit Locking", the weakest first.
STRENGTH = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
HELD = """
    SELECT mode FROM pg_locks
    WHERE locktype = 'relation' AND granted AND relation = CAST(:name AS regclass)
    AND pid IN (SELECT pid FROM pg_stat_activity WHERE application_name = 'altering')
"""
TABLES = """
    CREATE TABLE invoice (id int PRIMARY KEY);
    CREATE TABLE payment (id int PRIMARY KEY, tenant_id uuid, invoice_id int);
    INSERT INTO invoice SELECT generate_series(1, 10)
"""


def strongest(observer: Connection, table: str) -> str:
    modes = list(observer.scalars(text(HELD), {"name": table}))
    if not modes:
        return "none"
    words = re.findall("[A-Z][a-z]+", max(modes, key=STRENGTH.index).removesuffix("Lock"))
    return " ".join(words).upper()


@contextmanager
def waiting(engine: Engine, statement: str) -> Generator[None]:
    """Run what builds an index concurrently, held up by an older transaction."""

    def build() -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(statement)

    with engine.connect() as older:
        older.exec_driver_sql("SET application_name = 'older'")
        older.exec_driver_sql("DELETE FROM invoice WHERE id = 10")
        thread = threading.Thread(target=build)
        thread.start()
        wait_for(engine.url, "SELECT 1 FROM pg_locks WHERE NOT granted")
        yield
        older.rollback()
    thread.join()


def measured(engine: Engine, observer: Connection) -> Iterator[tuple[str, str, str]]:
    """Run the page's statements in their order; yield each, its lock there, and the one taken."""
    for row in ROW.finditer(PAGE.read_text()):
        statement, named = row["statement"], row["lock"]
        (table,) = set(TABLE.findall(statement.partition("REFERENCES")[0]))
        if "CONCURRENTLY" in statement:
            with waiting(engine, statement):
                yield statement, named, strongest(observer, table)
        else:
            with engine.begin() as connection:
                connection.exec_driver_sql(statement)
                yield statement, named, strongest(observer, table)


@pytest.fixture
async def altered(any_postgres_url: URL) -> URL:
    url = await new_database(any_postgres_url)
    await run_sql(url, ROLE, TABLES)
    return url.set(drivername="postgresql+psycopg2")


def test_the_locks_of_the_page_are_those_that_are_taken(altered: URL) -> None:
    altering = {"application_name": "altering"}
    engine = create_engine(altered, poolclass=NullPool, connect_args=altering)
    other = create_engine(altered, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with other.connect() as observer:
        found = list(measured(engine, observer))

    # GRANT takes no lock at all before PostgreSQL 18.
    differing = [one for one in found if one[1] != one[2] and one[1:] != ("ACCESS SHARE", "none")]
    assert differing == []
    assert len(found) == 14


@pytest.fixture
def statements() -> list[str]:
    return [row["statement"] for row in ROW.finditer(PAGE.read_text())]


def test_the_column_rewrites_no_row(altered: URL, statements: list[str]) -> None:
    engine = create_engine(altered, poolclass=NullPool)
    file = "SELECT pg_relation_filenode('invoice')"
    with engine.begin() as connection:
        before = connection.exec_driver_sql(file).scalar()
        connection.exec_driver_sql(statements[0])

        assert connection.exec_driver_sql(file).scalar() == before


def test_not_null_reads_nothing_where_the_check_is_valid(
    altered: URL, statements: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sqlalchemy.dialects.postgresql")  # where notices of the server go
    engine = create_engine(altered, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("SET client_min_messages = debug1")
        for statement in statements[:5]:
            connection.exec_driver_sql(statement)

    assert "SET NOT NULL" in statements[4]
    assert "are sufficient to prove" in caplog.text
