"""`tenant_connection`, and sessions that share a connection with others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine

from harness.tenants import NOTES, Invoice, tenant_in_force, visible
from mgf.sqlalchemy import (
    create_engine,
    create_sessionmaker,
    current_tenant,
    tenant_connection,
    tenant_scope,
    tenant_session,
)
from mgf.sqlalchemy.errors import TenantScopeError, sqlstate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy import URL, Connection
    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

    from harness.tenants import World

A, B = ["a1", "a2"], ["b1", "b2"]


async def test_every_transaction_of_the_connection(engine: AsyncEngine, world: World) -> None:
    async with engine.connect() as connection:
        async with tenant_connection(connection, world.a) as scoped:
            assert scoped is connection
            assert await visible(connection) == A
            await connection.commit()
            assert await visible(connection) == A
            await connection.rollback()
            assert await visible(connection) == A
            assert current_tenant(connection) == world.a
        assert current_tenant(connection) is None
        assert await visible(connection) == []
        assert await tenant_in_force(connection) is None


async def test_a_connection_of_an_engine_made_by_others(world: World) -> None:
    engine = create_async_engine(world.app)
    async with engine.connect() as connection:
        for tenant, notes in ((world.a, A), (world.b, B)):
            async with tenant_connection(connection, tenant):
                assert await visible(connection) == notes
                await connection.commit()
                assert await visible(connection) == notes
        assert await visible(connection) == []
    await engine.dispose()


async def test_a_result_of_no_tenant_ends_where_a_scope_begins(
    engine: AsyncEngine, world: World
) -> None:
    """Also when the tenant of the transaction before was the same."""
    async with engine.connect() as connection:
        async with tenant_connection(connection, world.a):
            assert await visible(connection) == A
            await connection.commit()
        result = await connection.stream(
            text("SELECT n FROM generate_series(1, 1000) n LEFT JOIN invoice ON true"),
            execution_options={"yield_per": 10},
        )
        assert len(await result.fetchmany(10)) == 10
        async with tenant_connection(connection, world.a):
            assert await visible(connection) == A
            # SQLAlchemy lets asyncpg's own error pass here.
            with pytest.raises((DBAPIError, asyncpg.PostgresError)) as caught:
                await result.fetchall()
            assert sqlstate(caught.value) == "34000"
            await connection.rollback()


async def test_scopes_of_a_connection_nest(engine: AsyncEngine, world: World) -> None:
    async with engine.begin() as connection, tenant_connection(connection, world.a):
        assert await visible(connection) == A
        async with tenant_connection(connection, world.b):
            assert await visible(connection) == B
        assert await visible(connection) == A


async def test_a_savepoint_of_the_connection(engine: AsyncEngine, world: World) -> None:
    async with engine.connect() as connection:
        await connection.begin()
        savepoint = await connection.begin_nested()
        async with tenant_connection(connection, world.a):
            assert await visible(connection) == A
            await savepoint.rollback()
            assert await visible(connection) == A
        assert await visible(connection) == []


@pytest.mark.parametrize("require_tenant", [False, True])
async def test_a_session_on_a_scoped_connection_needs_a_scope_of_its_own(
    engine: AsyncEngine, world: World, require_tenant: bool
) -> None:
    """It keeps objects, and would serve them when the connection's tenant has changed."""
    sessionmaker = create_sessionmaker(engine, require_tenant=require_tenant)
    async with (
        engine.connect() as connection,
        tenant_connection(connection, world.a),
        sessionmaker(bind=connection) as session,
    ):
        for _ in range(2):
            with pytest.raises(TenantScopeError, match="shared with a session"):
                await visible(session)
        await session.rollback()
        async with tenant_session(session, world.b):
            assert await visible(session) == B
            await session.commit()
        async with tenant_session(session, world.a):
            assert await visible(session) == A
        await session.commit()
        assert await visible(connection) == A


async def test_a_scope_on_the_connection_of_a_session_in_no_scope_is_refused(
    engine: AsyncEngine, world: World
) -> None:
    async with AsyncSession(engine) as session:
        connection = await session.connection()
        async with tenant_connection(connection, world.a):
            with pytest.raises(TenantScopeError, match="shared with a session"):
                await visible(session)


