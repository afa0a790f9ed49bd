"""Work that outlives the request which asks for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastapi import APIRouter, BackgroundTasks, FastAPI, Request
from models import Invoice
from sqlalchemy import func, select
from tenants import TenantDep  # noqa: TC002 - FastAPI reads it from the signature

from mgf.fastapi.db import session_scope

if TYPE_CHECKING:
    from uuid import UUID

BATCH = 100
logger = logging.getLogger(__name__)
router = APIRouter(tags=["jobs"])


@router.post("/late-fees", status_code=202)
async def start_charging(request: Request, tenant: TenantDep, background: BackgroundTasks) -> None:
    """Charge a late fee on every overdue invoice that has none, after the answer is sent."""
    # The job opens a session of its own: that of a request ends with it.
    background.add_task(charge_late_fees, request.app, tenant)


async def charge_late_fees(app: FastAPI, tenant: UUID) -> None:
    """Charge 1 %, at least 5.00, in short transactions, each of which is the tenant's.

    Whatever cuts it off, nothing is charged twice and asking again does the rest.
    """
    overdue = (
        select(Invoice)
        .where(Invoice.due < func.current_date(), Invoice.late_fee.is_(None))
        .order_by(Invoice.id)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    count = 0
    async with session_scope(app, tenant) as session:
        while invoices := (await session.scalars(overdue)).all():
            for invoice in invoices:
                invoice.late_fee = max(500, invoice.amount // 100)
            await session.commit()
            count += len(invoices)
    logger.info("charged a late fee on %d invoices", count)
