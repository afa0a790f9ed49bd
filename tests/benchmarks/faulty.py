"""What the commands have in common that break a server at random while they use it."""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import tempfile
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.faults import KILL, KILL_ONE
from harness.servers import run_sql
from mgf.sqlalchemy.testing import TemporaryPostgres

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator, Mapping

    from sqlalchemy import URL


def make_parser(description: str | None, *, seconds: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--driver", choices=("asyncpg", "psycopg"), default="asyncpg")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    return parser


@contextmanager
def restartable() -> Generator[TemporaryPostgres]:
    """Start a server that has the same port whenever it is started again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        tempfile.TemporaryDirectory() as folder,
        TemporaryPostgres(data_dir=Path(folder) / "data", port=port) as postgres,
    ):
        yield postgres


@dataclass
class Faults:
    """What breaks, each as often as its weight says."""

    postgres: TemporaryPostgres
    owner: URL
    dice: random.Random
    injected: Counter[str] = field(default_factory=Counter)
    # Seconds between two faults.
    peace: ClassVar[tuple[float, float]] = (0.2, 1.0)
    weights: ClassVar[Mapping[str, int]] = {"kill_one": 20, "kill_all": 4, "restart": 1}

    async def meet(self, work: Awaitable[object]) -> None:
        """Break things until the work is done."""
        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            # Not cancelled: a server that is being restarted has to come back.
            group.create_task(self._inject(is_over))
            await work
            is_over.set()

    async def _inject(self, is_over: asyncio.Event) -> None:
        while not is_over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(is_over.wait(), self.dice.uniform(*self.peace))
            (name,) = self.dice.choices(list(self.weights), list(self.weights.values()))
            await getattr(self, name)()
            self.injected[name] += 1

    async def kill_one(self) -> None:
        await run_sql(self.owner, KILL_ONE)

    async def kill_all(self) -> None:
        await run_sql(self.owner, KILL)

    async def restart(self) -> None:
        await asyncio.to_thread(self.postgres.stop)
        await asyncio.to_thread(self.postgres.start)
