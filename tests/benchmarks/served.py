"""The example application that serve.py drives, in a process of its own.

    python served.py URL KEY

Beside its own routes there are those that only the measuring needs. It listens on a port that was
free, says which on its first line of output, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, Request
from sqlalchemy import column, make_url, select, table, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import aliased

sys.path += [str(Path(__file__).parents[2] / "docs/examples" / one) for one in ("invoices", "tour")]

from app import create_app
from invoices import InvoiceOut, InvoicePage
from models import Invoice
from tenants import TenantDep, TenantSessionDep  # noqa: TC002 - FastAPI reads them
from tour import make_settings

from mgf.fastapi.db import pool_figures

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

# As `setup_db` makes it unless it is told otherwise: clients have to wait for each other.
POOL = {"pool_size": 5, "max_overflow": 10}
SLOW = text("SELECT pg_sleep(3600)")
# The same rows in a table that no policy protects.
columns: Any = Invoice.__table__.columns
unprotected = table("plain_invoice", *(column(one.name, one.type) for one in columns))
PlainInvoice = aliased(Invoice, unprotected, adapt_on_names=True)

router = APIRouter()


async def get_plain_session(request: Request) -> AsyncGenerator[AsyncSession]:
    """What services write by hand."""
    async with request.app.state.plain_sessionmaker() as session:
        yield session


PlainSessionDep = Annotated[AsyncSession, Depends(get_plain_session, scope="function")]


@router.get("/plain")
async def list_by_hand(
    session: PlainSessionDep, tenant: TenantDep, after: int = 0, limit: int = 50
) -> InvoicePage:
    """The example's page of invoices, with a filter on the tenant in the query."""
    some = select(PlainInvoice).where(PlainInvoice.tenant_id == tenant, PlainInvoice.id > after)
    rows = await session.scalars(some.order_by(PlainInvoice.id).limit(limit + 1))
    page = [InvoiceOut.model_validate(invoice) for invoice in rows]
    return InvoicePage(invoices=page[:limit], next=None)


@router.get("/slow")
async def be_slow(session: TenantSessionDep) -> None:
    await session.execute(SLOW)


@router.get("/figures")
async def tell_figures(request: Request) -> dict[str, float]:
    return {"processor": time.process_time(), **pool_figures(request.app.state.mgf_db_engine)}


async def main(url: str, key: str) -> None:
    logging.disable(logging.CRITICAL)  # each broken connection is told of, by several libraries
    app = create_app(make_settings(make_url(url), key))
    options: dict[str, Any] = POOL
    engine = create_async_engine(url, **options)
    app.state.plain_sessionmaker = async_sessionmaker(engine, expire_on_commit=False)
    app.include_router(router)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        config = uvicorn.Config(app, access_log=False, timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        print(listener.getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
        server.should_exit = True
        await serving
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
