"""Databases of every PostgreSQL server, their owner, and the role that policies hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.schemas import ROLE, Database
from harness.servers import new_database, run_sql

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import URL


@pytest.fixture
async def database(any_postgres_url: URL) -> AsyncIterator[Database]:
    """An empty database that no other test has, on each server in turn."""
    url = await new_database(any_postgres_url)
    await run_sql(url, ROLE)
    database = Database(url)
    yield database
    await database.dispose()
