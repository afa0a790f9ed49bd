from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from harness.servers import run_sql
from harness.tenants import APP_PASSWORD, World, new_world

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
    return asyncio.run(new_world(postgres_url, ONCE))


@pytest.fixture
async def world(world_database: URL) -> World:
    """Two tenants of the test's own, and the application's role."""
    await run_sql(world_database, "TRUNCATE once")
    app = world_database.set(username="app", password=APP_PASSWORD)
    return await World(world_database, app).seed()
