"""Run scoped units of many tenants over few connections while everything breaks at random.

    uv run python tests/benchmarks/soak.py [--units 100000] [--seconds 600] [--driver asyncpg]

Ends with one line of figures, and with exit code 1 when a unit saw or wrote a foreign row, did
not see its own, lost a commit that was answered, raised an error that is no clear one, or left a
connection checked out or a transaction open. What a seed fixes is which faults and cancellations
are drawn, not the moment at which the server's answers meet them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

sys.path.insert(0, str(Path(__file__).parents[1]))  # what pytest's `pythonpath` says

from benchmarks.faulty import Faults, make_parser, restartable

from harness.faults import Cancelling, Ledger, is_clear, left_behind, unit
from harness.proxy import Proxy, proxied
from harness.tenants import APP_PASSWORD, new_world
from mgf.sqlalchemy import create_engine, create_sessionmaker
from mgf.sqlalchemy.errors import sqlstate

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from sqlalchemy.ext.asyncio import AsyncEngine

    from mgf.sqlalchemy.testing import TemporaryPostgres

TENANTS = 1000
WORKERS = 24
CONNECTIONS = 6
# Seconds that a unit may take, black holes included; also the longest wait for a connection.
LIMIT = 3.0
# One unit in so many is cancelled, at one of its first suspensions.
CANCEL_ONE_IN = 20
SUSPENSIONS = 16


@dataclass
class NetworkFaults(Faults):
    """The server's, and those of the network before it."""

    proxy: Proxy = field(kw_only=True)
    peace: ClassVar[tuple[float, float]] = (0.05, 0.5)
    weights: ClassVar[Mapping[str, int]] = {
        "kill_one": 20,
        "kill_all": 8,
        "restart": 1,
        "cut": 8,
        "lose_answers": 8,
        "swallow": 2,
    }

    async def cut(self) -> None:
        self.proxy.cut()

    async def lose_answers(self) -> None:
        self.proxy.withhold_answers()
        await asyncio.sleep(0.05)
        self.proxy.cut()

    async def swallow(self) -> None:
        self.proxy.swallow()
        await asyncio.sleep(self.dice.uniform(0, 2 * LIMIT))
        self.proxy.cut()


@dataclass
class Work:
    """Units of random tenants, until there are enough or the time is over."""

    engine: AsyncEngine
    dice: random.Random
    numbers: Iterator[int]
    deadline: float
    ledger: Ledger = field(default_factory=Ledger)
    errors: Counter[str] = field(default_factory=Counter)
    unclear: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tenants = [UUID(int=self.dice.getrandbits(128)) for _ in range(TENANTS)]
        self.sessionmaker = create_sessionmaker(self.engine)

    async def run(self) -> None:
        for _ in self.numbers:
            if time.monotonic() > self.deadline:
                return
            task = asyncio.create_task(self._unit())
            await asyncio.wait({task})
            if error := asyncio.CancelledError() if task.cancelled() else task.exception():
                self._note(error)
                await asyncio.sleep(0.05)

    async def _unit(self) -> None:
        work = unit(self.sessionmaker, self.dice.choice(self.tenants), self.ledger)
        async with asyncio.timeout(LIMIT):
            if self.dice.randrange(CANCEL_ONE_IN):
                await work
            else:
                again = bool(self.dice.randrange(2))
                await Cancelling(work, self.dice.randrange(SUSPENSIONS), again=again)

    def _note(self, error: BaseException) -> None:
        self.errors[sqlstate(error) or type(error).__name__] += 1
        if not is_clear(error):
            self.unclear.append(repr(error))


async def soak(postgres: TemporaryPostgres, options: argparse.Namespace) -> int:
    dice = random.Random(options.seed)
    owner = await new_world(postgres.url, "CREATE INDEX ON invoice (tenant_id, id)")
    app = owner.set(
        drivername=f"postgresql+{options.driver}", username="app", password=APP_PASSWORD
    )
    started = time.monotonic()
    async with proxied(app) as proxy:
        engine = create_engine(proxy.url, pool_size=CONNECTIONS, max_overflow=0, pool_timeout=LIMIT)
        work = Work(engine, dice, iter(range(options.units)), started + options.seconds)
        dice_of_faults = random.Random(f"{options.seed}.faults")
        faults = NetworkFaults(postgres, owner, dice_of_faults, proxy=proxy)
        await faults.meet(asyncio.gather(*(work.run() for _ in range(WORKERS))))
        proxy.cut()
        left = await left_behind(engine, owner)
        audit = await work.ledger.audit(owner)
        await engine.dispose()
    books: dict[str, Any] = {
        "seed": options.seed,
        "driver": options.driver,
        "seconds": round(time.monotonic() - started),
        "faults": dict(faults.injected),
        "units": len(work.ledger.tenants),
        "committed": len(work.ledger.committed),
        "in doubt": len(work.ledger.in_doubt),
        "errors": dict(work.errors.most_common()),
        "unclear": len(work.unclear),
        **audit._asdict(),
        **left._asdict(),
    }
    for error in work.unclear[:5]:
        print("unclear:", error, file=sys.stderr)
    print(", ".join(f"{name} {value}" for name, value in books.items()))
    return int(any((*audit, *left, work.unclear)))


def main() -> int:
    parser = make_parser(__doc__, seconds=600)
    parser.add_argument("--units", type=int, default=100_000)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    for name in ("sqlalchemy.pool", "psycopg"):  # they tell of each connection that breaks
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with restartable() as postgres:
        return asyncio.run(soak(postgres, options))


if __name__ == "__main__":
    sys.exit(main())
