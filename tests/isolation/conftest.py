from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from harness.tenants import APP_PASSWORD, World, new_world
from mgf.sqlalchemy import create_engine, create_sessionmaker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker


@pytest.fixture(scope="session")
def tenants_database(any_postgres_url: URL) -> URL:
    """The superuser's URL of a database with tables under row-level security."""
    return asyncio.run(new_world(any_postgres_url))


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def world(tenants_database: URL, driver: str) -> World:
    app = tenants_database.set(
        drivername=f"postgresql+{driver}", username="app", password=APP_PASSWORD
    )
    return await World(tenants_database, app).seed()


@pytest.fixture
async def engine(world: World) -> AsyncIterator[AsyncEngine]:
    """An engine of the application's role, with one connection: whoever leaks meets the next."""
    engine = create_engine(world.app, pool_size=1, max_overflow=0, pool_timeout=5)
    yield engine
    await engine.dispose()


@pytest.fixture
def sessionmaker(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return create_sessionmaker(engine)


@pytest.fixture
async def session(sessionmaker: async_sessionmaker[AsyncSession]) -> AsyncIterator[AsyncSession]:
    async with sessionmaker() as session:
        yield session
