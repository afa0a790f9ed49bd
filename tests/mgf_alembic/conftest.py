"""An Alembic project for every test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.held import new_held_database
from harness.migrations import Project
from harness.schemas import ROLE, Database
from harness.servers import new_database, run_sql

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy import URL


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
async def held(any_postgres_url: URL) -> URL:
    """The superuser's URL of a database whose migrator is held by policies, on each server."""
    return await new_held_database(any_postgres_url)


@pytest.fixture
async def empty(any_postgres_url: URL) -> AsyncIterator[Database]:
    """An empty database with the role "app", on each server in turn."""
    url = await new_database(any_postgres_url)
    await run_sql(url, ROLE)
    database = Database(url)
    yield database
    await database.dispose()
