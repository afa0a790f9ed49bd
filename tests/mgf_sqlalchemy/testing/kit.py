"""A small project whose tests use the fixtures, as pytester writes and runs it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqlalchemy import URL

MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from mgf.sqlalchemy.rls import TenantMixin, protect_metadata


class Base(DeclarativeBase):
    pass


class Note(TenantMixin, Base):
    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


protect_metadata(Base.metadata, role="kit_app")
"""

CONFTEST = """
import pytest
from kit_models import Base

pytest_plugins = ["mgf.sqlalchemy.testing.pytest_plugin"]


@pytest.fixture(scope="session")
def mgf_metadata():
    return Base.metadata
"""

# What the code under test of every project does.
SERVICE = """
from kit_models import Note
from sqlalchemy import select

from mgf.sqlalchemy import tenant_scope


async def write(sessionmaker, tenant, text):
    async with tenant_scope(sessionmaker, tenant) as session:
        session.add(Note(text=text))
        await session.commit()


async def read(sessionmaker, tenant):
    async with tenant_scope(sessionmaker, tenant) as session:
        return list(await session.scalars(select(Note.text)))
"""

TESTS = """
import pytest
from kit_service import read, write
from sqlalchemy import text

from mgf.sqlalchemy import tenant_connection

ROWS = text("SELECT count(*) FROM note")


@pytest.mark.parametrize("time", [1, 2])
async def test_what_is_committed_is_rolled_back(
    mgf_sessionmaker, mgf_session, mgf_connection, mgf_tenants, time
):
    a, b = mgf_tenants
    await write(mgf_sessionmaker, a, "of a")
    await write(mgf_sessionmaker, b, "of b")
    assert await read(mgf_sessionmaker, a) == ["of a"]
    assert await read(mgf_sessionmaker, b) == ["of b"]
    assert await mgf_session.scalar(text("SELECT row_security_active('note')")) is True
    await mgf_session.commit()
    async with tenant_connection(mgf_connection, a):
        assert (await mgf_connection.execute(ROWS)).scalar() == 1


@pytest.mark.parametrize("time", [1, 2])
async def test_what_is_committed_is_there_for_the_owner(
    mgf_committing_sessionmaker, mgf_engine, mgf_owner_engine, mgf_tenants, time
):
    a, b = mgf_tenants
    await write(mgf_committing_sessionmaker, a, "of a")
    await write(mgf_committing_sessionmaker, b, "of b")
    assert await read(mgf_committing_sessionmaker, a) == ["of a"]
    async with mgf_engine.connect() as connection:
        assert (await connection.execute(ROWS)).scalar() == 0
    async with mgf_owner_engine.connect() as connection:
        assert (await connection.execute(ROWS)).scalar() == 2
"""

STRICT = "asyncio_mode = strict\nasyncio_default_fixture_loop_scope = function\n"
AUTO = STRICT.replace("strict", "auto")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """The project, without tests; warnings are errors there."""
    pytester.makeini(f"[pytest]\nfilterwarnings = error\n{AUTO}")
    # Names that no other test has imported into this process.
    pytester.makepyfile(kit_models=MODELS, kit_service=SERVICE, conftest=CONFTEST)
    pytester.syspathinsert()
    # As in a process of its own: pytest warns of a plugin that was imported before.
    monkeypatch.delitem(sys.modules, "mgf.sqlalchemy.testing.pytest_plugin", raising=False)
    return pytester


def name_server(monkeypatch: pytest.MonkeyPatch, url: URL) -> None:
    monkeypatch.setenv("MGF_TEST_DATABASE_URL", url.render_as_string(hide_password=False))


def failures(result: pytest.RunResult) -> str:
    """Return what a run said, in one line: messages are broken where the terminal ends."""
    return " ".join(line.removeprefix("E ").strip() for line in result.outlines)
