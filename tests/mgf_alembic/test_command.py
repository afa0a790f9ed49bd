"""The command `alembic`, in a process of its own where every warning is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import URL

from harness.migrations import Project, open_connections, rows

if TYPE_CHECKING:
    from pathlib import Path

ENV = """
import os
from sqlalchemy import Column, Integer, MetaData, String, Table
from mgf.alembic import configure_env

metadata = MetaData()
Table("account", metadata, Column("id", Integer, primary_key=True), Column("name", String(30)))
configure_env(database_url=os.environ["DATABASE_URL"], target_metadata=metadata)
"""


@pytest.fixture(params=["postgresql+asyncpg", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    if request.param.startswith("sqlite"):
        return URL.create(request.param, database=str(tmp_path / "a.db"))
    database: URL = request.getfixturevalue("database")
    return database.set(drivername=request.param)


@pytest.fixture
def revised(project: Project, url: URL) -> Project:
    """A project whose one revision was written by autogenerate."""
    project.write("migrations/env.py", ENV)
    project.alembic("revision", "--autogenerate", "--rev-id", "r1", database_url=url)
    return project


def test_revision_autogenerate_writes_what_the_models_have(revised: Project) -> None:
    (script,) = (revised.folder / "migrations" / "versions").glob("*.py")

    assert "sa.Column('name', sa.String(length=30), nullable=True)" in script.read_text()


def test_upgrade_current_and_downgrade(revised: Project, url: URL) -> None:
    revised.alembic("upgrade", "head", database_url=url)
    assert rows(url, "SELECT name FROM account") == []
    assert "r1 (head)" in revised.alembic("current", database_url=url)

    revised.alembic("downgrade", "base", database_url=url)
    assert rows(url, "SELECT version_num FROM alembic_version") == []
    assert url.get_backend_name() == "sqlite" or open_connections(url) == []


def test_check_finds_nothing_new_after_the_upgrade(revised: Project, url: URL) -> None:
    revised.alembic("upgrade", "head", database_url=url)

    assert "No new upgrade operations detected" in revised.alembic("check", database_url=url)


def test_sql_writes_the_script_and_connects_to_nothing(revised: Project, url: URL) -> None:
    script = revised.alembic(
        "upgrade", "head", "--sql", database_url=url.set(database="/no/such/place")
    )

    assert "CREATE TABLE account" in script
    assert "INSERT INTO alembic_version (version_num) VALUES ('r1')" in script
