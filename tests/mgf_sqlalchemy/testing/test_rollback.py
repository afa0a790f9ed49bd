"""`rolled_back`: what is committed in it is gone afterwards, and tenants are kept apart in it."""

from __future__ import annotations

from asyncio import gather
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import NullPool, func, select, text
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import create_engine, create_sessionmaker, tenant_scope, tenant_session
from mgf.sqlalchemy.errors import TenantScopeError, sqlstate
from mgf.sqlalchemy.rls import TenantMixin, protect_metadata
from mgf.sqlalchemy.testing import rolled_back
from mgf.sqlalchemy.testing._database import make_template
from mgf.sqlalchemy.testing.pytest_plugin import mgf_tenants

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from uuid import UUID

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

    from mgf.sqlalchemy.testing import TemporaryDatabase, TemporaryPostgres

    Maker = async_sessionmaker[AsyncSession]
    Tenants = tuple[UUID, UUID]

__all__ = ["mgf_tenants"]


class Base(DeclarativeBase):
    pass


class Note(TenantMixin, Base):
    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


protect_metadata(Base.metadata, role="rolled_back_app")


async def create_schema(owner_url: URL) -> None:
    async with create_engine(owner_url, poolclass=NullPool).begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


@pytest.fixture(scope="module")
def database(server: TemporaryPostgres) -> Iterator[TemporaryDatabase]:
    with make_template(
        server.url,
        role="rolled_back_app",
        is_shared=True,
        create_schema=create_schema,
        metadata=Base.metadata,
    ) as template:
        yield template.urls


@pytest.fixture
async def engine(database: TemporaryDatabase) -> AsyncGenerator[AsyncEngine]:
    engine = create_engine(database.app_url, pool_size=1, max_overflow=0)
    yield engine
    await engine.dispose()


@pytest.fixture
async def maker(engine: AsyncEngine, database: TemporaryDatabase) -> AsyncGenerator[Maker]:
    """A sessionmaker whose work is rolled back; afterwards there has to be nothing."""
    maker = create_sessionmaker(engine)
    async with rolled_back(maker):
        yield maker
    async with create_engine(database.owner_url, poolclass=NullPool).connect() as owner:
        assert (await owner.execute(select(func.count(Note.id)))).scalar() == 0


async def write(maker: Maker, tenant: UUID, note: str) -> None:
    async with tenant_scope(maker, tenant) as session:
        session.add(Note(text=note))
        await session.commit()


async def notes(session: AsyncSession) -> list[str]:
    return list(await session.scalars(select(Note.text).order_by(Note.id)))


async def read(maker: Maker, tenant: UUID) -> list[str]:
    async with tenant_scope(maker, tenant) as session:
        return await notes(session)


async def test_sessions_of_one_after_the_other_tenant_see_their_own(
    maker: Maker, mgf_tenants: Tenants
) -> None:
    a, b = mgf_tenants
    await write(maker, a, "a")
    await write(maker, b, "b")

    assert await read(maker, a) == ["a"]
    assert await read(maker, b) == ["b"]


async def test_without_a_scope_there_is_nothing(maker: Maker, mgf_tenants: Tenants) -> None:
    await write(maker, mgf_tenants[0], "a")
    async with maker() as session:
        assert await notes(session) == []


async def test_no_row_of_another_tenant_is_written(maker: Maker, mgf_tenants: Tenants) -> None:
    a, b = mgf_tenants
    async with tenant_scope(maker, a) as session:
        session.add(Note(tenant_id=b, text="into b"))
        with pytest.raises(DBAPIError) as refused:
            await session.commit()
    assert sqlstate(refused.value) == "42501"
    assert await read(maker, b) == []


async def test_a_rollback_undoes_what_was_done_since_the_last_commit(
    maker: Maker, mgf_tenants: Tenants
) -> None:
    async with tenant_scope(maker, mgf_tenants[0]) as session:
        session.add(Note(text="kept"))
        await session.commit()
        session.add(Note(text="undone"))
        await session.flush()
        await session.rollback()

        assert await notes(session) == ["kept"]


async def test_the_tenant_is_in_force_after_commit_rollback_and_savepoints(
    maker: Maker, mgf_tenants: Tenants
) -> None:
    async with tenant_scope(maker, mgf_tenants[0]) as session:
        session.add(Note(text="a"))
        await session.commit()
        assert await notes(session) == ["a"]
        await session.rollback()
        assert await notes(session) == ["a"]
        async with session.begin_nested() as savepoint:
            session.add(Note(text="undone"))
            await session.flush()
            await savepoint.rollback()
        assert await notes(session) == ["a"]


async def test_scopes_nest_on_one_session_and_keep_their_objects_apart(
    maker: Maker, mgf_tenants: Tenants
) -> None:
    a, b = mgf_tenants
    async with maker() as session, tenant_session(session, a):
        note = Note(text="a")
        session.add(note)
        await session.commit()
        async with tenant_session(session, b):
            assert await session.get(Note, note.id) is None
        assert await session.get(Note, note.id) is note
        assert await notes(session) == ["a"]


