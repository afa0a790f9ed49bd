"""One way to write a scoped unit, in a process of its own, driven over its standard input.

    python ways.py WAY URL

The first line it reads is the tenants, as JSON; each further one is how many units to run, and is
answered by the wall and the processor seconds that they took. A process for each way, since
importing `mgf.sqlalchemy` puts listeners on every session, which must not slow the others down.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from sqlalchemy import URL

    Unit = Callable[[UUID], Awaitable[None]]

SELECT = "SELECT note FROM invoice ORDER BY note"


async def _query(session: AsyncSession) -> None:
    await session.execute(text(SELECT))
    await session.commit()


@asynccontextmanager
async def plain(url: URL) -> AsyncGenerator[Unit]:
    engine = create_async_engine(url)
    sessions = async_sessionmaker(engine)

    async def unit(_tenant: UUID) -> None:
        async with sessions() as session:
            await _query(session)

    yield unit
    await engine.dispose()


@asynccontextmanager
async def by_hand(url: URL) -> AsyncGenerator[Unit]:
    engine = create_async_engine(url, pool_pre_ping=True)
    sessions = async_sessionmaker(engine)

    async def unit(tenant: UUID) -> None:
        async with sessions() as session:
            await session.execute(text(f"SET LOCAL app.current_tenant = '{tenant}'"))
            await _query(session)

    yield unit
    await engine.dispose()


@asynccontextmanager
async def ours(url: URL) -> AsyncGenerator[Unit]:
    from mgf.sqlalchemy import create_engine, create_sessionmaker, tenant_scope

    engine = create_engine(url)
    sessions = create_sessionmaker(engine)

    async def unit(tenant: UUID) -> None:
        async with tenant_scope(sessions, tenant) as session:
            await _query(session)

    yield unit
    await engine.dispose()


@asynccontextmanager
async def ours_in_two_steps(url: URL) -> AsyncGenerator[Unit]:
    from mgf.sqlalchemy import create_engine, create_sessionmaker, tenant_session

    engine = create_engine(url)
    sessions = create_sessionmaker(engine)

    async def unit(tenant: UUID) -> None:
        async with sessions() as session, tenant_session(session, tenant):
            await _query(session)

    yield unit
    await engine.dispose()


@asynccontextmanager
async def raw(url: URL) -> AsyncGenerator[Unit]:
    import asyncpg

    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=1)

    async def unit(tenant: UUID) -> None:
        async with pool.acquire() as connection:
            await connection.execute(f"BEGIN; SET LOCAL app.current_tenant = '{tenant}'")
            await connection.fetch(SELECT)
            await connection.execute("COMMIT")

    yield unit
    await pool.close()


WAYS = {
    "plain SQLAlchemy, no tenant": plain,
    "tenant_scope": ours,
    "tenant_session, session by hand": ours_in_two_steps,
    "SET LOCAL by hand, stock pre-ping": by_hand,
    "raw asyncpg, tenant merged by hand": raw,
}


async def main(way: str, url: str) -> None:
    tenants = itertools.cycle(map(UUID, json.loads(sys.stdin.readline())))
    async with WAYS[way](make_url(url)) as unit:
        while line := sys.stdin.readline():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(int(line)):
                await unit(next(tenants))
            print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
