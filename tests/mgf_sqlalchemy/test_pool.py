"""Checkouts: live connections only, for no round trip or, after a rest, for one."""

from __future__ import annotations

import asyncio
import gc
import select
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialectAsync_psycopg
from sqlalchemy.exc import DBAPIError

from harness.proxy import Proxy, proxied
from harness.servers import run_sql
from mgf.sqlalchemy import create_engine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

KILL = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'pooled'"
)


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, postgres_url: URL) -> URL:
    return postgres_url.set(drivername=f"postgresql+{request.param}").update_query_dict(
        {"application_name": "pooled"}
    )


@pytest.fixture
async def proxy(url: URL) -> AsyncGenerator[Proxy]:
    async with proxied(url) as proxy:
        yield proxy


async def backend(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        pid: int = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        return pid


async def turnarounds(engine: AsyncEngine, proxy: Proxy) -> int:
    proxy.reset()
    await backend(engine)
    return proxy.turnarounds


async def test_a_connection_closed_by_the_server_is_replaced(url: URL, postgres_url: URL) -> None:
    engine = create_engine(url, pool_ping_idle=60)
    first = await backend(engine)
    await run_sql(postgres_url, KILL)
    assert await backend(engine) != first
    await engine.dispose()


async def test_every_connection_of_the_pool_is_checked(url: URL, postgres_url: URL) -> None:
    engine = create_engine(url, pool_ping_idle=60)
    await asyncio.gather(*(backend(engine) for _ in range(5)))
    await run_sql(postgres_url, KILL)
    await asyncio.gather(*(backend(engine) for _ in range(5)))
    await engine.dispose()


async def closed_while_the_loop_is_blocked(engine: AsyncEngine, server: URL) -> None:
    first = await backend(engine)
    with ThreadPoolExecutor() as threads:
        threads.submit(asyncio.run, run_sql(server, KILL)).result()
    assert await backend(engine) != first
    await engine.dispose()


async def test_a_closing_that_a_blocked_loop_has_not_seen_yet_is_noticed(
    url: URL, postgres_url: URL
) -> None:
    engine = create_engine(url, pool_ping_idle=60)
    await closed_while_the_loop_is_blocked(engine, postgres_url)


async def test_the_same_where_there_is_no_poll(
    url: URL, postgres_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, and where gevent has replaced it."""
    monkeypatch.delattr(select, "poll")
    engine = create_engine(url, pool_ping_idle=60)
    await closed_while_the_loop_is_blocked(engine, postgres_url)


async def test_the_same_with_a_connection_of_the_users_making(postgres_url: URL) -> None:
    """Whose socket is not known."""

    async def connect(*arguments: Any, **options: Any) -> asyncpg.Connection:
        return await asyncpg.connect(*arguments, server_settings=named, **options)

    named = {"application_name": "pooled"}
    arguments = {"async_creator_fn": connect}
    engine = create_engine(postgres_url, pool_ping_idle=60, connect_args=arguments)
    await closed_while_the_loop_is_blocked(engine, postgres_url)


async def test_a_connection_that_was_closed_at_rest_is_replaced(url: URL) -> None:
    engine = create_engine(url, pool_ping_idle=60)
    async with engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
    first = await backend(engine)
    await driver.close()
    assert await backend(engine) != first
    await engine.dispose()


class _Other(PGDialectAsync_psycopg):
    """A driver that this package knows nothing about: it has the name of none that it knows."""

    driver = "other"
    supports_statement_cache = True

    @classmethod
    def get_async_dialect_cls(cls, url: URL) -> type[_Other]:
        return cls


async def test_a_driver_that_is_not_known(postgres_url: URL) -> None:
    registry.register("postgresql.other", __name__, _Other.__name__)
    engine = create_engine(
        postgres_url.set(drivername="postgresql+other").update_query_dict(
            {"application_name": "pooled"}
        ),
        pool_ping_idle=0,
    )
    assert engine.dialect.driver == "other"
    first = await backend(engine)
    assert await backend(engine) == first
    await run_sql(postgres_url, KILL)
    assert await backend(engine) != first
    await engine.dispose()


async def test_without_pre_ping_the_first_query_fails(url: URL, postgres_url: URL) -> None:
    engine = create_engine(url, pool_pre_ping=False)
    await backend(engine)
    await run_sql(postgres_url, KILL)
    with pytest.raises(DBAPIError):
        await backend(engine)
    await engine.dispose()


async def test_a_hot_checkout_costs_no_round_trip(proxy: Proxy) -> None:
    plain = create_engine(proxy.url, pool_pre_ping=False)
    checked = create_engine(proxy.url, pool_ping_idle=60)
    for engine in (plain, checked):
        await backend(engine)
        await backend(engine)
    assert await turnarounds(checked, proxy) == await turnarounds(plain, proxy)
    await plain.dispose()
    await checked.dispose()


async def test_a_hot_checkout_takes_no_turn_of_the_event_loop(url: URL) -> None:
    engine = create_engine(url, pool_ping_idle=60)
    await backend(engine)
    checkout = engine.connect().__aenter__()
    with pytest.raises(StopIteration) as done:
        checkout.send(None)
    await done.value.value.close()
    await engine.dispose()


async def test_a_ping_after_a_rest_costs_one_round_trip(proxy: Proxy) -> None:
    plain = create_engine(proxy.url, pool_pre_ping=False)
    pinged = create_engine(proxy.url, pool_ping_idle=0)
    for engine in (plain, pinged):
        await backend(engine)
        await backend(engine)
    assert await turnarounds(pinged, proxy) == await turnarounds(plain, proxy) + 1
    await plain.dispose()
    await pinged.dispose()


async def test_a_rest_is_measured_from_the_last_use(proxy: Proxy) -> None:
    plain = create_engine(proxy.url, pool_pre_ping=False)
    pinged = create_engine(proxy.url, pool_ping_idle=0.5)
    for engine in (plain, pinged):
        await backend(engine)
    await asyncio.sleep(0.5)
    assert await turnarounds(pinged, proxy) > (unpinged := await turnarounds(plain, proxy))
    # Under load any two uses may be that far apart, but not all.
    assert min([await turnarounds(pinged, proxy) for _ in range(20)]) == unpinged
    await plain.dispose()
    await pinged.dispose()


async def test_a_black_holed_connection_is_replaced_within_seconds(proxy: Proxy) -> None:
    engine = create_engine(proxy.url, pool_ping_idle=0)
    first = await backend(engine)
    proxy.swallow()
    start = time.monotonic()
    assert await backend(engine) != first
    assert time.monotonic() - start < 4
    await engine.dispose()


async def test_a_black_hole_is_waited_for_once_not_once_per_connection(proxy: Proxy) -> None:
    engine = create_engine(proxy.url, pool_size=3, pool_ping_idle=0)
    await asyncio.gather(*(backend(engine) for _ in range(3)))
    proxy.swallow()
    start = time.monotonic()
    for _ in range(3):
        await backend(engine)
    assert time.monotonic() - start < 5
    await engine.dispose()


async def test_cancelling_a_checkout_that_pings_loses_no_connection(proxy: Proxy) -> None:
    engine = create_engine(proxy.url, pool_size=1, max_overflow=0, pool_ping_idle=0)
    await backend(engine)
    proxy.swallow()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await backend(engine)
    pool: Any = engine.pool
    assert pool.checkedout() == 0
    await backend(engine)
    await engine.dispose()


async def cancel_as_its_ping_fails(engine: AsyncEngine, proxy: Proxy) -> None:
    others = asyncio.all_tasks()
    proxy.hold_once(b"SELECT 1", answer=True)
    checkout = asyncio.create_task(backend(engine))
    await proxy.has_held.wait()
    (ping,) = asyncio.all_tasks() - others - {checkout}
    ping.add_done_callback(lambda _: checkout.cancel())
    proxy.cut()
    await asyncio.wait({checkout})
    assert checkout.cancelled()


async def test_a_ping_that_fails_as_its_checkout_is_cancelled_says_nothing(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_engine(proxy.url, pool_size=1, max_overflow=0, pool_ping_idle=0)
    await backend(engine)
    await cancel_as_its_ping_fails(engine, proxy)
    gc.collect()  # asyncio tells of an error that nobody looked at when its task goes
    assert not caplog.messages
    await engine.dispose()


async def test_a_notice_at_rest_does_not_cost_the_connection(url: URL, postgres_url: URL) -> None:
    engine = create_engine(url, pool_ping_idle=60)
    async with engine.connect() as connection:
        await connection.execute(text("LISTEN news"))
        await connection.commit()
    first = await backend(engine)
    await run_sql(postgres_url, "NOTIFY news")
    await asyncio.sleep(0.05)
    assert await backend(engine) == first
    await engine.dispose()


def test_an_engine_can_be_used_by_one_event_loop_after_another(
    url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_engine(url, pool_size=1, max_overflow=0)

    async def twice() -> None:
        await backend(engine)
        await backend(engine)

    async def last() -> None:
        await twice()
        await engine.dispose()

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(twice())
        second.run(last())
    assert not caplog.records


async def test_the_validation_survives_dispose(url: URL, postgres_url: URL) -> None:
    engine = create_engine(url, pool_ping_idle=60)
    await engine.dispose()
    first = await backend(engine)
    await run_sql(postgres_url, KILL)
    assert await backend(engine) != first
    await engine.dispose()
