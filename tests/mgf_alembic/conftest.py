"""An Alembic project for every test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.held import new_held_database
from harness.migrations import Project

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import URL


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
async def held(any_postgres_url: URL) -> URL:
    """The superuser's URL of a database whose migrator is held by policies, on each server."""
    return await new_held_database(any_postgres_url)
