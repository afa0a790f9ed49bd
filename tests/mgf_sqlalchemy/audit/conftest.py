"""Databases of every PostgreSQL server in which nothing is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mgf_sqlalchemy.audit.correct import Correct

from harness.schemas import Database
from harness.servers import new_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import URL


@pytest.fixture
async def correct(any_postgres_url: URL) -> AsyncIterator[Correct]:
    """A database of its own for each test, on each server in turn."""
    database = Database(await new_database(any_postgres_url))
    yield Correct(database)
    await database.dispose()
