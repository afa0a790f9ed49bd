"""A pooled connection never carries a tenant to its next user, whatever ended the use before."""

from __future__ import annotations

import asyncio
import gc
import random
import warnings
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from harness.tenants import tenant_in_force, visible
from mgf.sqlalchemy import (
    create_engine,
    create_sessionmaker,
    tenant_connection,
    tenant_scope,
    tenant_session,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

    from harness.tenants import World

A = ["a1", "a2"]


@pytest.fixture
async def engine(engine: AsyncEngine) -> AsyncGenerator[AsyncEngine]:
    """Its one connection has served before, so that the tenant goes with BEGIN."""
    async with engine.connect() as connection:
        await visible(connection)
    yield engine
    pool: Any = engine.pool
    assert pool.checkedout() == 0
    # asyncpg 0.30 leaves the socket of a connection that was cut off in mid-query to this.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def assert_clean(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await tenant_in_force(connection) is None
        assert await visible(connection) == []


async def commits(session: AsyncSession) -> None:
    await visible(session)
    await session.commit()


async def rolls_back(session: AsyncSession) -> None:
    await visible(session)
    await session.rollback()


async def leaves_open(session: AsyncSession) -> None:
    await visible(session)


async def fails_in_sql(session: AsyncSession) -> None:
    await session.execute(text("SELECT 1/0"))


async def fails_in_python(session: AsyncSession) -> None:
    await visible(session)
    raise RuntimeError


async def loses_its_backend(session: AsyncSession) -> None:
    await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


async def times_out(session: AsyncSession) -> None:
    async with asyncio.timeout(0.1):
        await session.execute(text("SELECT pg_sleep(5)"))


async def times_out_in_anyio(session: AsyncSession) -> None:
    with anyio.fail_after(0.1):
        await session.execute(text("SELECT pg_sleep(5)"))


async def ends_the_transaction_in_sql(session: AsyncSession) -> None:
    await visible(session)
    await session.execute(text("COMMIT"))


async def invalidates(session: AsyncSession) -> None:
    connection = await session.connection()
    await visible(session)
    await connection.invalidate()


ENDS = [
    commits,
    rolls_back,
    leaves_open,
    fails_in_sql,
    fails_in_python,
    loses_its_backend,
    times_out,
    times_out_in_anyio,
    ends_the_transaction_in_sql,
    invalidates,
]


@pytest.mark.parametrize("end", ENDS)
async def test_after_a_use_that_ends_so(
    engine: AsyncEngine, world: World, end: Callable[[AsyncSession], Awaitable[None]]
) -> None:
    async def use() -> None:
        async with tenant_scope(create_sessionmaker(engine), world.a) as session:
            await end(session)

    await asyncio.gather(use(), return_exceptions=True)
    await assert_clean(engine)


@pytest.mark.parametrize("turns", range(12))
async def test_cancelled_at_any_point(engine: AsyncEngine, world: World, turns: int) -> None:
    """The task is cancelled after so many turns of the loop: in checkout, BEGIN, SELECT, COMMIT."""

    async def use() -> None:
        async with tenant_scope(create_sessionmaker(engine), world.a) as session:
            assert await visible(session) == A
            await session.commit()
            assert await visible(session) == A

    task = asyncio.create_task(use())
    for _ in range(turns * 3):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await assert_clean(engine)


async def test_a_cancelled_task_of_anyio(engine: AsyncEngine, world: World) -> None:
    with anyio.move_on_after(0.1) as scope:
        async with tenant_scope(create_sessionmaker(engine), world.a) as session:
            await session.execute(text("SELECT pg_sleep(5)"))
    assert scope.cancelled_caught
    await assert_clean(engine)


async def test_a_session_that_was_dropped(engine: AsyncEngine, world: World) -> None:
    """Nobody closes it; the garbage collector takes its connection from the pool."""

    async def drop() -> None:
        session = AsyncSession(engine)
        async with tenant_session(session, world.a):
            assert await visible(session) == A

    with warnings.catch_warnings():
        # SQLAlchemy, the drivers and the event loop each complain about it, version by version.
        warnings.simplefilter("ignore")
        await drop()
        gc.collect()
        await asyncio.sleep(0.01)
        gc.collect()
    await assert_clean(engine)


async def test_a_connection_scope_that_was_left_open(engine: AsyncEngine, world: World) -> None:
    async with engine.connect() as connection, tenant_connection(connection, world.a):
        assert await visible(connection) == A
    await assert_clean(engine)


async def test_a_backend_lost_between_two_transactions(engine: AsyncEngine, world: World) -> None:
    async with tenant_scope(create_sessionmaker(engine), world.a) as session:
        assert await visible(session) == A
        await session.commit()
        await world.truth(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE usename = 'app' AND datname = current_database()"
        )
        # Noticed at the checkout: the transaction begins on another connection.
        assert await visible(session) == A
    await assert_clean(engine)


async def test_many_tasks_over_few_connections_with_many_tenants(world: World) -> None:
    """64 tasks, 4 connections, 1,000 tenants: each reads what it wrote and nothing else."""
    engine = create_engine(world.app, pool_size=4, max_overflow=0, pool_timeout=60)
    sessionmaker = create_sessionmaker(engine)
    tenants = [uuid4() for _ in range(1000)]
    todo = iter(tenants)

    async def work(dice: random.Random) -> None:
        for tenant in todo:
            async with tenant_scope(sessionmaker, tenant) as session:
                await session.execute(
                    text("INSERT INTO invoice (note) VALUES (:note)"), {"note": str(tenant)}
                )
                if dice.random() < 0.5:
                    await session.commit()
                assert await visible(session) == [str(tenant)]
                assert await tenant_in_force(session) == tenant

    await asyncio.gather(*(work(random.Random(seed)) for seed in range(64)))
    await engine.dispose()


def test_an_engine_used_by_one_event_loop_after_another(world: World) -> None:
    engine = create_engine(world.app, pool_size=1, max_overflow=0)
    sessionmaker: async_sessionmaker[AsyncSession] = create_sessionmaker(engine)

    async def use() -> None:
        async with tenant_scope(sessionmaker, world.a) as session:
            assert await visible(session) == A
        await assert_clean(engine)

    async def last() -> None:
        await use()
        await engine.dispose()

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(use())
        second.run(last())