async def test_a_scope_inside_a_sessions_scope_is_refused_whatever_came_before(
    engine: AsyncEngine, world: World
) -> None:
    async with (
        engine.connect() as connection,
        AsyncSession(connection) as session,
        tenant_session(session, world.b),
        tenant_connection(connection, world.a),
    ):
        for _ in range(2):
            with pytest.raises(TenantScopeError, match="shared with a session"):
                await visible(session)
            with pytest.raises(TenantScopeError, match="shared with a session"):
                await visible(connection)


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("require_tenant", [False, True])
async def test_a_transaction_ended_on_the_sessions_own_connection(
    engine: AsyncEngine, world: World, end: str, require_tenant: bool
) -> None:
    """The session is not told, and announces no new transaction."""
    async with create_sessionmaker(engine, require_tenant=require_tenant)() as session:
        async with tenant_session(session, world.a):
            connection = await session.connection()
            await visible(session)
            await getattr(connection, end)()
            assert await visible(session) == A
        if require_tenant:
            with pytest.raises(DBAPIError, match="row-level security"):
                await visible(session)


async def test_a_connection_that_lost_its_backend_can_be_scoped(
    engine: AsyncEngine, world: World
) -> None:
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError):
            await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        await connection.rollback()
        async with tenant_connection(connection, world.a):
            assert await visible(connection) == A


async def test_a_scoped_session_on_a_connection_with_an_open_transaction(
    engine: AsyncEngine, world: World
) -> None:
    async with engine.connect() as connection:
        assert await visible(connection) == []
        async with AsyncSession(connection) as session:
            async with tenant_session(session, world.a):
                assert await visible(session) == A
                await session.commit()
                assert await visible(session) == A
            assert await visible(session) == []
        assert await visible(connection) == []


async def test_a_session_that_requires_a_tenant_lets_go_of_a_connection_as_it_is_closed(
    engine: AsyncEngine, world: World
) -> None:
    async with engine.connect() as connection:
        outer = await connection.begin()
        sessionmaker = create_sessionmaker(engine, require_tenant=True)
        sessionmaker.configure(bind=connection)
        async with tenant_scope(sessionmaker, world.a) as session:
            assert await visible(session) == A
        assert not session.in_transaction()
        assert await visible(connection) == []
        await outer.rollback()


async def test_a_session_that_left_its_scope_after_its_transaction_lets_go_of_the_connection(
    engine: AsyncEngine, world: World
) -> None:
    async with engine.connect() as connection, AsyncSession(connection) as session:
        async with tenant_session(session, world.a):
            assert await visible(session) == A
            await session.commit()
        async with tenant_connection(connection, world.b):
            assert await visible(connection) == B


async def test_a_session_that_joins_by_savepoints(engine: AsyncEngine, world: World) -> None:
    async with engine.connect() as connection:
        outer = await connection.begin()
        session = AsyncSession(connection, join_transaction_mode="create_savepoint")
        async with session, tenant_session(session, world.a):
            assert await visible(session) == A
            await session.rollback()
            assert await visible(session) == A
            await session.commit()
            assert await visible(session) == A
        assert await visible(connection) == []
        await outer.rollback()


async def test_two_sessions_that_want_different_tenants_on_one_connection(
    engine: AsyncEngine, world: World
) -> None:
    async with (
        engine.connect() as connection,
        AsyncSession(connection) as one,
        AsyncSession(connection) as two,
        tenant_session(one, world.a),
    ):
        assert await visible(one) == A
        async with tenant_session(two, world.b):
            for _ in range(2):
                with pytest.raises(TenantScopeError, match="shared with a session"):
                    await visible(two)
            with pytest.raises(TenantScopeError, match="shared with a session"):
                await visible(one)
        await two.rollback()
        assert await visible(one) == A


async def test_all_that_share_a_connection_may_be_of_one_tenant(
    engine: AsyncEngine, world: World
) -> None:
    async with (
        engine.connect() as connection,
        AsyncSession(connection) as one,
        AsyncSession(connection) as two,
        tenant_session(one, world.a),
        tenant_session(two, world.a),
        tenant_connection(connection, world.a),
    ):
        assert [await visible(each) for each in (one, two, connection)] == [A, A, A]


