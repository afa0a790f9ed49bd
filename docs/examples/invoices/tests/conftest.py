"""The service on a real PostgreSQL, which its migrations have made, and a client of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from app import ALEMBIC_INI, create_app
from httpx import ASGITransport, AsyncClient
from models import Base
from pydantic import SecretStr
from settings import Settings

from mgf.alembic import upgrade

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine
    from uuid import UUID

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from fastapi import FastAPI
    from sqlalchemy import URL, MetaData

    from mgf.sqlalchemy.testing import TemporaryDatabase

# Its fixtures are the ones whose names begin with mgf_.
pytest_plugins = ["mgf.sqlalchemy.testing.pytest_plugin"]

KEY = "as long as a key for HS256 has to be"


@pytest.fixture(scope="session")
def mgf_metadata() -> MetaData:
    return Base.metadata


@pytest.fixture(scope="session")
def mgf_create_schema() -> Callable[[URL], Coroutine[Any, Any, None]]:
    async def migrate(owner: URL) -> None:
        await upgrade(ALEMBIC_INI, database_url=owner)

    return migrate


@pytest.fixture
def settings(mgf_database: TemporaryDatabase) -> Settings:
    return Settings(
        database_url=SecretStr(mgf_database.app_url.render_as_string(hide_password=False)),
        token_key=SecretStr(KEY),
        token_algorithm="HS256",
    )


@pytest.fixture
async def app(settings: Settings) -> AsyncGenerator[FastAPI]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
def make_token() -> Callable[..., str]:
    """What signs a token as the identity provider does, with claims added or replaced."""

    def make(key: str | RSAPrivateKey = KEY, algorithm: str = "HS256", **claims: object) -> str:
        soon = datetime.now(UTC) + timedelta(minutes=5)
        return jwt.encode({"aud": "invoices", "exp": soon, **claims}, key, algorithm)

    return make


@asynccontextmanager
async def connect(app: FastAPI, token: str | None = None) -> AsyncGenerator[AsyncClient]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with AsyncClient(
        transport=ASGITransport(app), base_url="http://invoices", headers=headers
    ) as client:
        yield client


@pytest.fixture
async def stranger(app: FastAPI) -> AsyncGenerator[AsyncClient]:
    """A client without a token."""
    async with connect(app) as client:
        yield client


@pytest.fixture
async def acme(
    app: FastAPI, make_token: Callable[..., str], mgf_tenants: tuple[UUID, UUID]
) -> AsyncGenerator[AsyncClient]:
    """A client of one tenant."""
    async with connect(app, make_token(tenant=str(mgf_tenants[0]))) as client:
        yield client


@pytest.fixture
async def bolt(
    app: FastAPI, make_token: Callable[..., str], mgf_tenants: tuple[UUID, UUID]
) -> AsyncGenerator[AsyncClient]:
    """A client of another."""
    async with connect(app, make_token(tenant=str(mgf_tenants[1]))) as client:
        yield client
