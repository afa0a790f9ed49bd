from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from harness.servers import new_database, run_sql
from harness.tenants import APP_PASSWORD, World, make_world

if TYPE_CHECKING:
    from sqlalchemy import URL

# A second equal row is refused by the commit, not by its INSERT.
ONCE = """
    CREATE TABLE once (number int UNIQUE DEFERRABLE INITIALLY DEFERRED);
    GRANT SELECT, INSERT ON once TO app;
"""


@pytest.fixture(scope="session")
def world_database(postgres_url: URL) -> URL:
    """The superuser's URL of a database with tables under row-level security."""

    async def make() -> URL:
        database = await new_database(postgres_url)
        await make_world(database)
        await run_sql(database, ONCE)
        return database

    return asyncio.run(make())


@pytest.fixture
async def world(world_database: URL) -> World:
    """Two tenants of the test's own, and the application's role."""
    await run_sql(world_database, "TRUNCATE once")
    app = world_database.set(username="app", password=APP_PASSWORD)
    return await World(world_database, app).seed()
