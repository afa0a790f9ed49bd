"""Without these, every other test of this folder would pass whatever the library does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from harness.tenants import visible

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from harness.tenants import World


@pytest.mark.parametrize("table", ["invoice", "line"])
async def test_row_security_is_active_for_the_role_that_is_tested(
    session: AsyncSession, table: str
) -> None:
    assert await session.scalar(text(f"SELECT row_security_active('{table}')")) is True


async def test_the_role_is_neither_superuser_nor_may_it_bypass(session: AsyncSession) -> None:
    role = await session.execute(
        text("SELECT rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user")
    )
    assert role.one() == ("app", False, False)


async def test_both_tenants_have_rows(world: World) -> None:
    assert await world.notes(world.a) == ["a1", "a2"]
    assert await world.notes(world.b) == ["b1", "b2"]


async def test_without_a_scope_nothing_is_visible(session: AsyncSession, world: World) -> None:
    assert await visible(session) == []
