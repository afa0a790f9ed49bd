"""`require_tenant`: forgetting the scope is an error of PostgreSQL's, not an empty answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from harness.tenants import Invoice, visible
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import (
    create_engine,
    create_sessionmaker,
    tenant_scope,
    tenant_session,
)
from mgf.sqlalchemy.errors import TenantScopeError, sqlstate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

    from harness.tenants import World

A = ["a1", "a2"]
COUNTRIES = text("SELECT count(*) FROM country")


@pytest.fixture
def sessionmaker(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return create_sessionmaker(engine, require_tenant=True)


@pytest.fixture
async def session(sessionmaker: async_sessionmaker[AsyncSession]) -> AsyncIterator[AsyncSession]:
    async with sessionmaker() as session:
        yield session


async def assert_refused(session: AsyncSession) -> None:
    with pytest.raises(DBAPIError) as caught:
        await visible(session)
    assert sqlstate(caught.value) == "42501"
    await session.rollback()


async def test_outside_every_scope_a_protected_table_is_refused(session: AsyncSession) -> None:
    await assert_refused(session)
    await assert_refused(session)


async def test_in_a_scope_it_works(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a):
        assert await visible(session) == A
        await session.commit()
        assert await visible(session) == A


async def test_tables_without_row_security_work_in_both(
    session: AsyncSession, world: World
) -> None:
    assert await session.scalar(COUNTRIES) is not None
    async with tenant_session(session, world.a):
        assert await session.scalar(COUNTRIES) is not None


async def test_entering_and_leaving_inside_an_open_transaction(
    session: AsyncSession, world: World
) -> None:
    await session.execute(COUNTRIES)
    async with tenant_session(session, world.a):
        assert await visible(session) == A
    await assert_refused(session)


async def test_a_savepoint_rolled_back_after_the_scope(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a):
        savepoint = await session.begin_nested()
        assert await visible(session) == A
    assert await session.scalar(COUNTRIES) is not None
    await savepoint.rollback()
    await assert_refused(session)


async def test_nested_scopes(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a):
        async with tenant_session(session, world.b):
            assert await visible(session) == ["b1", "b2"]
        assert await visible(session) == A
    await assert_refused(session)


async def test_writing_outside_a_scope_is_refused(session: AsyncSession, world: World) -> None:
    session.add(Invoice(note="whose?"))
    with pytest.raises(DBAPIError) as caught:
        await session.commit()
    assert sqlstate(caught.value) == "42501"


async def test_the_next_user_of_the_connection_is_not_concerned(
    session: AsyncSession, engine: AsyncEngine
) -> None:
    await assert_refused(session)
    async with engine.connect() as connection:
        assert await visible(connection) == []


async def test_the_users_info_is_kept(engine: AsyncEngine) -> None:
    sessionmaker = create_sessionmaker(engine, require_tenant=True, info={"mine": 1})
    async with sessionmaker() as session:
        assert session.info["mine"] == 1
        await assert_refused(session)


async def test_autocommit_is_refused(world: World) -> None:
    engine = create_engine(world.app, isolation_level="AUTOCOMMIT")
    async with create_sessionmaker(engine, require_tenant=True)() as session:
        with pytest.raises(TenantScopeError, match="AUTOCOMMIT"):
            await session.scalars(select(Invoice))
    await engine.dispose()


async def test_a_database_without_row_security_is_refused_at_creation() -> None:
    engine = create_engine("sqlite://")
    with pytest.raises(AppConfigError, match="sqlite"):
        create_sessionmaker(engine, require_tenant=True)


async def test_tenant_scope_opens_a_session_that_is_in_scope(
    sessionmaker: async_sessionmaker[AsyncSession], world: World
) -> None:
    async with tenant_scope(sessionmaker, str(world.a)) as session:
        assert await visible(session) == A


async def test_what_else_uses_its_connection_is_not_concerned(
    engine: AsyncEngine, sessionmaker: async_sessionmaker[AsyncSession]
) -> None:
    async with engine.connect() as connection:
        await connection.begin()
        sessionmaker.configure(bind=connection, join_transaction_mode="create_savepoint")
        async with sessionmaker() as session:
            await session.execute(COUNTRIES)
            await session.commit()
        assert await visible(connection) == []


class MySyncSession(Session):
    pass


class MySession(AsyncSession):
    sync_session_class = MySyncSession


@pytest.mark.parametrize(
    "classes",
    [{"class_": MySession}, {"sync_session_class": MySyncSession}],
    ids=["outer", "inner"],
)
async def test_classes_of_the_users_are_kept(
    engine: AsyncEngine, world: World, classes: dict[str, Any]
) -> None:
    async with create_sessionmaker(engine, require_tenant=True, **classes)() as session:
        assert isinstance(session.sync_session, MySyncSession)
        await assert_refused(session)
        async with tenant_session(session, world.a):
            assert await visible(session) == A


async def test_configuring_the_factory_afterwards_does_not_turn_it_off(
    sessionmaker: async_sessionmaker[AsyncSession],
) -> None:
    sessionmaker.configure(info={"mine": 1})
    async with sessionmaker() as session:
        await assert_refused(session)
