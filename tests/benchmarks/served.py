"""The service that serve.py drives, in a process of its own.

    python served.py URL

It listens on a port that was free, says which on its first line of output, and ends with its
standard input.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import uvicorn
from fastapi import Depends, FastAPI, Header, Request
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from mgf.fastapi.db import (
    CancelOnDisconnect,
    committing,
    health_router,
    install_error_handlers,
    pool_figures,
    scoped_session,
    setup_db,
    tenant_from_header,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

# Few enough that 200 clients have to wait for each other, and some in vain.
POOL = {"pool_size": 10, "max_overflow": 5, "pool_timeout": 5}

# No filter on the tenant: what it returns is the policy's doing alone.
READ = text("SELECT tenant_id, note FROM invoice ORDER BY id DESC LIMIT 20")
READ_PLAIN = text(
    "SELECT tenant_id, note FROM plain_invoice WHERE tenant_id = :tenant ORDER BY id DESC LIMIT 20"
)
WRITE = text("INSERT INTO invoice (note) VALUES (:note)")
SLOW = text("SELECT pg_sleep(3600)")

Tenant = Annotated[UUID, Header(alias="X-Tenant-Id")]

get_tenant_session = scoped_session(tenant_from_header())
Scoped = Annotated[AsyncSession, Depends(get_tenant_session, scope="function")]
ScopedTransaction = Annotated[
    AsyncSession, Depends(committing(get_tenant_session), scope="function")
]


async def plain(request: Request) -> AsyncGenerator[AsyncSession]:
    """What services write by hand."""
    async with request.app.state.plain_sessionmaker() as session:
        yield session


Plain = Annotated[AsyncSession, Depends(plain, scope="function")]


def make_app(url: str) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        options: dict[str, Any] = POOL
        engine = create_async_engine(url, **options)
        app.state.plain_sessionmaker = async_sessionmaker(engine, expire_on_commit=False)
        async with setup_db(app, database_url=url, **options):
            yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(CancelOnDisconnect)
    app.include_router(health_router())
    install_error_handlers(app)

    @app.get("/notes")
    async def read(session: Scoped) -> list[tuple[UUID, str]]:
        return [(row.tenant_id, row.note) for row in await session.execute(READ)]

    @app.get("/plain")
    async def read_plain(session: Plain, tenant: Tenant) -> list[tuple[UUID, str]]:
        rows = await session.execute(READ_PLAIN, {"tenant": tenant})
        return [(row.tenant_id, row.note) for row in rows]

    @app.post("/notes/{note}", status_code=201)
    async def write(note: str, session: ScopedTransaction) -> None:
        await session.execute(WRITE, {"note": note})

    @app.get("/slow")
    async def slow(session: Scoped) -> None:
        await session.execute(SLOW)

    @app.get("/figures")
    async def figures(request: Request) -> dict[str, float]:
        return {"processor": time.process_time(), **pool_figures(request.app.state.mgf_db_engine)}

    return app


async def main(url: str) -> None:
    logging.disable(logging.CRITICAL)  # each broken connection is told of, by several libraries
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        config = uvicorn.Config(make_app(url), access_log=False, timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        print(listener.getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
        server.should_exit = True
        await serving


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
