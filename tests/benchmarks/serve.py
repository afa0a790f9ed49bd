"""Drive the example application with hundreds of clients, while backends are killed and clients go.

    uv run python tests/benchmarks/serve.py [--clients 200] [--requests 100000] [--seconds 60]

First, in peace: what a request with a session of `tenant_session_from` costs against one of a
hand-written dependency with a plain session, in turns. Then the load: backends are killed, the
server is restarted, clients leave. Exit code 1 when a response held a foreign row, a commit that
was answered is lost, a request got a 500, or a connection stayed checked out or in a transaction.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import asyncpg

sys.path.insert(0, str(Path(__file__).parents[1]))  # what pytest's `pythonpath` says
sys.path += [str(Path(__file__).parents[2] / "docs/examples" / one) for one in ("invoices", "tour")]

from benchmarks.faulty import Faults, make_parser, restartable
from database import prepare
from models import ROLE
from steps import Tenant, make_token

from harness.faults import OPEN_TRANSACTIONS, Ledger
from harness.servers import dsn, run_sql

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator, Iterator

    from sqlalchemy import URL

    from mgf.sqlalchemy.testing import TemporaryPostgres

TENANTS = 100
ROWS = 20  # of each tenant, before the first request
# Seconds that a client waits for an answer: longer than the service does for a connection.
PATIENCE = 60.0
# What clients do, and how often.
ACTS = {"read": 60, "write": 30, "leave": 10}
# Seconds after which a client leaves that does.
LEAVES_WITHIN = 0.2
# In peace.
PEACEFUL_CLIENTS = 10

Tokens = dict[UUID, str]


class Answer(NamedTuple):
    status: int
    body: Any


class Connection:
    """One keep-alive connection of a client: HTTP/1.1, as much of it as uvicorn speaks here."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: str, token: str = "", body: Any = None) -> asyncio.StreamReader:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        sent = b"" if body is None else json.dumps(body).encode()
        headers = [
            *(f"{request} HTTP/1.1", "Host: test", f"Content-Length: {len(sent)}"),
            *("Content-Type: application/json", f"Authorization: Bearer {token}", "\r\n"),
        ]
        writer.write("\r\n".join(headers).encode() + sent)
        await writer.drain()
        return reader

    async def ask(self, request: str, token: str = "", body: Any = None) -> Answer:
        async with asyncio.timeout(PATIENCE):
            reader = await self.send(request, token, body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
            body = await reader.readexactly(length)
        is_json = "json" in head.partition("content-type: ")[2].partition("\r\n")[0]
        return Answer(int(head.split(" ", 2)[1]), json.loads(body) if is_json else body)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass
class Load:
    """Clients that read, write and leave, and what they were told."""

    port: int
    dice: random.Random
    numbers: Iterator[int]
    deadline: float
    tokens: Tokens
    ledger: Ledger = field(default_factory=Ledger)
    answers: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    last_id: int = 0

    async def client(self) -> None:
        connection = Connection(self.port)
        for _ in self.numbers:
            if time.monotonic() > self.deadline:
                break
            (act,) = self.dice.choices(list(ACTS), list(ACTS.values()))
            started = time.monotonic()
            try:
                answer = await getattr(self, act)(connection, self.dice.choice(list(self.tokens)))
            except (OSError, EOFError, TimeoutError) as exc:
                # A timeout is one too: no server is that slow.
                self.answers[type(exc).__name__] += 1
                connection.close()
                continue
            if answer is not None:
                self._note(answer, time.monotonic() - started)
        connection.close()

    async def read(self, connection: Connection, tenant: UUID) -> Answer:
        after = self.dice.randint(0, self.last_id)
        answer = await connection.ask(f"GET /invoices?after={after}", self.tokens[tenant])
        if answer.status == 200:
            customers = [invoice["customer"] for invoice in answer.body["invoices"]]
            self.ledger.foreign += [one for one in customers if not one.startswith(str(tenant))]
        return answer

    async def write(self, connection: Connection, tenant: UUID) -> Answer:
        note, invoice = self._new_invoice(tenant)
        answer = await connection.ask("POST /invoices", self.tokens[tenant], invoice)
        if answer.status == 201:
            self.ledger.committed.add(note)
            self.last_id = max(self.last_id, answer.body["id"])
        return answer

    async def leave(self, connection: Connection, tenant: UUID) -> None:
        """Leave in the middle of a query, of a stream or of a write."""
        request = self.dice.choice(["GET /slow", "GET /invoices/export", "POST /invoices"])
        invoice = self._new_invoice(tenant)[1] if request.startswith("POST") else None
        await connection.send(request, self.tokens[tenant], invoice)
        await asyncio.sleep(self.dice.uniform(0, LEAVES_WITHIN))
        connection.close()
        self.answers["left"] += 1

    def _new_invoice(self, tenant: UUID) -> tuple[str, dict[str, Any]]:
        """Return a note, and an invoice whose customer is named by its tenant and that note."""
        note = self.ledger.open(tenant)
        self.ledger.committing.add(note)
        return note, {"customer": f"{tenant} {note}", "amount": 1, "due": "2030-01-31"}

    def _note(self, answer: Answer, seconds: float) -> None:
        code = answer.body.get("code", "") if isinstance(answer.body, dict) else ""
        self.answers[f"{answer.status} {code}".strip()] += 1
        if answer.status < 300:
            self.seconds.append(seconds)


async def compare(port: int, tokens: Tokens, *, turns: int, requests: int) -> dict[str, str]:
    """Return what a request costs, in the service's processor time and in the client's."""
    costs: dict[str, list[tuple[float, float]]] = {"/plain": [], "/invoices": []}
    for turn in range(turns + 1):
        for path, taken in costs.items():
            cost = await _turn(port, path, list(tokens.values()), requests)
            if turn > 0:  # the first one makes the connections
                taken.append(cost)
    told = {}
    for name, which in (("processor", 0), ("wall", 1)):
        plain = [cost[which] for cost in costs["/plain"]]
        scoped = [cost[which] for cost in costs["/invoices"]]
        ratios = [one / other for one, other in zip(scoped, plain, strict=True)]
        told[name] = (
            f"plain session {statistics.median(plain) * 1e6:.0f} us, "
            f"scoped {statistics.median(scoped) * 1e6:.0f} us, "
            f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    return told


async def _turn(port: int, path: str, tokens: list[str], requests: int) -> tuple[float, float]:
    async def client() -> None:
        connection = Connection(port)
        for number in range(requests // PEACEFUL_CLIENTS):
            answer = await connection.ask(f"GET {path}", tokens[number % len(tokens)])
            assert (answer.status, len(answer.body["invoices"])) == (200, ROWS), answer
        connection.close()

    before = await figures(port)
    started = time.monotonic()
    await asyncio.gather(*(client() for _ in range(PEACEFUL_CLIENTS)))
    wall = time.monotonic() - started
    processor = (await figures(port))["processor"] - before["processor"]
    return processor / requests, wall / requests


async def figures(port: int) -> dict[str, float]:
    connection = Connection(port)
    answer = await connection.ask("GET /figures")
    connection.close()
    found: dict[str, float] = answer.body
    return found


async def ask_health(port: int, is_over: asyncio.Event) -> Counter[str]:
    """Ask again and again if the service is ready, as an orchestrator does."""
    states: Counter[str] = Counter()
    connection = Connection(port)
    while not is_over.is_set():
        answer = await connection.ask("GET /health/ready")
        states[answer.body["status"]] += 1
        with suppress(TimeoutError):
            await asyncio.wait_for(is_over.wait(), 0.5)
    connection.close()
    return states


async def left_behind(port: int, owner: URL, *, patience: float = 30) -> dict[str, int]:
    """Return what is left when nothing is, or after `patience` seconds."""
    deadline = time.monotonic() + patience
    connection = await asyncpg.connect(dsn(owner))
    try:
        while True:
            left = {
                "checked out": int((await figures(port))["checked_out"]),
                "open transactions": await connection.fetchval(OPEN_TRANSACTIONS),
            }
            if not any(left.values()) or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.05)
    finally:
        await connection.close()


async def make_rows(owner: URL, tenants: Tokens) -> None:
    """Give each tenant its first rows, and put the same into a table that no policy protects."""
    names = ", ".join(f"('{tenant}'::uuid)" for tenant in tenants)
    rows = f"(VALUES {names}) AS t (tenant), generate_series(1, {ROWS})"
    await run_sql(
        owner,
        f"""
        INSERT INTO invoice (tenant_id, customer, amount, due)
        SELECT tenant, tenant || ' ' || gen_random_uuid(), 100, current_date FROM {rows};
        CREATE TABLE plain_invoice (LIKE invoice INCLUDING ALL);
        INSERT INTO plain_invoice OVERRIDING SYSTEM VALUE SELECT * FROM invoice;
        GRANT SELECT ON plain_invoice TO {ROLE};
        ANALYZE;
        """,
    )


@asynccontextmanager
async def serving(url: URL, key: str) -> AsyncGenerator[int]:
    """Start the service, yield its port, and end it."""
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            Path(__file__).with_name("served.py"),
            url.render_as_string(hide_password=False),
            key,
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.stdin.close()
        await process.wait()


async def drive(
    postgres: TemporaryPostgres, app: URL, key: str, tokens: Tokens, options: argparse.Namespace
) -> int:
    async with serving(app, key) as port:
        await figures(port)  # it has started, which it would not do beside an unprotected table
        await make_rows(postgres.url, tokens)
        compared = await compare(port, tokens, turns=options.turns, requests=options.per_turn)
        for name, told in compared.items():
            print(f"{name} time of a request: {told}", flush=True)
        started = time.monotonic()
        dice = random.Random(options.seed)
        load = Load(port, dice, iter(range(options.requests)), started + options.seconds, tokens)
        faults = Faults(postgres, postgres.url, random.Random(f"{options.seed}.faults"))
        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            health = group.create_task(ask_health(port, is_over))
            await faults.meet(asyncio.gather(*(load.client() for _ in range(options.clients))))
            is_over.set()
        elapsed = time.monotonic() - started
        left = await left_behind(port, postgres.url)
    written = "SELECT split_part(customer, ' ', 2), tenant_id FROM invoice"
    audit = await load.ledger.audit(postgres.url, written)
    return report(load, faults, health.result(), elapsed, {**audit._asdict(), **left})


def report(
    load: Load, faults: Faults, health: Counter[str], elapsed: float, wrong: dict[str, int]
) -> int:
    # One answer alone has no quantiles.
    cuts = statistics.quantiles([*load.seconds, *load.seconds] or [0, 0], n=100)
    wrong["status 500"] = sum(
        count for answer, count in load.answers.items() if answer.startswith("500")
    )
    books: dict[str, Any] = {
        "seconds": round(elapsed),
        "faults": dict(faults.injected),
        "requests per second": round(load.answers.total() / elapsed),
        "p50": f"{cuts[49] * 1000:.0f} ms",
        "p99": f"{cuts[98] * 1000:.0f} ms",
        "answers": dict(load.answers.most_common()),
        "readiness": dict(health),
        "committed": len(load.ledger.committed),
        "in doubt": len(load.ledger.in_doubt),
        **wrong,
    }
    print(", ".join(f"{name} {value}" for name, value in books.items()))
    return int(any(wrong.values()))


def main() -> int:
    parser = make_parser(__doc__, seconds=60)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=10, help="of the comparison in peace")
    parser.add_argument("--per-turn", type=int, default=500, help="requests of each kind")
    options = parser.parse_args()
    print(f"seed {options.seed}, driver {options.driver}, {options.clients} clients", flush=True)
    key = secrets.token_hex()
    dice = random.Random(options.seed)
    tenants = [UUID(int=dice.getrandbits(128)) for _ in range(TENANTS)]
    tokens = {tenant: make_token(key, Tenant("", tenant)) for tenant in tenants}
    with restartable() as postgres:
        app = prepare(postgres.url, secrets.token_hex()).set(
            drivername=f"postgresql+{options.driver}"
        )
        return asyncio.run(drive(postgres, app, key, tokens, options))


if __name__ == "__main__":
    sys.exit(main())