async def test_sessions_of_the_same_tenant_may_be_open_together(
    maker: Maker, mgf_tenants: Tenants
) -> None:
    async with tenant_scope(maker, mgf_tenants[0]) as outer:
        outer.add(Note(text="outer"))
        await outer.commit()
        await write(maker, mgf_tenants[0], "inner")

        assert await notes(outer) == ["outer", "inner"]


async def test_sessions_of_different_tenants_take_turns(maker: Maker, mgf_tenants: Tenants) -> None:
    a, b = mgf_tenants
    async with tenant_scope(maker, a) as session:
        assert await notes(session) == []
        with pytest.raises(TenantScopeError, match="shared with a session"):
            await read(maker, b)
    async with maker() as session:
        async with tenant_session(session, a):
            assert await notes(session) == []
            await session.commit()
        assert await read(maker, b) == []


def told(error: BaseException) -> bool:
    return any("on one connection" in note for note in getattr(error, "__notes__", []))


async def test_an_error_of_sessions_that_do_not_take_turns_says_why(
    maker: Maker, mgf_tenants: Tenants
) -> None:
    a, b = mgf_tenants
    async with tenant_scope(maker, a) as session:
        assert await notes(session) == []
        with pytest.raises(TenantScopeError) as refused:
            await read(maker, b)
    assert told(refused.value)


@pytest.mark.filterwarnings("ignore:nested transaction already deassociated")
async def test_an_error_of_transactions_that_do_not_nest_says_why(
    maker: Maker, mgf_tenants: Tenants
) -> None:
    with pytest.raises(DBAPIError) as refused:
        async with tenant_scope(maker, mgf_tenants[0]) as one:
            assert await notes(one) == []
            async with tenant_scope(maker, mgf_tenants[0]) as other:
                assert await notes(other) == []
                await one.commit()
    assert sqlstate(refused.value) == "3B001"
    assert told(refused.value)


async def test_an_error_of_statements_at_the_same_time_says_why(
    maker: Maker, mgf_tenants: Tenants
) -> None:
    both = (read(maker, mgf_tenants[0]), read(maker, mgf_tenants[0]))
    errors = [one for one in await gather(*both, return_exceptions=True) if one]
    assert isinstance(errors[0], InterfaceError)
    assert told(errors[0])


async def test_other_errors_get_no_note(maker: Maker) -> None:
    async with maker() as session:
        with pytest.raises(DBAPIError) as failed:
            await session.execute(text("SELECT 1 / 0"))
    assert not told(failed.value)


async def test_a_session_that_is_left_open_does_not_matter(
    engine: AsyncEngine, mgf_tenants: Tenants
) -> None:
    maker = create_sessionmaker(engine)
    async with rolled_back(maker):
        left = maker()
        await tenant_session(left, mgf_tenants[0]).__aenter__()
        left.add(Note(text="a"))
        await left.flush()

    assert await read(maker, mgf_tenants[0]) == []  # on the only connection there is
    await left.close()


async def test_require_tenant_is_kept(engine: AsyncEngine, mgf_tenants: Tenants) -> None:
    maker = create_sessionmaker(engine, require_tenant=True)
    async with rolled_back(maker):
        await write(maker, mgf_tenants[0], "a")
        assert await read(maker, mgf_tenants[0]) == ["a"]
        with pytest.raises(DBAPIError) as refused:
            async with maker() as session:
                await notes(session)
        assert sqlstate(refused.value) == "42501"
        assert await read(maker, mgf_tenants[0]) == ["a"]


@pytest.mark.parametrize("error", [None, RuntimeError])
async def test_afterwards_the_sessionmaker_is_as_it_was(
    engine: AsyncEngine, error: type[Exception] | None
) -> None:
    maker = create_sessionmaker(engine, info={"mine": True})
    before = dict(maker.kw)
    if error is None:
        async with rolled_back(maker):
            assert maker.kw != before
    else:
        with pytest.raises(error):
            async with rolled_back(maker):
                raise error
    assert maker.kw == before


async def test_the_connection_is_the_one_of_the_sessions(engine: AsyncEngine) -> None:
    maker = create_sessionmaker(engine)
    own = text("SELECT pg_backend_pid()")
    async with rolled_back(maker) as connection, maker() as session:
        assert await session.scalar(own) == (await connection.execute(own)).scalar()


@pytest.mark.parametrize("has_binds", [False, True])
async def test_a_sessionmaker_without_an_engine_for_all_is_refused(
    engine: AsyncEngine, has_binds: bool
) -> None:
    maker = async_sessionmaker(engine, binds={Note: engine}) if has_binds else async_sessionmaker()
    with pytest.raises(AppConfigError, match="all on one AsyncEngine"):
        async with rolled_back(maker):
            pytest.fail("entered")
