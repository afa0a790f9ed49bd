"""What the tour asks of the service and its database, and the answers that keep tenants apart."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import jwt
from database import run_sql
from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.errors import sqlstate

if TYPE_CHECKING:
    import httpx
    from sqlalchemy import URL


class Tenant(NamedTuple):
    name: str
    id: UUID


ACME = Tenant("Acme", UUID("aaaaaaaa-0000-4000-8000-000000000001"))
BOLT = Tenant("Bolt", UUID("bbbbbbbb-0000-4000-8000-000000000002"))

Answer = tuple[int | str, str]
"""HTTP's status or PostgreSQL's SQLSTATE, and what came with it."""

BILL = {"customer": "Mallory", "amount": 1, "due": "2020-01-01"}
NOT_FOUND = (404, "no such invoice")
OK = "00000"
REFUSED = ("42501", 'new row violates row-level security policy for table "invoice"')
NO_TENANT = (
    "42501",
    'query would be affected by row-level security policy for table "invoice"',
)


class Call(NamedTuple):
    """A request to the service, and the answer that it must get."""

    label: str
    method: str
    path: str
    expected: Answer
    body: dict[str, Any] | None = None
    patience: float = 0
    """For how many seconds to ask again until the answer is the expected one."""

    def take(self, client: httpx.Client) -> Answer:
        end = time.monotonic() + self.patience
        while True:
            answer = read_answer(client.request(self.method, self.path, json=self.body))
            if answer == self.expected or time.monotonic() >= end:
                return answer
            time.sleep(0.01)


class Statement(NamedTuple):
    """SQL that a mistake in the service could send, and the answer that it must get."""

    label: str
    sql: str
    expected: Answer
    require_tenant: bool = False

    def take(self, url: URL, tenant: Tenant | None) -> Answer:
        scope = None if tenant is None else tenant.id
        try:
            rows = run_sql(url, self.sql, scope, require_tenant=self.require_tenant)
        except DBAPIError as error:
            # PostgreSQL's own words, as asyncpg raised them.
            cause = error.orig and error.orig.__cause__
            return str(sqlstate(error)), getattr(cause, "message", str(cause))
        return OK, "rows: " + (", ".join(str(row.id) for row in rows) or "none")


def read_answer(response: httpx.Response) -> Answer:
    """Return the status, and the numbers of the invoices or the reason that came with it."""
    match response.headers.get("content-type"):
        case "application/x-ndjson":
            text = _numbers([json.loads(line) for line in response.iter_lines()])
        case "application/json" | "application/problem+json":
            text = _read_body(response.json() if response.content else None)
        case _:
            text = response.text
    return response.status_code, text


def _read_body(body: Any) -> str:
    match body:
        case {"id": number, "late_fee": fee}:
            return f"invoice {number}" if fee is None else f"invoice {number}, late fee {fee}"
        case {"invoices": invoices}:
            return _numbers(invoices)
        case {"detail": detail}:
            return str(detail)
        case _:
            return ""


def _numbers(invoices: list[dict[str, Any]]) -> str:
    return "invoices " + (", ".join(str(invoice["id"]) for invoice in invoices) or "none")


def make_token(key: str, tenant: Tenant, *, audience: str = "invoices", hours: float = 12) -> str:
    """Sign a token that names a tenant, as the identity provider of a real service would."""
    expires = datetime.now(UTC) + timedelta(hours=hours)
    claims = {"tenant": str(tenant.id), "aud": audience, "exp": expires}
    return jwt.encode(claims, key, "HS256")


def own_rows(first: int, customers: tuple[str, str, str]) -> list[Call]:
    """Write three invoices, the first of which gets this number; change one, delete one."""
    one, two, three = first, first + 1, first + 2
    bills = [{"customer": name, "amount": 100, "due": "2020-01-01"} for name in customers]
    return [
        *(
            Call(
                f"create, for {bill['customer']}", "POST", "/invoices", (201, f"invoice {n}"), bill
            )
            for n, bill in enumerate(bills, first)
        ),
        Call(
            f"change {one}",
            "PUT",
            f"/invoices/{one}",
            (200, f"invoice {one}"),
            bills[0] | {"amount": 150},
        ),
        Call(f"delete {three}", "DELETE", f"/invoices/{three}", (204, "")),
        Call("first page of one", "GET", "/invoices?limit=1", (200, f"invoices {one}")),
        Call(
            "the page after it", "GET", f"/invoices?limit=1&after={one}", (200, f"invoices {two}")
        ),
    ]


def charge(first: int) -> list[Call]:
    """Have a background job charge late fees, and wait until it has."""
    return [
        Call("charge late fees", "POST", "/late-fees", (202, "")),
        *(
            Call(
                f"read {n}",
                "GET",
                f"/invoices/{n}",
                (200, f"invoice {n}, late fee 500"),
                patience=30,
            )
            for n in (first, first + 1)
        ),
    ]


def foreign_rows(own: int, other: Tenant, foreign: int) -> list[Call]:
    """Try everything on the other tenant's invoice `foreign`."""
    path, name, mine = f"/invoices/{foreign}", other.name, (200, f"invoices {own}, {own + 1}")
    return [
        Call("list all", "GET", "/invoices", mine),
        Call("export all", "GET", "/invoices/export", mine),
        Call(f"read {name}'s {foreign}", "GET", path, NOT_FOUND),
        Call(f"change {name}'s {foreign}", "PUT", path, NOT_FOUND, BILL),
        Call(f"delete {name}'s {foreign}", "DELETE", path, NOT_FOUND),
    ]


def false_tokens(key: str) -> list[tuple[str, str | None, Answer]]:
    """Tokens that must not be taken, and the answers that they must get."""
    invalid = "the token is not valid: "
    return [
        ("no token", None, (401, "a token is needed")),
        ("expired", make_token(key, BOLT, hours=-1), (401, f"{invalid}Signature has expired")),
        (
            "for another service",
            make_token(key, BOLT, audience="x"),
            (401, f"{invalid}Audience doesn't match"),
        ),
        (
            "forged",
            make_token("not the key, but as long as one has to be", BOLT),
            (401, f"{invalid}Signature verification failed"),
        ),
    ]


def mistakes(own: int, other: Tenant) -> list[Statement]:
    """What the service could send by mistake: without a filter, and for the other tenant."""
    name, mine = other.name, f"rows: {own}, {own + 1}"
    return [
        Statement("select all", "SELECT id FROM invoice ORDER BY id", (OK, mine)),
        Statement("update all", "UPDATE invoice SET amount = amount RETURNING id", (OK, mine)),
        Statement(
            f"insert for {name}",
            "INSERT INTO invoice (tenant_id, customer, amount, due) "
            f"VALUES ('{other.id}', 'Mallory', 1, current_date) RETURNING id",
            REFUSED,
        ),
        Statement(
            f"move own {own} to {name}",
            f"UPDATE invoice SET tenant_id = '{other.id}' WHERE id = {own} RETURNING id",
            REFUSED,
        ),
    ]


FORGOTTEN = [
    Statement("select all", "SELECT id FROM invoice", (OK, "rows: none")),
    Statement("same, require_tenant", "SELECT id FROM invoice", NO_TENANT, require_tenant=True),
]

# What the superuser has to see in the end: number, tenant, customer, amount and fee of each.
TRUTH = [
    (1, "Acme", "Ann", 150, 500),
    (2, "Acme", "Ben", 100, 500),
    (4, "Bolt", "Dora", 150, None),
    (5, "Bolt", "Emil", 100, None),
]
