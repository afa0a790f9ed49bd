"""A tenant's invoices. No query names the tenant: PostgreSQL sees to that."""

from __future__ import annotations

from datetime import date  # noqa: TC003 - pydantic reads it from the annotations
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, HTTPException, Path, Query, Response
from fastapi.responses import StreamingResponse
from models import Invoice
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, select, update
from tenants import (  # noqa: TC002 - FastAPI reads them from the signatures
    StreamingTenantSessionDep,
    TenantSessionDep,
    TenantTransactionDep,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

T = TypeVar("T")
LARGEST = 2**63 - 1
NDJSON = "application/x-ndjson"
InvoiceId = Annotated[int, Path(ge=1, le=LARGEST)]
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such invoice"}}
router = APIRouter(prefix="/invoices", tags=["invoices"])


class InvoiceIn(BaseModel):
    customer: str = Field(min_length=1, max_length=200)
    amount: int = Field(ge=0, lt=10**12, description="in cents")
    due: date


class InvoiceOut(InvoiceIn):
    model_config = ConfigDict(from_attributes=True)

    id: int
    late_fee: int | None = Field(description="in cents")


class InvoicePage(BaseModel):
    invoices: list[InvoiceOut]
    next: int | None = Field(
        description="to be given as `after` for the next page, if there is one"
    )


@router.get("", responses={200: {"headers": {"Link": {"schema": {"type": "string"}}}}})
async def list_invoices(
    session: TenantSessionDep,
    response: Response,
    after: Annotated[int, Query(ge=0, le=LARGEST)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> InvoicePage:
    # One more than asked for tells whether there is a next page.
    some = select(Invoice).where(Invoice.id > after).order_by(Invoice.id).limit(limit + 1)
    rows = [InvoiceOut.model_validate(invoice) for invoice in await session.scalars(some)]
    page = InvoicePage(invoices=rows[:limit], next=None)
    if len(rows) > limit:
        page.next = page.invoices[-1].id
        response.headers["Link"] = f'<?after={page.next}&limit={limit}>; rel="next"'  # RFC 8288
    return page


@router.get("/export", response_class=StreamingResponse, responses={200: {"content": {NDJSON: {}}}})
async def export_invoices(session: StreamingTenantSessionDep) -> StreamingResponse:
    """Send all invoices, one JSON object a line, while they are read: memory holds a few."""

    async def lines() -> AsyncGenerator[str]:
        everything = select(Invoice).order_by(Invoice.id).execution_options(yield_per=500)
        async for invoice in await session.stream_scalars(everything):
            yield InvoiceOut.model_validate(invoice).model_dump_json() + "\n"

    return StreamingResponse(lines(), media_type=NDJSON)


@router.post("", response_model=InvoiceOut, status_code=201)
async def create_invoice(new: InvoiceIn, session: TenantTransactionDep) -> Invoice:
    invoice = Invoice(**new.model_dump())
    session.add(invoice)
    await session.flush()  # gives it its id
    return invoice


@router.get("/{invoice_id}", response_model=InvoiceOut, responses=NOT_FOUND)
async def read_invoice(invoice_id: InvoiceId, session: TenantSessionDep) -> Invoice:
    return found(await session.get(Invoice, invoice_id))


@router.put("/{invoice_id}", response_model=InvoiceOut, responses=NOT_FOUND)
async def change_invoice(
    invoice_id: InvoiceId, new: InvoiceIn, session: TenantTransactionDep
) -> Invoice:
    change = update(Invoice).where(Invoice.id == invoice_id).values(new.model_dump())
    changed = await session.scalars(change.returning(Invoice))
    return found(changed.one_or_none())


@router.delete("/{invoice_id}", status_code=204, responses=NOT_FOUND)
async def delete_invoice(invoice_id: InvoiceId, session: TenantTransactionDep) -> None:
    removal = delete(Invoice).where(Invoice.id == invoice_id)
    found(await session.scalar(removal.returning(Invoice.id)))


def found(row: T | None) -> T:
    """Another tenant's invoice and one that does not exist look the same."""
    if row is None:
        raise HTTPException(404, "no such invoice")
    return row
