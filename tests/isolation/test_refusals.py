"""What cannot be scoped is refused before it reads anything."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, MagicMock
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session

from harness.tenants import Base, BaseWithAll, Invoice, InvoiceWithAll, visible
from mgf.common.exceptions import AppError
from mgf.sqlalchemy import (
    create_engine,
    create_sessionmaker,
    current_tenant,
    parse_tenant,
    tenant_connection,
    tenant_scope,
    tenant_session,
)
from mgf.sqlalchemy.errors import TenantScopeError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from harness.tenants import World

ID = "6f1e7f3c-32a1-4a7e-9d0e-0a4c2f6b8d11"

BAD_IDS: list[Any] = [
    "x'; DROP TABLE t; --",
    "",
    None,
    ID.encode(),
    "z" * 36,
    "-" * 36,
    ID + "\n",
    " " + ID,
    "{" + ID + "}",
    "urn:uuid:" + ID,
    ID.replace("-", "_"),
    ID.replace("-", "", 1),
    ID[:-1] + "\u0661",
    17,
    object(),
]


@pytest.mark.parametrize("bad", BAD_IDS)
async def test_what_is_no_uuid_is_refused_before_any_sql(bad: Any) -> None:
    engine = create_engine("postgresql+asyncpg://nobody@127.0.0.1:1/nowhere")
    sessionmaker = create_sessionmaker(engine)
    async with sessionmaker() as session:
        # Of anything but text its type, since it may be somebody's claims.
        given = repr(bad) if isinstance(bad, str) else f"type {type(bad).__name__!r}"
        with pytest.raises(ValueError, match=re.escape(given)):
            async with tenant_session(session, bad):
                pytest.fail("entered")
        assert not session.in_transaction()
    with pytest.raises(ValueError, match="a tenant id is"):
        parse_tenant(bad)
    with pytest.raises(ValueError, match="a tenant id is"):
        async with tenant_scope(sessionmaker, bad):
            pytest.fail("entered")
    with pytest.raises(ValueError, match="a tenant id is"):
        async with tenant_connection(engine.connect(), bad):
            pytest.fail("entered")


def test_a_parsed_tenant_is_a_plain_uuid() -> None:
    class OwnUuid(UUID):
        def __str__(self) -> str:
            return "x'; DROP TABLE t; --"

    for same in (UUID(ID), OwnUuid(ID), ID, ID.upper(), ID.replace("-", "")):
        tenant = parse_tenant(same)
        assert (type(tenant), str(tenant)) == (UUID, ID)


async def test_the_nil_uuid_is_a_tenant_like_any_other(session: AsyncSession) -> None:
    async with tenant_session(session, UUID(int=0)):
        assert await visible(session) == []
        assert current_tenant(session) == UUID(int=0)


@pytest.mark.parametrize("at", ["engine", "execution_options"])
async def test_an_engine_in_autocommit_is_refused(world: World, at: str) -> None:
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"}
    if at == "execution_options":
        options = {"execution_options": options}
    engine = create_engine(world.app, **options)
    async with tenant_scope(async_sessionmaker(engine), world.a) as session:
        for _ in range(2):
            with pytest.raises(TenantScopeError, match="AUTOCOMMIT"):
                await visible(session)
    await engine.dispose()


async def test_a_connection_in_autocommit_is_refused(engine: AsyncEngine, world: World) -> None:
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(TenantScopeError, match="AUTOCOMMIT"):
            async with tenant_connection(connection, world.a):
                pytest.fail("entered")


async def test_a_session_that_asks_for_autocommit_is_refused(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        with pytest.raises(TenantScopeError, match="AUTOCOMMIT"):
            await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        with pytest.raises(TenantScopeError, match="AUTOCOMMIT"):
            await visible(session)


async def test_sqlite_is_refused_at_entry_with_no_statement_sent() -> None:
    engine = create_engine("sqlite://")
    statements: list[str] = []
    event.listen(
        engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2])
    )
    async with AsyncSession(engine) as session:
        with pytest.raises(TenantScopeError, match="sqlite") as caught:
            async with tenant_session(session, uuid4()):
                pytest.fail("entered")
    async with engine.connect() as connection:
        with pytest.raises(TenantScopeError, match="sqlite"):
            async with tenant_connection(connection, uuid4()):
                pytest.fail("entered")
    assert isinstance(caught.value, AppError)
    assert not isinstance(caught.value, ValueError)
    assert statements == []
    await engine.dispose()


async def test_a_per_mapper_bind_to_sqlite_is_refused_at_the_first_statement() -> None:
    engine = create_engine("sqlite://")
    async with AsyncSession(binds={Base: engine}) as session, tenant_session(session, uuid4()):
        for _ in range(2):
            with pytest.raises(TenantScopeError, match="sqlite"):
                await session.scalars(select(Invoice))
    await engine.dispose()


async def test_a_session_without_any_bind_fails_as_without_a_scope() -> None:
    async with AsyncSession() as session, tenant_session(session, uuid4()):
        with pytest.raises(InvalidRequestError):
            await session.execute(text("SELECT 1"))


async def test_per_mapper_binds_carry_the_tenant(engine: AsyncEngine, world: World) -> None:
    async with (
        AsyncSession(binds={Base: engine}) as session,
        tenant_session(session, world.a),
    ):
        notes = list(await session.scalars(select(Invoice.note).order_by(Invoice.note)))
        assert notes == ["a1", "a2"]


async def test_a_session_that_chooses_its_engine_by_what_it_is_asked_for(
    engine: AsyncEngine, world: World
) -> None:
    """It may refuse to choose one for nothing, as the example of SQLAlchemy's sharding does."""

    def choose(mapper: Any, _instance: object, *_: object) -> str:
        if mapper is None:
            raise NotImplementedError
        return "only"

    async with AsyncSession(
        sync_session_class=ShardedSession,
        shards={"only": engine.sync_engine},
        shard_chooser=choose,
        identity_chooser=lambda *_, **__: ["only"],
        execute_chooser=lambda _: ["only"],
    ) as session:
        async with tenant_session(session, world.a):
            session.add(Invoice(note="new"))
            await session.flush()
            invoices = await session.scalars(select(Invoice).order_by(Invoice.note))
            assert [one.note for one in invoices] == ["a1", "a2", "new"]
            async with tenant_session(session, world.b):
                assert await session.get(Invoice, world.ids["a1"]) is None
        assert list(await session.scalars(select(Invoice))) == []


