"""A service for several tenants.

Serve it with ``uvicorn --factory app:create_app``. It reads its `settings` from the environment.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import invoices
import jobs
from fastapi import FastAPI
from models import Base
from settings import Settings

from mgf.alembic import is_at_head
from mgf.fastapi.db import (
    CancelOnDisconnect,
    health_router,
    install_error_handlers,
    problem_responses,
    setup_db,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

ALEMBIC_INI = Path(__file__).with_name("alembic.ini")


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application, with settings from the environment unless some are given."""
    settings = settings or Settings.model_validate({})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[Mapping[str, Any]]:
        async with setup_db(
            app,
            database_url=settings.database_url.get_secret_value(),
            require_tenant=True,
            wait=settings.database_wait,
            require_rls=Base.metadata,
            check_migrations=are_at_head,
        ) as state:
            yield state

    app = FastAPI(title="Invoices", lifespan=lifespan)
    app.state.settings = settings
    app.add_middleware(CancelOnDisconnect)
    install_error_handlers(app)
    app.include_router(health_router())
    for router in (invoices.router, jobs.router):
        # What any request may be answered with, for OpenAPI.
        app.include_router(router, responses=problem_responses(tenants=True))
    return app


async def are_at_head(connection: AsyncConnection) -> bool:
    return await is_at_head(ALEMBIC_INI, connection=connection)
