"""The background job works for the tenant that asked for it. `ASGITransport` waits for its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jobs
import pytest

if TYPE_CHECKING:
    from httpx import AsyncClient


@pytest.fixture(autouse=True)
async def bills(acme: AsyncClient, bolt: AsyncClient) -> None:
    for tenant in (acme, bolt):
        for amount, due in ((100, "2020-01-01"), (900_000, "2020-01-01"), (100, "2999-01-01")):
            bill = {"customer": "Ann", "amount": amount, "due": due}
            assert (await tenant.post("/invoices", json=bill)).status_code == 201


async def charge(tenant: AsyncClient) -> None:
    assert (await tenant.post("/late-fees")).status_code == 202


async def read_fees(tenant: AsyncClient) -> list[int | None]:
    page = (await tenant.get("/invoices")).json()
    return [invoice["late_fee"] for invoice in page["invoices"]]


async def test_overdue_invoices_of_the_tenant_are_charged(
    acme: AsyncClient, bolt: AsyncClient
) -> None:
    await charge(acme)

    assert await read_fees(acme) == [500, 9000, None]
    assert await read_fees(bolt) == [None, None, None]


async def test_every_transaction_of_the_job_is_the_tenants(
    acme: AsyncClient, bolt: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "BATCH", 1)

    await charge(acme)

    assert await read_fees(acme) == [500, 9000, None]
    assert await read_fees(bolt) == [None, None, None]


async def test_nothing_is_charged_twice(acme: AsyncClient) -> None:
    await charge(acme)
    first = (await acme.get("/invoices")).json()["invoices"][0]
    await acme.put(f"/invoices/{first['id']}", json=first | {"amount": 900_000})

    await charge(acme)

    assert await read_fees(acme) == [500, 9000, None]
