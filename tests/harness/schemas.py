"""Databases whose tables are made from models, and the role that policies hold there."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from harness.tenants import APP_PASSWORD, SCHEMA
from mgf.sqlalchemy import create_engine, create_sessionmaker, tenant_scope
from mgf.sqlalchemy.rls import tenant_default

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

# Makes the role "app", unless the server has it.
ROLE = SCHEMA[0]


def key() -> sa.Column[Any]:
    return sa.Column("id", sa.Integer, primary_key=True)


def tenant_id(name: str = "tenant_id", **options: Any) -> sa.Column[Any]:
    settings: dict[str, Any] = {"nullable": False, "server_default": tenant_default()} | options
    return sa.Column(name, sa.Uuid, **settings)


def refers_to(target: Any, name: str, **options: Any) -> sa.Column[Any]:
    settings: dict[str, Any] = {"nullable": False} | options
    return sa.Column(name, sa.ForeignKey(target), **settings)


class Database:
    """One database: its superuser's connection, and sessions of the role "app"."""

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self.engine = sa.create_engine(url.set(drivername="postgresql+psycopg"))

    @cached_property
    def owner(self) -> sa.Connection:
        """A connection of the superuser; transactions begin by themselves."""
        return self.engine.connect()

    @cached_property
    def app(self) -> AsyncEngine:
        """An engine of the role "app"."""
        return create_engine(self.url.set(username="app", password=APP_PASSWORD))

    def create(self, metadata: sa.MetaData) -> None:
        """Create all tables, and commit."""
        metadata.create_all(self.owner)
        self.owner.commit()

    def run(self, *statements: str) -> None:
        """Run statements as superuser, and commit."""
        for statement in statements:
            self.owner.exec_driver_sql(statement.replace("%", "%%"))
        self.owner.commit()

    def ask(self, sql: str, **parameters: Any) -> Any:
        """Return the first value that the superuser gets."""
        value = self.owner.execute(sa.text(sql), parameters).scalar()
        self.owner.rollback()
        return value

    @asynccontextmanager
    async def scope(self, tenant: UUID, *tables: str) -> AsyncGenerator[AsyncSession]:
        """Open a session of the role "app" in a tenant's scope, where policies hold it."""
        async with tenant_scope(create_sessionmaker(self.app), tenant) as session:
            for table in tables:
                active = sa.select(sa.func.row_security_active(table))
                assert await session.scalar(active) is True, table
            yield session

    async def dispose(self) -> None:
        if "owner" in vars(self):
            self.owner.close()
        self.engine.dispose()
        if "app" in vars(self):
            await self.app.dispose()
