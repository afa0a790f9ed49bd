"""What the tenant costs, counted in round trips on the wire and in cached statements."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from harness.proxy import Proxy, proxied
from harness.servers import bindirs, name_of, run_sql
from harness.tenants import NOTES, tenant_in_force, visible
from mgf.common.exceptions import OperationError
from mgf.sqlalchemy import (
    create_engine,
    create_sessionmaker,
    current_tenant,
    tenant_connection,
    tenant_scope,
    tenant_session,
)
from mgf.sqlalchemy.testing import TemporaryPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from uuid import UUID

    from sqlalchemy import URL, TextClause
    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

    from harness.tenants import World

# Beyond a plain unit: asyncpg sends the tenant with BEGIN, psycopg cannot.
EXTRA = {"asyncpg": 0, "psycopg": 1}
# Units until the caches are filled: psycopg prepares a statement that it has seen five times.
WARM = 8


@pytest.fixture
async def proxy(world: World) -> AsyncGenerator[Proxy]:
    async with proxied(world.app) as proxy:
        yield proxy


@pytest.fixture
async def engine(proxy: Proxy) -> AsyncGenerator[AsyncEngine]:
    engine = create_engine(proxy.url, pool_size=1, max_overflow=0, pool_ping_idle=60)
    yield engine
    await engine.dispose()


@pytest.fixture
async def plain_unit(proxy: Proxy) -> int:
    """Turnarounds of checkout, BEGIN, one SELECT, COMMIT, check-in in SQLAlchemy alone."""
    engine = create_async_engine(proxy.url)
    for _ in range(WARM):
        proxy.reset()
        async with AsyncSession(engine) as session:
            await session.execute(NOTES)
            await session.commit()
    turnarounds = proxy.turnarounds
    await engine.dispose()
    return turnarounds


async def unit(
    sessionmaker: async_sessionmaker[AsyncSession], tenant: UUID, query: TextClause = NOTES
) -> None:
    async with tenant_scope(sessionmaker, tenant) as session:
        await session.execute(query)
        await session.commit()


@pytest.mark.parametrize("require_tenant", [False, True])
@pytest.mark.parametrize("tenants", [1, 1000])
async def test_a_scoped_unit_costs_no_more_than_a_plain_one(
    engine: AsyncEngine,
    proxy: Proxy,
    plain_unit: int,
    driver: str,
    tenants: int,
    require_tenant: bool,
) -> None:
    sessionmaker = create_sessionmaker(engine, require_tenant=require_tenant)
    for _ in range(WARM):
        await unit(sessionmaker, uuid4())
    ids = [uuid4() for _ in range(tenants)]
    proxy.reset()
    for tenant in ids:
        await unit(sessionmaker, tenant)
    assert proxy.turnarounds == tenants * (plain_unit + EXTRA[driver])


async def test_requiring_a_tenant_costs_no_more_outside_a_scope(
    engine: AsyncEngine, proxy: Proxy, plain_unit: int, driver: str
) -> None:
    sessionmaker = create_sessionmaker(engine, require_tenant=True)
    for _ in range(WARM):
        proxy.reset()
        async with sessionmaker() as session:
            await session.execute(text("SELECT count(*) FROM country"))
            await session.commit()
    assert proxy.turnarounds == plain_unit + EXTRA[driver]


async def test_a_scope_whose_work_was_committed_closes_without_waiting(
    engine: AsyncEngine, world: World
) -> None:
    """SQLAlchemy closes a session in a task of its own, though there is nothing left to send."""
    scope = tenant_scope(create_sessionmaker(engine), world.a)
    session = await scope.__aenter__()
    await visible(session)
    await session.commit()
    with pytest.raises(StopIteration):
        scope.__aexit__(None, None, None).send(None)
    assert current_tenant(session) is None


closed: list[object] = []


class Leaving(AsyncSession):
    async def __aexit__(self, *raised: object) -> None:
        closed.append(self)
        await super().__aexit__(*raised)


class Closing(AsyncSession):
    async def close(self) -> None:
        closed.append(self)
        await super().close()


class ClosingInside(AsyncSession):
    class sync_session_class(Session):  # noqa: N801
        def close(self) -> None:
            closed.append(self)
            # In a greenlet, as where SQLAlchemy closes it: what it does may await.
            await_only(asyncio.sleep(0))
            super().close()


@pytest.mark.parametrize("class_", [Leaving, Closing, ClosingInside])
async def test_a_class_of_the_users_closes_its_session_in_its_own_way(
    engine: AsyncEngine, world: World, class_: type[AsyncSession]
) -> None:
    closed.clear()
    async with tenant_scope(create_sessionmaker(engine, class_=class_), world.a) as session:
        await session.commit()
    assert closed in ([session], [session.sync_session])


async def test_entering_and_leaving_an_open_transaction_cost_one_each(
    engine: AsyncEngine, proxy: Proxy
) -> None:
    """It goes with the next statement, and the one after that costs what it always does."""
    async with create_sessionmaker(engine)() as session:
        for _ in range(WARM):
            await visible(session)
        proxy.reset()
        await visible(session)
        one = proxy.turnarounds
        async with tenant_session(session, uuid4()):
            await visible(session)
            assert proxy.turnarounds == 2 * one + 1
            async with tenant_session(session, uuid4()):
                await visible(session)
                assert proxy.turnarounds == 3 * one + 2
            await visible(session)
            assert proxy.turnarounds == 4 * one + 3
            await visible(session)
            assert proxy.turnarounds == 5 * one + 3
        await visible(session)
        assert proxy.turnarounds == 6 * one + 4


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
async def test_leaving_costs_nothing_when_the_transaction_ends_next(
    engine: AsyncEngine, proxy: Proxy, end: str
) -> None:
    async def ends(session: AsyncSession) -> int:
        proxy.reset()
        await getattr(session, end)()
        return proxy.turnarounds

    async with create_sessionmaker(engine)() as session:
        await visible(session)
        plain = await ends(session)
        async with tenant_session(session, uuid4()):
            await visible(session)
            proxy.reset()
        assert proxy.turnarounds == 0
        assert await ends(session) == plain


async def test_no_tenant_takes_a_place_in_the_statement_caches(
    engine: AsyncEngine, world: World
) -> None:
    sessionmaker = create_sessionmaker(engine)
    tenants = [uuid4() for _ in range(20)] + [world.a] * WARM
    async with sessionmaker() as session:
        for tenant in tenants:
            async with tenant_session(session, tenant):
                await visible(session)
        await session.commit()
        for tenant in tenants:
            async with tenant_session(session, tenant):
                await visible(session)
                await session.commit()
        statements = await session.scalars(text("SELECT statement FROM pg_prepared_statements"))
        assert [one for one in statements if "SET LOCAL" in one] == []


@pytest.fixture(scope="module", params=bindirs(), ids=name_of)
def counting_server(request: pytest.FixtureRequest) -> Iterator[URL]:
    """A server with pg_stat_statements, for each PostgreSQL of this machine."""
    if os.environ.get("MGF_TEST_DATABASE_URL"):
        pytest.skip("the server is not the tests' own: they leave its settings alone")
    settings = {"shared_preload_libraries": "pg_stat_statements"}
    server = TemporaryPostgres(bindir=request.param, settings=settings)
    try:
        server.start()
    except OperationError as exc:
        pytest.skip(f"this PostgreSQL comes without pg_stat_statements: {exc}")
    asyncio.run(run_sql(server.url, "CREATE EXTENSION pg_stat_statements"))
    yield server.url
    server.stop()


@pytest.mark.parametrize("tracks_utilities", [True, False])
async def test_what_pg_stat_statements_keeps_of_tenants(
    counting_server: URL, driver: str, tracks_utilities: bool
) -> None:
    """Since PostgreSQL 18 one text for all; before, one for each, unless it is told not to."""
    track = f"pg_stat_statements.track_utility = {'on' if tracks_utilities else 'off'}"
    await run_sql(
        counting_server, f"ALTER ROLE CURRENT_USER SET {track}", "SELECT pg_stat_statements_reset()"
    )
    engine = create_engine(counting_server.set(drivername=f"postgresql+{driver}"))
    for _ in range(10):
        await unit(create_sessionmaker(engine), uuid4(), text("SELECT 1"))
    async with engine.connect() as connection:
        version = int((await connection.scalar(text("SHOW server_version_num"))) or 0)
        kept = list(await connection.scalars(text(KEPT)))
    await engine.dispose()
    expected = 0 if not tracks_utilities else 1 if version >= 180000 else 10
    assert len(kept) == expected, kept


KEPT = "SELECT query FROM pg_stat_statements WHERE query LIKE 'SET LOCAL app.current_tenant%'"


async def test_a_tenant_that_was_never_sent_is_not_met_by_the_next_checkout(
    engine: AsyncEngine, world: World
) -> None:
    """BEGIN goes with the first statement; here there is none."""
    sessionmaker = create_sessionmaker(engine)
    for _ in range(2):
        async with tenant_scope(sessionmaker, world.a) as session:
            await session.connection()
    async with engine.connect() as connection:
        assert await tenant_in_force(connection) is None


async def test_a_scope_left_before_the_first_statement(engine: AsyncEngine, world: World) -> None:
    async with create_sessionmaker(engine)() as session:
        await visible(session)
        await session.commit()
        async with tenant_session(session, world.a):
            await session.connection()
        assert await visible(session) == []
        await session.commit()
        async with tenant_session(session, world.a):
            await session.connection()
            async with tenant_session(session, world.b):
                assert await visible(session) == ["b1", "b2"]


async def test_a_scoped_connection_costs_no_more_than_a_plain_one(
    engine: AsyncEngine, proxy: Proxy, driver: str
) -> None:
    async with engine.connect() as connection:
        counts = []
        for scope in (None, uuid4()):
            for _ in range(WARM):
                proxy.reset()
                if scope is None:
                    await visible(connection)
                else:
                    async with tenant_connection(connection, scope):
                        await visible(connection)
                await connection.commit()
            counts.append(proxy.turnarounds)
        assert counts[1] == counts[0] + EXTRA[driver]


async def test_a_connection_scope_left_before_the_first_statement(
    engine: AsyncEngine, world: World
) -> None:
    async with engine.connect() as connection:
        await visible(connection)
        await connection.commit()
        async with tenant_connection(connection, world.a):
            await connection.begin()
        assert await visible(connection) == []


async def test_what_goes_with_begin_shows_in_the_log(
    engine: AsyncEngine, world: World, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLAlchemy's echo knows nothing of it, and would look as if no tenant was set."""
    async with engine.connect() as connection:
        await visible(connection)
    with caplog.at_level("DEBUG", logger="mgf.sqlalchemy"):
        async with tenant_scope(create_sessionmaker(engine), world.a) as session:
            await visible(session)
    expected = "BEGIN; " if driver == "asyncpg" else ""
    assert f"{expected}SET LOCAL app.current_tenant = '{world.a}'" in caplog.messages
