"""The modules of the example import each other by their bare names, as an application's do."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest
from architecture.workspace import ROOT

from harness.servers import new_database

sys.path += [str(ROOT / "docs/examples" / folder) for folder in ("invoices", "tour")]

if TYPE_CHECKING:
    from sqlalchemy import URL


@pytest.fixture
def owner(postgres_url: URL) -> URL:
    """The superuser's URL of a database for the example."""
    return asyncio.run(new_database(postgres_url))


@pytest.fixture
def app(owner: URL) -> URL:
    """The URL that the example connects with, once its migrations have run there."""
    from database import prepare

    return prepare(owner, "example-password")
