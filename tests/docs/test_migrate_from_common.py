"""The commands of the page on moving from mgf.common.db do what the page says of them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest
from architecture.workspace import ROOT, clean_environment
from docs.pages import read_blocks
from sqlalchemy.exc import DBAPIError

from harness.servers import dsn, run_sql
from harness.tenants import APP_PASSWORD, make_world, visible
from mgf.sqlalchemy import create_engine, create_sessionmaker, tenant_scope
from mgf.sqlalchemy.errors import sqlstate

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import URL

BLOCKS = [*read_blocks(ROOT / "docs/how-to/migrate-from-mgf-common-db.md")]
UNSAFE = "current_setting('app.current_tenant', true)::uuid"


def block(language: str, word: str) -> str:
    (found,) = [b.code for b in BLOCKS if b.language == language and word in b.code]
    return found


FIND, ALTER_POLICY, SET_DEFAULT = (
    block("sql", word) for word in ("FROM pg_policies", "ALTER POLICY", "SET DEFAULT")
)
SED = block("bash", "sed")

MOVED = {
    "from mgf.common.db import get_session": "from mgf.fastapi.db import get_session",
    "from mgf.common.db import setup_db, get_session": (
        "from mgf.fastapi.db import setup_db, get_session"
    ),
    "    from mgf.common.db import setup_db  # web": (
        "    from mgf.fastapi.db import setup_db  # web"
    ),
    "from mgf.common.db import get_session as session_": (
        "from mgf.fastapi.db import get_session as session_"
    ),
    "from mgf.common.db import (get_session)": "from mgf.fastapi.db import (get_session)",
    "from mgf.common.db import create_engine": "from mgf.sqlalchemy import create_engine",
    "from mgf.common.db import create_engine, create_sessionmaker, tenant_session": (
        "from mgf.sqlalchemy import create_engine, create_sessionmaker, tenant_session"
    ),
    "from mgf.common.db import tenant_session as scope": (
        "from mgf.sqlalchemy import tenant_session as scope"
    ),
    'patch("mgf.common.db.get_session")': 'patch("mgf.fastapi.db.get_session")',
    'patch("mgf.common.db.tenant_session")': 'patch("mgf.sqlalchemy.tenant_session")',
    "from mgf.common.alembic import configure_env": "from mgf.alembic import configure_env",
}
BY_HAND = [
    "from mgf.common.db import create_engine, get_session",
    "from mgf.common.db import get_session, create_engine",
    "from mgf.common.db import (",
    "import mgf.common.db",
]
UNTOUCHED = [
    "from mgf.common import bootstrap",
    "from mgf.common.exceptions import AppError",
    "from mgf.common.dbx import get_session",
    "get_session = 1",
]


def run_the_command(folder: Path, *lines: str) -> tuple[list[str], str]:
    """Run the page's command on a file of these lines; return them, and what it printed."""
    source = folder / "shop.py"
    source.write_text("\n".join([*lines, BY_HAND[0]]))
    environment = clean_environment()
    for command in ("git init --quiet && git add .", SED):
        printed = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    return source.read_text().split("\n")[:-1], printed


def test_the_command_moves_every_name_to_its_package(tmp_path: Path) -> None:
    lines, _ = run_the_command(tmp_path, *MOVED)

    assert lines == list(MOVED.values())


def test_what_is_to_be_split_by_hand_stays_and_is_printed(tmp_path: Path) -> None:
    lines, printed = run_the_command(tmp_path, *BY_HAND)

    assert lines == BY_HAND
    assert [line.split(":", 2)[2] for line in printed.splitlines()] == [*BY_HAND, BY_HAND[0]]


def test_other_lines_and_files_are_not_touched(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text(next(iter(MOVED)))

    lines, _ = run_the_command(tmp_path, *UNTOUCHED)

    assert lines == UNTOUCHED
    assert other.read_text() == next(iter(MOVED))


@pytest.fixture
async def old(database: URL) -> URL:
    """A database with a row, whose policy and default cast the setting as it is."""
    await make_world(database)
    await run_sql(
        database,
        "ALTER POLICY tenant ON invoice RENAME TO tenant_isolation",
        f"""
        ALTER POLICY tenant_isolation ON invoice
            USING (tenant_id = {UNSAFE}) WITH CHECK (tenant_id = {UNSAFE});
        ALTER TABLE invoice ALTER COLUMN tenant_id SET DEFAULT {UNSAFE};
        INSERT INTO invoice (tenant_id, note) VALUES (gen_random_uuid(), 'of another tenant');
        """,
    )
    return database


async def read_after_a_scope(database: URL) -> list[str]:
    """Read without a tenant, on the one connection of a pool, which was scoped before."""
    app = database.set(username="app", password=APP_PASSWORD)
    engine = create_engine(app, pool_size=1, max_overflow=0)
    sessionmaker = create_sessionmaker(engine)
    try:
        async with tenant_scope(sessionmaker, uuid4()) as session:
            await visible(session)
        async with sessionmaker() as session:
            return await visible(session)
    finally:
        await engine.dispose()


async def find_unsafe(database: URL) -> list[tuple[str, str]]:
    connection = await asyncpg.connect(dsn(database))
    try:
        return [(row["tablename"], row["policyname"]) for row in await connection.fetch(FIND)]
    finally:
        await connection.close()


async def test_the_old_policy_fails_with_the_error_that_the_page_names(old: URL) -> None:
    with pytest.raises(DBAPIError, match='invalid input syntax for type uuid: ""') as caught:
        await read_after_a_scope(old)
    assert sqlstate(caught.value) == "22P02"


async def test_the_mended_policy_shows_nothing(old: URL) -> None:
    await run_sql(old, ALTER_POLICY)

    assert await read_after_a_scope(old) == []


async def test_the_query_finds_what_is_to_be_mended_and_nothing_else(old: URL) -> None:
    assert await find_unsafe(old) == [("invoice", "tenant_isolation")]

    await run_sql(old, ALTER_POLICY)

    assert await find_unsafe(old) == []


async def test_the_query_finds_a_policy_that_is_half_mended(old: URL) -> None:
    await run_sql(old, ALTER_POLICY.partition("WITH CHECK")[0])

    assert await find_unsafe(old) == [("invoice", "tenant_isolation")]


async def test_the_mended_default_raises_no_cast_error(old: URL) -> None:
    """Without a tenant the column stays NULL, which NOT NULL then refuses."""
    await run_sql(old, SET_DEFAULT)

    with pytest.raises(asyncpg.NotNullViolationError):
        await run_sql(
            old,
            "BEGIN; SET LOCAL app.current_tenant = ''; INSERT INTO invoice (note) VALUES ('x')",
        )
