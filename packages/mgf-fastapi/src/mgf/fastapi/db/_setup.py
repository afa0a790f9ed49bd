"""The database that an application has for the length of its lifespan."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import create_engine, create_sessionmaker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from fastapi import FastAPI
    from sqlalchemy import URL


def setup_db(
    app: FastAPI,
    *,
    database_url: str | URL,
    require_tenant: bool = False,
    **engine_kwargs: Any,
) -> AbstractAsyncContextManager[None]:
    """Give an application a database for the length of its lifespan.

    Sets ``app.state.mgf_db_engine`` and ``app.state.mgf_db_sessionmaker``; at the end, also
    after an error, disposes the engine and removes both. Nothing is connected before the first
    use. It can be entered again afterwards. ::

        @asynccontextmanager
        async def lifespan(app):
            async with setup_db(app, database_url=settings.database_url):
                yield

    Args:
        app: the application.
        database_url: as for `mgf.sqlalchemy.create_engine`.
        require_tenant: as for `mgf.sqlalchemy.create_sessionmaker`.
        engine_kwargs: go to `mgf.sqlalchemy.create_engine`.

    Raises:
        AppConfigError: the application has a database already, or the URL cannot work.
    """
    return _setup_db(app, database_url, require_tenant, engine_kwargs)


@asynccontextmanager
async def _setup_db(
    app: FastAPI, database_url: str | URL, require_tenant: bool, engine_kwargs: dict[str, Any]
) -> AsyncGenerator[None]:
    if hasattr(app.state, "mgf_db_engine"):
        raise AppConfigError(
            f"{app!r} has a database already: setup_db() is active; enter it once, and again "
            "only after its block has ended"
        )
    engine = create_engine(database_url, **engine_kwargs)
    sessionmaker = create_sessionmaker(engine, require_tenant=require_tenant)
    app.state.mgf_db_engine = engine
    app.state.mgf_db_sessionmaker = sessionmaker
    try:
        yield
    finally:
        for name in ("mgf_db_engine", "mgf_db_sessionmaker"):
            # Whoever removed it before: the engine is disposed all the same.
            with suppress(AttributeError, KeyError):
                delattr(app.state, name)
        await engine.dispose()
