"""A database on every PostgreSQL server, in which nothing is wrong."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from mgf_sqlalchemy.audit.correct import Correct

from harness.schemas import Database
from harness.servers import new_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL


@pytest.fixture(scope="session")
def untouched(any_postgres_url: URL) -> Iterator[Correct]:
    database = Database(asyncio.run(new_database(any_postgres_url)))
    yield Correct(database)
    asyncio.run(database.dispose())


@pytest.fixture
def correct(untouched: Correct) -> Iterator[Correct]:
    """The same for every test of a server; what a test changes is rolled back."""
    yield untouched
    untouched.database.owner.rollback()