async def test_a_session_that_committed_and_left_its_scope_leaves_the_connection_to_others(
    engine: AsyncEngine, world: World
) -> None:
    async with (
        engine.connect() as connection,
        AsyncSession(connection, join_transaction_mode="create_savepoint") as one,
        AsyncSession(connection, join_transaction_mode="create_savepoint") as two,
    ):
        await connection.begin()
        async with tenant_session(one, world.a):
            assert await visible(one) == A
            await one.commit()
        assert await visible(connection) == []
        async with tenant_session(two, world.b):
            assert await visible(two) == B
            await two.commit()
        async with tenant_session(one, world.a):
            assert await visible(one) == A
        with pytest.raises(TenantScopeError, match="shared with a session"):
            async with tenant_session(two, world.b):
                await visible(two)


async def test_a_connection_of_a_scoped_session_is_not_scoped_to_another_tenant(
    engine: AsyncEngine, world: World
) -> None:
    async with AsyncSession(engine) as session, tenant_session(session, world.a):
        connection = await session.connection()
        async with tenant_connection(connection, world.b):
            with pytest.raises(TenantScopeError, match="shared with a session"):
                await visible(session)
        assert await visible(session) == A


async def test_a_connection_taken_before_the_scope(engine: AsyncEngine, world: World) -> None:
    async with AsyncSession(engine) as session:
        connection = await session.connection()
        async with tenant_session(session, world.a):
            assert await visible(connection) == A
        assert await visible(connection) == []


async def test_a_connection_that_is_not_open_is_refused(engine: AsyncEngine, world: World) -> None:
    connection = await engine.connect()
    await connection.close()
    with pytest.raises(TenantScopeError, match="not open"):
        async with tenant_connection(connection, world.a):
            pytest.fail("entered")


async def test_an_exception_ends_the_scope(engine: AsyncEngine, world: World) -> None:
    async with engine.connect() as connection:
        with pytest.raises(RuntimeError):
            async with tenant_connection(connection, world.a):
                assert await visible(connection) == A
                raise RuntimeError
        assert await visible(connection) == []


async def test_a_change_that_failed_is_made_in_the_next_transaction(
    engine: AsyncEngine, world: World
) -> None:
    async with engine.connect() as connection, tenant_connection(connection, world.a):
        await connection.execute(text("INSERT INTO promise (country_code) VALUES ('nowhere')"))
        async with tenant_connection(connection, world.b):
            with pytest.raises(IntegrityError):
                await visible(connection)
            await connection.rollback()
            assert await visible(connection) == B
        assert await visible(connection) == A


async def test_a_listener_that_reads_as_a_transaction_begins(
    engine: AsyncEngine, world: World
) -> None:
    """SQLAlchemy tells of the transaction when its listeners are through."""
    event.listen(engine.sync_engine, "begin", lambda begun: begun.execute(NOTES).all())
    async with engine.connect() as connection, tenant_connection(connection, world.a):
        for _ in range(2):
            assert await visible(connection) == A
            await connection.commit()


@pytest.mark.parametrize("create", [create_engine, create_async_engine])
@pytest.mark.parametrize("by_session", [False, True])
async def test_a_listener_that_sends_a_statement_as_a_transaction_begins(
    world: World, create: Callable[[URL], AsyncEngine], by_session: bool
) -> None:
    """What is sent then is of the transaction, too, and must not stay in it unnoticed."""
    engine = create(world.app)
    event.listen(
        engine.sync_engine,
        "begin",
        lambda begun: begun.exec_driver_sql("SET LOCAL statement_timeout = 60000"),
    )
    async with engine.connect() as connection, AsyncSession(connection) as session:
        async with tenant_session(session, world.b):
            assert await visible(session) == B
            await session.rollback()
        async with (
            tenant_session(session, world.a)
            if by_session
            else tenant_connection(connection, world.a)
        ):
            await connection.begin()
        assert await visible(connection) == []
        assert await tenant_in_force(connection) is None
    await engine.dispose()


async def test_a_savepoint_in_sql_on_a_scoped_connection(engine: AsyncEngine, world: World) -> None:
    async with engine.connect() as connection, tenant_connection(connection, world.a):
        await connection.execute(text("SAVEPOINT mine"))
        await connection.execute(text("ROLLBACK TO mine"))
        assert await visible(connection) == A


