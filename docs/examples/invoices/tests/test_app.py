"""The service starts where it can keep tenants apart, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.config import Config
from app import ALEMBIC_INI, create_app
from pydantic import SecretStr, ValidationError
from settings import Settings
from sqlalchemy import text

from mgf.fastapi.db import DatabaseNotReadyError
from mgf.sqlalchemy.audit import RlsNotActiveError

if TYPE_CHECKING:
    from httpx import AsyncClient
    from sqlalchemy.ext.asyncio import AsyncEngine

    from mgf.sqlalchemy.testing import TemporaryDatabase


async def start(settings: Settings) -> None:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        pass


async def test_it_is_ready_when_it_has_started(stranger: AsyncClient) -> None:
    assert (await stranger.get("/health/ready")).json() == {
        "status": "ok",
        "checks": {"database": "ok"},
    }


async def test_it_does_not_start_as_a_role_that_policies_do_not_hold(
    settings: Settings, mgf_database: TemporaryDatabase
) -> None:
    owner = SecretStr(mgf_database.owner_url.render_as_string(hide_password=False))

    with pytest.raises(RlsNotActiveError):
        await start(settings.model_copy(update={"database_url": owner}))


async def test_it_does_not_start_before_the_migrations_have_run(
    settings: Settings, mgf_owner_engine: AsyncEngine
) -> None:
    async with mgf_owner_engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = 'older'"))

    with pytest.raises(DatabaseNotReadyError, match="not at head"):
        await start(settings)


def test_the_migrations_make_what_the_models_say(mgf_database: TemporaryDatabase) -> None:
    config = Config(ALEMBIC_INI)
    config.attributes["database_url"] = mgf_database.owner_url

    command.check(config)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://invoices_app:secret@db/invoices")
    monkeypatch.setenv("TOKEN_KEY", "k" * 32)

    settings = Settings.model_validate({})

    assert settings.database_url.get_secret_value().endswith("@db/invoices")
    assert settings.token_algorithm == "RS256"
    assert "secret" not in repr(settings)


def test_what_is_missing_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("TOKEN_KEY", "too short")

    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({})

    assert "database_url" in str(refused.value)
    assert "token_key" in str(refused.value)
    assert "too short" not in str(refused.value)
