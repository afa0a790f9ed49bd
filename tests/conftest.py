"""Servers and databases for every test, real ones."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from harness.servers import bindirs, name_of, new_database
from mgf.sqlalchemy.testing import TemporaryPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL


# A shell that starts this in the background makes it, and all that it starts, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Off by default, and what PREPARE TRANSACTION needs.
SETTINGS = {"max_prepared_transactions": "10"}


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[URL]:
    """The superuser's URL, without a driver, of a server that this process started."""
    with TemporaryPostgres(settings=SETTINGS) as server:
        yield server.url


@pytest.fixture(scope="session", params=bindirs(), ids=name_of)
def any_postgres_url(request: pytest.FixtureRequest) -> Iterator[URL]:
    """As `postgres_url`, once for each PostgreSQL of this machine."""
    if request.param is None:
        yield request.getfixturevalue("postgres_url")
        return
    with TemporaryPostgres(bindir=request.param, settings=SETTINGS) as server:
        yield server.url


@pytest.fixture
async def database(postgres_url: URL) -> URL:
    """The superuser's URL of an empty database that no other test has."""
    return await new_database(postgres_url)


def make_database(server: URL) -> URL:
    return asyncio.run(new_database(server))
