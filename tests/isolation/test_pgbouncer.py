"""The same through a transaction pooler, where each transaction may meet another backend."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import text

from harness import pgbouncer as harness
from harness.tenants import tenant_in_force, visible
from mgf.sqlalchemy import create_engine, create_sessionmaker, tenant_session

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import URL

    from harness.tenants import World

pytestmark = pytest.mark.skipif(
    harness.PROGRAM is None,
    reason="pgbouncer is not installed on this machine (Debian's package of that name)",
)


@pytest.fixture
async def pooled(world: World, tmp_path: Path) -> AsyncGenerator[URL]:
    async with harness.pgbouncer(world.app, tmp_path) as url:
        yield url


async def test_several_processes_and_20_tenants_over_two_server_connections(pooled: URL) -> None:
    """One process, or one server connection, would hide what can go wrong here."""
    tenants = [str(uuid4()) for _ in range(20)]
    url = pooled.render_as_string(hide_password=False)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "harness.pgbouncer", url, str(seed), *tenants),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for seed in range(3)
    ]
    for process in processes:
        output, errors = await process.communicate()
        assert (process.returncode, output.split()) == (0, [b"240"]), errors.decode()
    engine = create_engine(pooled)
    async with engine.connect() as connection:
        left = await connection.execute(text("SELECT name FROM pg_prepared_statements"))
        assert left.all() == []
    await engine.dispose()


async def test_scopes_nest_and_end_in_an_open_transaction(pooled: URL, world: World) -> None:
    engine = create_engine(pooled)
    async with create_sessionmaker(engine)() as session:
        async with tenant_session(session, world.a):
            assert await visible(session) == ["a1", "a2"]
            async with tenant_session(session, world.b):
                assert await visible(session) == ["b1", "b2"]
            assert await visible(session) == ["a1", "a2"]
        assert await visible(session) == []
    await engine.dispose()


async def test_the_next_client_of_a_server_connection_meets_no_tenant(
    pooled: URL, world: World
) -> None:
    engine = create_engine(pooled, pool_size=5)
    sessionmaker = create_sessionmaker(engine)
    for _ in range(5):
        async with sessionmaker() as session, tenant_session(session, world.a):
            assert await visible(session) == ["a1", "a2"]
    for _ in range(5):
        async with engine.connect() as connection:
            assert await tenant_in_force(connection) is None
            assert await connection.scalar(text("SELECT count(*) FROM invoice")) == 0
    await engine.dispose()
