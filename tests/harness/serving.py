"""Applications behind a real uvicorn, on real sockets."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from fastapi import FastAPI


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
