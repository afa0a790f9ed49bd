"""What the database refuses, whatever the service may send one day."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models import Base

from mgf.sqlalchemy.testing import assert_isolated

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


async def test_no_attack_gets_at_another_tenants_rows(mgf_engine: AsyncEngine) -> None:
    await assert_isolated(mgf_engine, Base)
