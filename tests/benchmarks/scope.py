"""What a scoped unit takes, beside the other ways to write it.

    uv run python tests/benchmarks/scope.py [--rounds N] [--units N] [--chart FILE.svg]

A unit is checkout, BEGIN, tenant, one SELECT, COMMIT, check-in. The ways run interleaved, round by
round in one process, against one server: over loopback, and through a proxy process that delays
each direction by half of the given latency. Absolute times are this machine's; the ratios are what
to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

sys.path.insert(0, str(Path(__file__).parents[1]))

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from harness.servers import dsn, new_database
from harness.tenants import APP_PASSWORD, World, make_world
from mgf.sqlalchemy import create_engine, create_sessionmaker, tenant_scope
from mgf.sqlalchemy.testing import TemporaryPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from sqlalchemy import URL

    Unit = Callable[[UUID], Awaitable[None]]

SELECT = "SELECT note FROM invoice ORDER BY note"
PLAIN = "plain SQLAlchemy, no tenant"
BY_HAND = "SET LOCAL by hand, stock pre-ping"
OURS = "tenant_scope"
RAW = "raw asyncpg, tenant merged by hand"


@asynccontextmanager
async def ways(url: URL) -> AsyncGenerator[dict[str, Unit]]:
    raw = await asyncpg.create_pool(dsn(url), min_size=1, max_size=1)
    plain_engine = create_async_engine(url)
    by_hand_engine = create_async_engine(url, pool_pre_ping=True)
    our_engine = create_engine(url)
    plain_sessions = async_sessionmaker(plain_engine)
    by_hand_sessions = async_sessionmaker(by_hand_engine)
    our_sessions = create_sessionmaker(our_engine)

    async def run_raw(tenant: UUID) -> None:
        async with raw.acquire() as connection:
            await connection.execute(f"BEGIN; SET LOCAL app.current_tenant = '{tenant}'")
            await connection.fetch(SELECT)
            await connection.execute("COMMIT")

    async def query(session: AsyncSession) -> None:
        await session.execute(text(SELECT))
        await session.commit()

    async def run_plain(_tenant: UUID) -> None:
        async with plain_sessions() as session:
            await query(session)

    async def run_by_hand(tenant: UUID) -> None:
        async with by_hand_sessions() as session:
            await session.execute(text(f"SET LOCAL app.current_tenant = '{tenant}'"))
            await query(session)

    async def run_ours(tenant: UUID) -> None:
        async with tenant_scope(our_sessions, tenant) as session:
            await query(session)

    yield {PLAIN: run_plain, OURS: run_ours, BY_HAND: run_by_hand, RAW: run_raw}
    await raw.close()
    for engine in (plain_engine, by_hand_engine, our_engine):
        await engine.dispose()


@dataclass(frozen=True)
class Result:
    """Microseconds of one unit, one figure for each round."""

    microseconds: dict[str, list[float]]

    def ratios(self, way: str, base: str = PLAIN) -> list[float]:
        """Round by round, so that a machine whose speed drifts does not show."""
        return [
            one / other
            for one, other in zip(self.microseconds[way], self.microseconds[base], strict=True)
        ]

    def lines(self) -> list[str]:
        lines = []
        for way, times in self.microseconds.items():
            ratios = self.ratios(way)
            low, _, high = statistics.quantiles(ratios, n=4)
            lines.append(
                f"  {way:36} {statistics.median(times):8.0f} us  "
                f"{statistics.median(ratios):5.2f} of plain ({low:.2f} to {high:.2f})"
            )
        faster = statistics.median(self.ratios(BY_HAND, OURS))
        return [*lines, f"  {OURS} is {faster:.2f} times as fast as the way by hand"]


async def measure(url: URL, tenants: list[UUID], rounds: int, units: int) -> Result:
    times: dict[str, list[float]] = {}
    async with ways(url) as all_ways:
        for unit in all_ways.values():
            for tenant in tenants[:20]:
                await unit(tenant)
        for number in range(rounds):
            for way, unit in all_ways.items():
                start = time.perf_counter()
                for index in range(units):
                    await unit(tenants[(number * units + index) % len(tenants)])
                elapsed = time.perf_counter() - start
                times.setdefault(way, []).append(elapsed / units * 1e6)
    return Result(times)


async def _delay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    loop = asyncio.get_running_loop()
    while data := await reader.read(65536):
        loop.call_later(delay, writer.write, data)
    await asyncio.sleep(delay)
    writer.close()


async def serve_delayed(host: str, port: int, delay: float) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(
            _delay(reader, upstream_writer, delay), _delay(upstream_reader, writer, delay)
        )

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@asynccontextmanager
async def delayed(url: URL, seconds: float) -> AsyncGenerator[URL]:
    """A proxy in a process of its own, so that its work is not counted as the driver's."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--serve", str(url.host), str(url.port), str(seconds / 2)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield url.set(host="127.0.0.1", port=int(await process.stdout.readline()))
    finally:
        process.kill()
        await process.wait()


async def benchmark(server: URL, rounds: int, units: int) -> dict[str, Result]:
    database = await new_database(server)
    await make_world(database)
    app = database.set(drivername="postgresql+asyncpg", username="app", password=APP_PASSWORD)
    tenants = [(await World(database, app).seed()).a for _ in range(20)]
    tenants += [uuid4() for _ in range(980)]
    results = {"loopback": await measure(app, tenants, rounds, units)}
    async with delayed(app, 0.001) as far:
        results["1 ms of latency"] = await measure(far, tenants, rounds, max(units // 4, 1))
    return results


def chart(results: dict[str, Result]) -> str:
    """Draw the ratios as bars, in SVG without a library."""
    rows = [
        (place, way, statistics.median(result.ratios(way)))
        for place, result in results.items()
        for way in result.microseconds
    ]
    scale = 380 / max(ratio for *_, ratio in rows)
    parts = []
    y = 20
    previous = ""
    for place, way, ratio in rows:
        if place != previous:
            parts.append(f'<text x="10" y="{y + 14}" font-weight="bold">{place}</text>')
            previous, y = place, y + 24
        colour = "#2b6cb0" if way == OURS else "#a0aec0"
        parts.append(f'<text x="10" y="{y + 14}">{way}</text>')
        parts.append(
            f'<rect x="270" y="{y}" width="{ratio * scale:.0f}" height="18" fill="{colour}"/>'
        )
        parts.append(f'<text x="{276 + ratio * scale:.0f}" y="{y + 14}">{ratio:.2f}</text>')
        y += 24
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{y + 10}" '
        f'font-family="sans-serif" font-size="13">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(serve_delayed(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--units", type=int, default=200, help="units of each way in a round")
    parser.add_argument("--chart", type=Path, help="write a chart of the ratios, as SVG")
    options = parser.parse_args()
    with TemporaryPostgres() as server:
        results = asyncio.run(benchmark(server.url, options.rounds, options.units))
    for place, result in results.items():
        print(f"{place}, medians of {options.rounds} rounds, ratios with their quartiles:")
        print("\n".join(result.lines()))
    if options.chart:
        options.chart.write_text(chart(results))


if __name__ == "__main__":
    main()
