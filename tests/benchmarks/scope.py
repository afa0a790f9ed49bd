"""What a scoped unit takes, beside the other ways to write it.

    uv run python tests/benchmarks/scope.py [--rounds N] [--units N] [--chart FILE.svg]

A unit is checkout, BEGIN, tenant, one SELECT, COMMIT, check-in. The ways of ways.py run in turns,
each in a process of its own, against one server: over loopback, and through a proxy that adds the
given latency. Absolute times are this machine's; the ratios, made turn by turn, are what to
compare. The processor's time is the client's own, and steadier than the clock's on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import sys
import threading
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.ways import WAYS

from harness.tenants import APP_PASSWORD, World, new_world
from mgf.sqlalchemy.testing import TemporaryPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import URL

PLAIN, OURS, IN_TWO_STEPS, BY_HAND, _ = WAYS


@dataclass
class Times:
    """Microseconds of one unit of one way, one figure for each turn."""

    wall: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])


Result = dict[str, Times]


class Worker:
    """A process that runs units of one way."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout

    def tell(self, line: str) -> None:
        self._stdin.write(f"{line}\n".encode())

    async def run(self, units: int) -> tuple[float, float]:
        """Run units; return the microseconds of one, by the clock and of the processor."""
        self.tell(str(units))
        wall, cpu = (await self._stdout.readline()).split()
        return float(wall) / units * 1e6, float(cpu) / units * 1e6


@asynccontextmanager
async def worker(way: str, url: URL, tenants: list[str]) -> AsyncGenerator[Worker]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("ways.py"))),
        *(way, url.render_as_string(hide_password=False)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        running = Worker(process)
        running.tell(json.dumps(tenants))
        yield running
    finally:
        process.kill()
        await process.wait()


async def measure(url: URL, tenants: list[str], rounds: int, units: int) -> Result:
    result: Result = {way: Times() for way in WAYS}
    async with AsyncExitStack() as stack:
        workers = {way: await stack.enter_async_context(worker(way, url, tenants)) for way in WAYS}
        for running in workers.values():
            await running.run(200)  # fill the caches of statements and of the interpreter
        for _ in range(rounds):
            for way, running in workers.items():
                wall, cpu = await running.run(units)
                result[way].wall.append(wall)
                result[way].cpu.append(cpu)
    return result


def ratios(times: list[float], base: list[float]) -> list[float]:
    """Turn by turn, so that a machine whose speed drifts does not show."""
    return [one / other for one, other in zip(times, base, strict=True)]


def lines(result: Result) -> list[str]:
    table = [f"  {'':39} clock    of plain (quartiles)  processor  of plain"]
    plain = result[PLAIN]
    for way, times in result.items():
        wall, cpu = ratios(times.wall, plain.wall), ratios(times.cpu, plain.cpu)
        low, middle, high = statistics.quantiles(wall, n=4)
        table.append(
            f"  {way:36} {statistics.median(times.wall):6.0f} us "
            f"{middle:7.2f} ({low:.2f} to {high:.2f}) "
            f"{statistics.median(times.cpu):7.0f} us {statistics.median(cpu):9.2f}"
        )
    faster = statistics.median(ratios(result[BY_HAND].wall, result[OURS].wall))
    return [*table, f"  {OURS} is {faster:.2f} times as fast as the way by hand"]


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


def serve_delayed(host: str, port: int, delay: float) -> None:
    """Pass on what comes in, each way after a delay.

    With threads: an event loop's timers are only good to a millisecond.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            client, _ = server.accept()
            upstream = socket.create_connection((host, port))
            for one, other in ((client, upstream), (upstream, client)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_pass_on, args=(one, other, delay), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, delay: float) -> None:
    while data := source.recv(65536):
        time.sleep(delay)
        target.sendall(data)


async def benchmark(server: URL, rounds: int, units: int) -> dict[str, Result]:
    database = await new_world(server)
    app = database.set(drivername="postgresql+asyncpg", username="app", password=APP_PASSWORD)
    tenants = [str((await World(database, app).seed()).a) for _ in range(20)]
    tenants += [str(uuid4()) for _ in range(980)]
    results = {"loopback": await measure(app, tenants, rounds, units)}
    async with delayed(app, 0.001) as far:
        results["1 ms of latency"] = await measure(far, tenants, rounds, units)
    return results


def chart(results: dict[str, Result]) -> str:
    """Draw the ratios as bars, in SVG without a library."""
    rows = [
        (place, way, statistics.median(ratios(times.wall, result[PLAIN].wall)))
        for place, result in results.items()
        for way, times in result.items()
    ]
    scale = 380 / max(ratio for *_, ratio in rows)
    parts: list[str] = []
    y = 20
    previous = ""
    for place, way, ratio in rows:
        if place != previous:
            parts.append(f'<text x="10" y="{y + 14}" font-weight="bold">{place}</text>')
            previous, y = place, y + 24
        colour = "#2b6cb0" if way in (OURS, IN_TWO_STEPS) else "#a0aec0"
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
        serve_delayed(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="turns of each way")
    parser.add_argument("--units", type=int, default=50, help="units of each way in a turn")
    parser.add_argument("--chart", type=Path, help="write a chart of the ratios, as SVG")
    options = parser.parse_args()
    with TemporaryPostgres() as server:
        results = asyncio.run(benchmark(server.url, options.rounds, options.units))
    for place, result in results.items():
        print(f"{place}, medians of {options.rounds} turns of {options.units} units:")
        print("\n".join(lines(result)))
    if options.chart:
        options.chart.write_text(chart(results))


if __name__ == "__main__":
    main()
