"""The tour's own dealings with the database: set it up, ask it as superuser or as the service."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
from sqlalchemy import NullPool, text

from mgf.alembic import upgrade
from mgf.sqlalchemy import create_engine, create_sessionmaker, tenant_session
from mgf.sqlalchemy.rls import ensure_app_role

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import URL, Row

SERVICE = Path(models.__file__).parent
WHO_AM_I = """
    SELECT rolname, rolsuper, rolbypassrls, relowner = pg_roles.oid AS owns,
           row_security_active('invoice') AS held
    FROM pg_roles, pg_class
    WHERE rolname = current_user AND pg_class.oid = 'invoice'::regclass
"""
EVERYTHING = "SELECT id, tenant_id, customer, amount, late_fee FROM invoice ORDER BY id"


def prepare(owner: URL, password: str) -> URL:
    """Migrate the database and return the URL of the role that the service connects as.

    Args:
        owner: a superuser's URL.
        password: what the role shall log in with.
    """
    asyncio.run(_prepare(owner, password))
    return owner.set(username=models.ROLE, password=password)


async def _prepare(owner: URL, password: str) -> None:
    await upgrade(SERVICE / "alembic.ini", database_url=owner)
    engine = create_engine(owner, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(ensure_app_role, models.ROLE, password=password)


def run_sql(
    url: URL, sql: str, tenant: UUID | None = None, *, require_tenant: bool = False
) -> Sequence[Row[Any]]:
    """Run one statement in a transaction of its own and return its rows, if it has any.

    Args:
        url: the database, with the role to run it as.
        sql: the statement.
        tenant: in whose scope to run it; in none by default.
        require_tenant: as for `mgf.sqlalchemy.create_sessionmaker`.
    """
    return asyncio.run(_run_sql(url, sql, tenant, require_tenant))


async def _run_sql(
    url: URL, sql: str, tenant: UUID | None, require_tenant: bool
) -> Sequence[Row[Any]]:
    engine = create_engine(url, poolclass=NullPool)
    sessionmaker = create_sessionmaker(engine, require_tenant=require_tenant)
    async with sessionmaker() as session, AsyncExitStack() as scope:
        if tenant is not None:
            await scope.enter_async_context(tenant_session(session, tenant))
        result = await (await session.connection()).execute(text(sql))
        rows: Sequence[Row[Any]] = result.all() if result.returns_rows else []
        await session.commit()
    return rows
