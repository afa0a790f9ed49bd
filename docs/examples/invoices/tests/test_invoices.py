"""Invoices over HTTP: a tenant works with its own, and with no other's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from uuid import UUID

    from httpx import AsyncClient

    Invoice = dict[str, Any]

BILL = {"customer": "Ann", "amount": 100, "due": "2030-01-31"}


async def create(tenant: AsyncClient, customer: str = "Ann") -> Invoice:
    answer = await tenant.post("/invoices", json=BILL | {"customer": customer})
    assert answer.status_code == 201, answer.text
    invoice: Invoice = answer.json()
    return invoice


async def create_three(tenant: AsyncClient) -> list[Invoice]:
    return [await create(tenant, customer) for customer in ("Ann", "Ben", "Cleo")]


async def list_all(tenant: AsyncClient) -> list[Invoice]:
    invoices: list[Invoice] = (await tenant.get("/invoices")).json()["invoices"]
    return invoices


async def export(tenant: AsyncClient) -> list[Invoice]:
    answer = await tenant.get("/invoices/export")
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_an_invoice_is_read_as_it_was_created(acme: AsyncClient) -> None:
    created = await create(acme)

    assert created == BILL | {"id": created["id"], "late_fee": None}
    assert (await acme.get(f"/invoices/{created['id']}")).json() == created


async def test_a_changed_invoice_stays_changed(acme: AsyncClient) -> None:
    created = await create(acme)

    changed = await acme.put(f"/invoices/{created['id']}", json=BILL | {"amount": 150})

    assert changed.json() == created | {"amount": 150}
    assert await list_all(acme) == [changed.json()]


async def test_a_deleted_invoice_is_gone(acme: AsyncClient) -> None:
    created = await create(acme)

    assert (await acme.delete(f"/invoices/{created['id']}")).status_code == 204
    assert await list_all(acme) == []


async def test_following_next_reads_every_invoice_once(acme: AsyncClient) -> None:
    created = await create_three(acme)

    pages: list[list[Invoice]] = []
    after: int | None = 0
    while after is not None:
        page = (await acme.get("/invoices", params={"limit": 2, "after": after})).json()
        pages.append(page["invoices"])
        after = page["next"]

    assert pages == [created[:2], created[2:]]


async def test_following_the_links_reads_every_invoice_once(acme: AsyncClient) -> None:
    created = await create_three(acme)

    first = await acme.get("/invoices", params={"limit": 2})
    last = await acme.get(first.url.join(first.links["next"]["url"]))

    assert first.json()["invoices"] + last.json()["invoices"] == created
    assert "next" not in last.links


async def test_the_export_has_every_invoice(acme: AsyncClient) -> None:
    created = await create_three(acme)

    assert await export(acme) == created


async def test_a_tenant_reads_no_other_ones_invoices(acme: AsyncClient, bolt: AsyncClient) -> None:
    created = await create(acme)

    assert await list_all(bolt) == []
    assert await export(bolt) == []
    assert (await bolt.get(f"/invoices/{created['id']}")).status_code == 404


async def test_a_tenant_writes_no_other_ones_invoices(acme: AsyncClient, bolt: AsyncClient) -> None:
    created = await create(acme)
    path = f"/invoices/{created['id']}"

    assert (await bolt.put(path, json=BILL | {"amount": 1})).status_code == 404
    assert (await bolt.delete(path)).status_code == 404
    assert await list_all(acme) == [created]


async def test_a_body_can_not_name_another_tenant(
    acme: AsyncClient, bolt: AsyncClient, mgf_tenants: tuple[UUID, UUID]
) -> None:
    for_bolt = BILL | {"tenant_id": str(mgf_tenants[1])}

    created = await acme.post("/invoices", json=for_bolt)

    assert await list_all(acme) == [created.json()]
    assert await list_all(bolt) == []


@pytest.mark.parametrize(
    "wrong", [{"amount": -1}, {"customer": ""}, {"customer": "a\0b"}, {"due": "soon"}]
)
async def test_what_is_no_invoice_is_refused(acme: AsyncClient, wrong: dict[str, Any]) -> None:
    assert (await acme.post("/invoices", json=BILL | wrong)).status_code == 422
    assert await list_all(acme) == []
