"""Applications behind a real uvicorn, on real sockets."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from fastapi import APIRouter, FastAPI

from mgf.fastapi.db import setup_db

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import URL
    from starlette.types import ASGIApp


def make_app(router: APIRouter, database_url: str | URL, **options: Any) -> FastAPI:
    """An application whose database is reached by one connection: who keeps it, stops the next."""
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1, **options}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[Any]:
        async with setup_db(app, database_url=database_url, **options) as state:
            yield state

    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    return app


@asynccontextmanager
async def asking(app: ASGIApp) -> AsyncGenerator[httpx.AsyncClient]:
    """Yield a client of an application that no server serves, and whose lifespan does not run."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@asynccontextmanager
async def listening(app: FastAPI, **options: Any) -> AsyncGenerator[int]:
    """Serve an application on a port that was free, and yield that port."""
    # Its own log configuration would keep records from pytest.
    options = {"log_level": "warning", "log_config": None, "ws": "websockets-sansio", **options}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, **options))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            # The socket listens already: the first request waits for the application.
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def serving(app: FastAPI, **options: Any) -> AsyncGenerator[httpx.AsyncClient]:
    """Serve an application, and yield a client of it."""
    async with (
        listening(app, **options) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        yield client
