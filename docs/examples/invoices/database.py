"""The tour's own dealings with the database: set it up, look at it as superuser, and attack it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from models import ROLE, Base
from sqlalchemy import NullPool, text

from mgf.sqlalchemy import create_engine
from mgf.sqlalchemy.audit import audit, probe
from mgf.sqlalchemy.rls import ensure_app_role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import URL, Row

    from mgf.sqlalchemy.audit import Report

WHO_AM_I = """
    SELECT rolname, rolsuper, rolbypassrls, relowner = pg_roles.oid AS owns,
           row_security_active('invoice') AS held
    FROM pg_roles, pg_class
    WHERE rolname = current_user AND pg_class.oid = 'invoice'::regclass
"""
EVERYTHING = "SELECT id, tenant_id, customer, amount FROM invoice ORDER BY id"


def prepare(owner: URL, password: str) -> URL:
    """Migrate the database and return the URL of the role that the service connects as.

    Args:
        owner: a superuser's URL.
        password: what the role shall log in with.
    """
    config = Config(Path(__file__).with_name("alembic.ini"))
    config.attributes["database_url"] = owner
    command.upgrade(config, "head")
    asyncio.run(_set_password(owner, password))
    return owner.set(username=ROLE, password=password)


async def _set_password(owner: URL, password: str) -> None:
    engine = create_engine(owner, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(ensure_app_role, ROLE, password=password)


def examine(app: URL) -> Report:
    """Read in the catalogs what protects the database, and attack it with the service's login."""
    return asyncio.run(_examine(app))


async def _examine(app: URL) -> Report:
    engine = create_engine(app, poolclass=NullPool)
    old = {"server-cve-floor": "the tour throws its server away"}
    audited = await audit(engine, metadata=Base.metadata, ignore=old)
    return audited.merged(await probe(engine, metadata=Base.metadata))


def run_sql(url: URL, sql: str) -> Sequence[Row[Any]]:
    """Run one statement in a transaction of its own and return its rows, if it has any."""
    return asyncio.run(_run_sql(url, sql))


async def _run_sql(url: URL, sql: str) -> Sequence[Row[Any]]:
    engine = create_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        result = await connection.execute(text(sql))
        return result.all() if result.returns_rows else []