async def test_a_session_on_two_engines_has_the_tenant_on_both(
    engine: AsyncEngine, world: World
) -> None:
    other = create_engine(world.app, pool_size=1, max_overflow=0)
    binds: dict[Any, Any] = {Base: engine, BaseWithAll: other}

    async def notes(session: AsyncSession) -> list[list[str]]:
        return [
            list(await session.scalars(select(kind.note).order_by(kind.note)))
            for kind in (Invoice, InvoiceWithAll)
        ]

    a, b = ["a1", "a2"], ["b1", "b2"]
    async with AsyncSession(binds=binds) as session:
        async with tenant_session(session, world.a):
            assert await notes(session) == [a, a]
            async with tenant_session(session, world.b):
                assert await notes(session) == [b, b]
                await session.commit()
                assert await notes(session) == [b, b]
            assert await notes(session) == [a, a]
            session.add_all([Invoice(note="one"), InvoiceWithAll(note="two")])
            await session.commit()
        assert await notes(session) == [[], []]
    assert await world.notes(world.a) == [*a, "one", "two"]
    await other.dispose()


async def test_a_second_engine_first_used_in_a_savepoint(engine: AsyncEngine, world: World) -> None:
    other = create_engine(world.app, pool_size=1, max_overflow=0)
    binds: dict[Any, Any] = {Base: engine, BaseWithAll: other}
    async with AsyncSession(binds=binds) as session, tenant_session(session, world.a):
        await session.scalars(select(Invoice))
        async with session.begin_nested(), session.begin_nested():
            notes = await session.scalars(select(InvoiceWithAll.note))
            assert sorted(notes) == ["a1", "a2"]
    await other.dispose()


async def test_a_scoped_session_registry_is_unwrapped(engine: AsyncEngine, world: World) -> None:
    registry = async_scoped_session(create_sessionmaker(engine), scopefunc=lambda: 1)
    async with tenant_session(registry, world.a) as scoped:
        assert scoped is registry
        assert await visible(registry) == ["a1", "a2"]
        assert current_tenant(registry) == world.a
    await registry.remove()


@pytest.mark.parametrize("thing", [None, object(), Session(), "session"])
async def test_anything_else_is_a_type_error(thing: Any) -> None:
    with pytest.raises(TypeError, match="AsyncSession"):
        async with tenant_session(thing, uuid4()):
            pytest.fail("entered")
    with pytest.raises(TypeError, match="AsyncConnection"):
        async with tenant_connection(thing, uuid4()):
            pytest.fail("entered")
    with pytest.raises(TypeError, match="AsyncSession"):
        current_tenant(thing)


async def test_a_test_double_is_sent_the_statement_once() -> None:
    """The contract for users' unit tests: this mock is what they put in place of a session."""
    double = MagicMock(spec=AsyncSession)
    double.execute = AsyncMock()
    async with tenant_session(double, ID.upper()) as scoped:
        assert scoped is double
        double.execute.assert_awaited_once()
        assert f"SET LOCAL app.current_tenant = '{ID}'" in str(double.execute.await_args.args[0])
    double.execute.assert_awaited_once()


async def test_a_transparent_proxy_of_a_session_is_no_test_double(
    session: AsyncSession, world: World
) -> None:
    class Proxy:
        @property  # type: ignore[misc]
        def __class__(self) -> type[AsyncSession]:  # type: ignore[override]
            return AsyncSession

        def __getattr__(self, name: str) -> Any:
            return getattr(session, name)

    proxy: Any = Proxy()
    async with tenant_session(proxy, world.a):
        assert await visible(session) == ["a1", "a2"]
        await session.commit()
        assert await visible(session) == ["a1", "a2"]
    assert await visible(session) == []


async def test_a_test_double_is_in_no_scope() -> None:
    assert current_tenant(MagicMock(spec=AsyncSession)) is None


async def test_what_was_given_by_mistake_is_not_shown() -> None:
    url: Any = "postgresql://me:sesame@127.0.0.1/x"
    for call in (
        lambda: tenant_session(url, uuid4()),
        lambda: tenant_connection(url, uuid4()),
        lambda: current_tenant(url),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert "sesame" not in str(caught.value)
