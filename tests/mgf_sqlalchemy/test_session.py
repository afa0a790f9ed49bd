from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from mgf.sqlalchemy import create_engine, create_sessionmaker, tenant_scope

if TYPE_CHECKING:
    from sqlalchemy import URL


class MySession(AsyncSession):
    pass


async def test_the_defaults_are_those_of_the_contract() -> None:
    sessionmaker = create_sessionmaker(create_engine("sqlite://"))
    async with sessionmaker() as session:
        assert type(session) is AsyncSession
        assert session.sync_session.expire_on_commit is False


async def test_extra_goes_to_the_sessionmaker() -> None:
    sessionmaker = create_sessionmaker(
        create_engine("sqlite://"),
        expire_on_commit=True,
        autoflush=False,
        info={"mine": 1},
        class_=MySession,
    )
    async with sessionmaker() as session:
        assert type(session) is MySession
        assert session.info["mine"] == 1
        assert session.autoflush is False
        assert session.sync_session.expire_on_commit is True


async def test_tenant_scope_closes_its_session(postgres_url: URL) -> None:
    engine = create_engine(postgres_url, pool_size=1, max_overflow=0)
    sessionmaker = create_sessionmaker(engine)
    async with tenant_scope(sessionmaker, "6f1e7f3c-32a1-4a7e-9d0e-0a4c2f6b8d11") as session:
        await session.execute(text("SELECT 1"))
    assert not session.in_transaction()
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
    await engine.dispose()