async def test_a_session_that_is_handed_another_sessions_connection_is_refused(
    sessionmaker: async_sessionmaker[AsyncSession], world: World
) -> None:
    """It is of the same engine, and yet not its own."""
    async with tenant_scope(sessionmaker, world.a) as owner, sessionmaker() as other:
        assert await visible(owner) == A
        handed = {"bind": (await owner.connection()).sync_connection}
        with pytest.raises(TenantScopeError, match="shared"):
            await other.execute(text("SELECT note FROM invoice"), bind_arguments=handed)


async def _replace(connection: AsyncConnection) -> None:
    await connection.invalidate()
    await connection.rollback()


@pytest.mark.parametrize("change", [AsyncConnection.commit, _replace])
async def test_what_is_done_to_a_sessions_own_connection_does_not_unscope_it(
    sessionmaker: async_sessionmaker[AsyncSession],
    world: World,
    change: Callable[[AsyncConnection], Awaitable[None]],
) -> None:
    """The session is not told: its transaction goes on in another one."""
    async with tenant_scope(sessionmaker, world.a) as session:
        connection = await session.connection()
        assert await visible(session) == A
        await change(connection)
        assert await visible(session) == A


async def test_autocommit_set_by_hand_on_a_sessions_own_connection_is_refused(
    sessionmaker: async_sessionmaker[AsyncSession], world: World
) -> None:
    async with tenant_scope(sessionmaker, world.a) as session:
        connection = await session.connection()
        assert await visible(session) == A
        await connection.commit()
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(TenantScopeError, match="AUTOCOMMIT"):
            await visible(session)


def _read_level(connection: Connection) -> None:
    connection.get_isolation_level()


def _begin_and_read_level(connection: Connection) -> None:
    connection.begin()
    connection.get_isolation_level()


@pytest.mark.parametrize("read", [_read_level, _begin_and_read_level])
async def test_a_transaction_that_the_driver_began_by_itself_does_not_outlive_the_scope(
    engine: AsyncEngine, world: World, read: Callable[[Connection], None]
) -> None:
    """SQLAlchemy asks for the level by a cursor of the driver's, before any statement."""
    async with engine.connect() as connection:
        async with tenant_connection(connection, world.a):
            assert await visible(connection) == A
            await connection.commit()
            await connection.run_sync(read)
        assert await visible(connection) == []
        assert await tenant_in_force(connection) is None
        async with tenant_connection(connection, world.a):
            assert await visible(connection) == A
            await connection.commit()
            await connection.run_sync(read)
            assert await visible(connection) == A


@pytest.mark.parametrize("way", ["binds", "bind_arguments"])
async def test_a_connection_handed_to_an_opened_session_is_left_without_a_tenant(
    engine: AsyncEngine, world: World, way: str
) -> None:
    """It is of the session's own engine, and its transaction goes on after the session."""
    async with engine.connect() as connection:
        assert await visible(connection) == []
        handed = connection.sync_connection
        sessionmaker = create_sessionmaker(
            engine, binds={Invoice: connection} if way == "binds" else None
        )
        arguments = {"bind": handed} if way == "bind_arguments" else {}
        async with tenant_scope(sessionmaker, world.a) as session:
            notes = select(Invoice.note).order_by(Invoice.note)
            assert list(await session.scalars(notes, bind_arguments=arguments)) == A
        assert connection.in_transaction()
        assert await visible(connection) == []
        async with tenant_connection(connection, world.b):
            assert await visible(connection) == B


@pytest.mark.parametrize("scoped", [False, True])
async def test_a_session_lets_go_of_a_connection_that_it_was_handed(
    engine: AsyncEngine, world: World, scoped: bool
) -> None:
    async with engine.connect() as connection:
        sessionmaker = create_sessionmaker(engine, binds={Invoice: connection})
        async with sessionmaker() as session:
            notes = select(Invoice.note).order_by(Invoice.note)
            if scoped:
                async with tenant_session(session, world.a):
                    assert list(await session.scalars(notes)) == A
            else:
                assert list(await session.scalars(notes)) == []
        async with tenant_connection(connection, world.b):
            assert await visible(connection) == B
        assert session is not None


async def test_a_session_that_required_a_tenant_leaves_a_connection_that_it_was_handed(
    engine: AsyncEngine, world: World
) -> None:
    async with engine.connect() as connection:
        assert await visible(connection) == []
        handed = {"bind": connection.sync_connection}
        async with create_sessionmaker(engine, require_tenant=True)() as session:
            await session.execute(text("SELECT 1"), bind_arguments=handed)
        assert await visible(connection) == []
