"""What the tour asks of the service, and the only answer that keeps two tenants apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    import httpx


class Tenant(NamedTuple):
    name: str
    id: UUID


ACME = Tenant("Acme", UUID("aaaaaaaa-0000-4000-8000-000000000001"))
BOLT = Tenant("Bolt", UUID("bbbbbbbb-0000-4000-8000-000000000002"))

BILL = {"customer": "Mallory", "amount": 1}
NOT_FOUND = (404, "0 rows")
REFUSED = (403, '42501 new row violates row-level security policy for table "invoice"')
NO_TENANT = (
    500,
    '42501 query would be affected by row-level security policy for table "invoice"',
)


class Step(NamedTuple):
    """A request, and the HTTP status with PostgreSQL's answer that it must get."""

    label: str
    method: str
    path: str
    expected: tuple[int, str]
    body: dict[str, Any] | None = None

    def take(self, client: httpx.Client) -> tuple[int, str]:
        return read_answer(client.request(self.method, self.path, json=self.body))


def read_answer(response: httpx.Response) -> tuple[int, str]:
    """Return the status, and what PostgreSQL answered: rows, or SQLSTATE and message."""
    return response.status_code, _read_body(response.json() if response.content else None)


def _read_body(body: Any) -> str:
    match body:
        case None:
            return "1 row"
        case {"id": number}:
            return f"1 row: {number}"
        case {"sqlstate": code, "message": message}:
            return f"{code} {message}"
        case {"detail": detail}:
            return str(detail)
        case _:
            numbers = ", ".join(str(row["id"]) for row in body)
            return f"{len(body)} rows: {numbers}" if numbers else "0 rows"


def own_rows(first: int, customers: tuple[str, str, str]) -> list[Step]:
    """Write three invoices, the first of which gets this number; change one, delete one."""
    one, three = first, first + 2
    changed = {"customer": customers[0], "amount": 150}
    return [
        *(
            Step(
                f"insert, for {customer}",
                "POST",
                "/invoices",
                (201, f"1 row: {number}"),
                {"customer": customer, "amount": 100},
            )
            for number, customer in enumerate(customers, first)
        ),
        Step(f"change {one}", "PUT", f"/invoices/{one}", (200, f"1 row: {one}"), changed),
        Step(f"delete {three}", "DELETE", f"/invoices/{three}", (204, "1 row")),
    ]


def foreign_rows(own: int, other: Tenant, foreign: int) -> list[Step]:
    """Try everything on the other tenant's invoice `foreign`, and give `own` away."""
    path, name = f"/invoices/{foreign}", other.name
    for_other = {**BILL, "tenant_id": str(other.id)}
    return [
        Step("list all", "GET", "/invoices", (200, f"2 rows: {own}, {own + 1}")),
        Step(f"read {name}'s {foreign}", "GET", path, NOT_FOUND),
        Step(f"change {name}'s {foreign}", "PUT", path, NOT_FOUND, BILL),
        Step(f"delete {name}'s {foreign}", "DELETE", path, NOT_FOUND),
        Step(f"insert for {name}", "POST", "/invoices", REFUSED, for_other),
        Step(f"move own {own} to {name}", "PUT", f"/invoices/{own}", REFUSED, for_other),
    ]


# What the superuser has to see in the end: number, tenant, customer and amount of each invoice.
TRUTH = [
    (1, "Acme", "Ann", 150),
    (2, "Acme", "Ben", 100),
    (4, "Bolt", "Dora", 150),
    (5, "Bolt", "Emil", 100),
]
FORGOTTEN = Step("list, no tenant", "GET", "/forgotten", (200, "0 rows"))
REQUIRED = Step("same, require_tenant", "GET", "/forgotten", NO_TENANT)
