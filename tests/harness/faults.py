"""Scoped units under faults, and the books that tell what each of them saw and left behind."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from harness.servers import dsn
from mgf.sqlalchemy import tenant_scope
from mgf.sqlalchemy.errors import is_transient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

T = TypeVar("T")

WRITE = text("INSERT INTO invoice (note) VALUES (:note) RETURNING tenant_id, note")
# No filter on the tenant: what it returns is the policy's doing alone.
READ = text("SELECT tenant_id, note FROM invoice ORDER BY id DESC LIMIT 50")

STAGES = ("entered", "begun", "written", "read", "committed", "read again", "left")

OPEN_TRANSACTIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE usename <> current_user AND datname = current_database() AND xact_start IS NOT NULL
"""
# Waits until they have ended.
KILL = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE usename <> current_user AND datname = current_database()
"""
KILL_ONE = f"{KILL} ORDER BY random() LIMIT 1"


class Cancelling(Generic[T]):
    """Awaits work in the running task, and cancels that task at the n-th suspension.

    Args:
        work: a coroutine.
        at: which suspension, from 0 on. If there are fewer, the work ends by itself.
        again: cancel at each later suspension too, as an anyio scope does.
    """

    def __init__(self, work: Coroutine[Any, Any, T], at: int, *, again: bool = False) -> None:
        self._work = work
        self._at = at
        self._again = again
        self._suspensions = 0

    @property
    def was_reached(self) -> bool:
        return self._suspensions > self._at

    def __await__(self) -> Generator[Any, Any, T]:
        work = self._work.__await__()
        resume: Callable[[], Any] = partial(next, work)
        while True:
            try:
                waits_for = resume()
            except StopIteration as end:
                result: T = end.value
                return result
            self._cancel_if_due()
            try:
                yield waits_for
            except BaseException as exc:  # noqa: BLE001 - handed on to the work
                resume = partial(work.throw, exc)
            else:
                resume = partial(next, work)

    def _cancel_if_due(self) -> None:
        # The task takes it in as it starts to wait for what is yielded to it next.
        task = asyncio.current_task()
        if task is not None and (
            self._suspensions == self._at or (self._again and self.was_reached)
        ):
            task.cancel()
        self._suspensions += 1


class Audit(NamedTuple):
    """What must never happen: all empty or zero."""

    foreign: int
    unseen: int
    lost: int
    uncalled_for: int


@dataclass
class Ledger:
    """What units did, to be held against what the database holds.

    Args:
        tenants: the tenant of each unit, by the note that it writes.
        committing: notes whose commit was asked for.
        committed: notes whose commit was answered.
        foreign: notes of other tenants that a unit saw.
        unseen: notes that their own unit did not see.
    """

    tenants: dict[str, UUID] = field(default_factory=dict)
    committing: set[str] = field(default_factory=set)
    committed: set[str] = field(default_factory=set)
    foreign: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    @property
    def in_doubt(self) -> set[str]:
        """Notes whose commit was not answered: it may have happened or not."""
        return self.committing - self.committed

    def open(self, tenant: UUID) -> str:
        note = uuid4().hex
        self.tenants[note] = tenant
        return note

    def saw(self, note: str, rows: Iterable[Any]) -> None:
        found = list(rows)
        tenant = self.tenants[note]
        self.foreign += [other for owner, other in found if owner != tenant]
        if note not in {other for _, other in found}:
            self.unseen.append(note)

    async def audit(self, owner: URL, query: str = "SELECT note, tenant_id FROM invoice") -> Audit:
        connection = await asyncpg.connect(dsn(owner))
        try:
            rows = await connection.fetch(query)
        finally:
            await connection.close()
        held = {note: tenant for note, tenant in rows if note in self.tenants}
        misplaced = [note for note, tenant in held.items() if self.tenants[note] != tenant]
        return Audit(
            foreign=len(self.foreign) + len(misplaced),
            unseen=len(self.unseen),
            lost=len(self.committed - held.keys()),
            uncalled_for=len(held.keys() - self.committing),
        )


async def _go_on(_stage: str) -> None:
    pass


async def unit(
    sessionmaker: async_sessionmaker[AsyncSession],
    tenant: UUID,
    ledger: Ledger,
    at_stage: Callable[[str], Awaitable[None]] = _go_on,
) -> None:
    """Write, read, commit, and read once more in a transaction that is left open."""
    note = ledger.open(tenant)
    async with tenant_scope(sessionmaker, tenant) as session:
        await at_stage("entered")
        await session.connection()
        await at_stage("begun")
        ledger.saw(note, await session.execute(WRITE, {"note": note}))
        await at_stage("written")
        ledger.saw(note, await session.execute(READ))
        await at_stage("read")
        ledger.committing.add(note)
        await session.commit()
        ledger.committed.add(note)
        await at_stage("committed")
        ledger.saw(note, await session.execute(READ))
        await at_stage("read again")
    await at_stage("left")


def is_clear(error: BaseException) -> bool:
    """Say whether the error tells that the work was cut short, and is no confusion after it."""
    # psycopg cannot always tell why it did not connect: an OperationalError is all there is.
    if isinstance(error, asyncio.CancelledError | TimeoutError | OperationalError):
        return True
    return isinstance(error, SQLAlchemyError) and is_transient(error)


class Left(NamedTuple):
    """What units have left behind on their pool and on the server: nothing, it should be."""

    checked_out: int
    open_transactions: int


async def left_behind(engine: AsyncEngine, owner: URL, *, patience: float = 5) -> Left:
    """Return what is left when nothing is, or after `patience` seconds.

    A cancelled session is closed in the background, and a server process notices the end of its
    client a moment later.
    """
    pool: Any = engine.pool
    deadline = time.monotonic() + patience
    connection = await asyncpg.connect(dsn(owner))
    try:
        while True:
            left = Left(pool.checkedout(), await connection.fetchval(OPEN_TRANSACTIONS))
            if left == Left(0, 0) or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.01)
    finally:
        await connection.close()
