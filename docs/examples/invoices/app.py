"""A service for several tenants. No query in it names the tenant: PostgreSQL sees to that.

Serve it with ``uvicorn --factory app:create_app``; DATABASE_URL names the database, with the role
that the migrations made for it.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import UUID  # noqa: TC003 - FastAPI and pydantic read it from the annotations

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from models import Invoice
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, select, update
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession

from mgf.fastapi.db import (
    Trouble,
    get_session,
    install_error_handlers,
    problem_responses,
    setup_db,
)
from mgf.sqlalchemy import tenant_session
from mgf.sqlalchemy.errors import sqlstate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import URL

T = TypeVar("T")
router = APIRouter()

# For OpenAPI, beside what FastAPI and mgf.fastapi.db describe themselves.
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "No invoice of the tenant"}}
REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body is no text"},
    403: {"description": "A policy refused the row"},
}


class InvoiceIn(BaseModel):
    customer: str
    amount: int = Field(ge=0, lt=10**12, description="in cents")
    # A real service would not ask. This one lets a caller try to write another tenant's row.
    tenant_id: UUID | None = None


class InvoiceOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    tenant_id: UUID
    customer: str
    amount: int


# The session ends before the response is sent, so that no connection waits for a slow client.
Session = Annotated[AsyncSession, Depends(get_session, scope="function")]


async def get_tenant_session(
    session: Session,
    # A real service takes the tenant from what it has verified, such as a signed token.
    x_tenant_id: Annotated[UUID, Header()],
) -> AsyncGenerator[AsyncSession]:
    async with tenant_session(session, x_tenant_id):
        yield session


TenantSession = Annotated[AsyncSession, Depends(get_tenant_session, scope="function")]


@router.get("/invoices", response_model=list[InvoiceOut])
async def list_invoices(session: TenantSession) -> list[Invoice]:
    return list(await session.scalars(select(Invoice).order_by(Invoice.id)))


@router.get("/invoices/{invoice_id}", response_model=InvoiceOut, responses=NOT_FOUND)
async def read_invoice(invoice_id: int, session: TenantSession) -> Invoice:
    return found(await session.get(Invoice, invoice_id))


@router.post("/invoices", response_model=InvoiceOut, status_code=201)
async def create_invoice(new: InvoiceIn, session: TenantSession) -> Invoice:
    invoice = Invoice(**new.model_dump(exclude_none=True))
    session.add(invoice)
    await session.commit()
    return invoice


@router.put("/invoices/{invoice_id}", response_model=InvoiceOut, responses=NOT_FOUND)
async def change_invoice(invoice_id: int, new: InvoiceIn, session: TenantSession) -> Invoice:
    change = update(Invoice).where(Invoice.id == invoice_id)
    values = new.model_dump(exclude_none=True)
    changed = await session.scalars(change.values(values).returning(Invoice))
    invoice = found(changed.one_or_none())
    await session.commit()
    return invoice


@router.delete("/invoices/{invoice_id}", status_code=204, responses=NOT_FOUND)
async def delete_invoice(invoice_id: int, session: TenantSession) -> None:
    removal = delete(Invoice).where(Invoice.id == invoice_id)
    found(await session.scalar(removal.returning(Invoice.id)))
    await session.commit()


@router.get("/forgotten", response_model=list[InvoiceOut])
async def list_without_tenant(session: Session) -> list[Invoice]:
    """List invoices in no tenant's scope: a programmer's mistake, kept here to show its effect."""
    return list(await session.scalars(select(Invoice).order_by(Invoice.id)))


def found(row: T | None) -> T:
    """Another tenant's row and a row that does not exist look the same."""
    if row is None:
        raise HTTPException(404, "0 rows")
    return row


async def answer_refusal(_request: Request, error: Exception) -> JSONResponse:
    """Answer 403 with PostgreSQL's own words when a policy refused to let a row be written.

    Other refusals under the same SQLSTATE are this service's mistakes, therefore 500: a statement
    in no tenant's scope under ``require_tenant``, or a missing GRANT.
    """
    if not isinstance(error, ProgrammingError) or error.orig is None or sqlstate(error) != "42501":
        raise error
    refusal = error.orig.__cause__  # as asyncpg raised it
    source = getattr(refusal, "server_source_function", None)
    return JSONResponse(
        {"sqlstate": "42501", "message": getattr(refusal, "message", str(refusal))},
        status_code=403 if source == "ExecWithCheckOptions" else 500,
    )


def create_app(database_url: str | URL | None = None, *, require_tenant: bool = False) -> FastAPI:
    """Make the application, on the database that DATABASE_URL names unless one is given."""
    url = database_url or os.environ["DATABASE_URL"]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with setup_db(app, database_url=url, require_tenant=require_tenant):
            yield

    # A real service would leave the refused row to install_error_handlers too, whose answers say
    # nothing of tables; the tour shows PostgreSQL's own words.
    responses = problem_responses(overrides={Trouble.ROW_REFUSED: None}) | REFUSED
    app = FastAPI(title="Invoices", lifespan=lifespan, responses=responses)
    app.include_router(router)
    install_error_handlers(app)
    app.add_exception_handler(ProgrammingError, answer_refusal)
    return app
