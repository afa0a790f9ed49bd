"""Whatever breaks around a scoped unit: clear errors, nothing foreign, nothing lost or left."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import socket
import subprocess
import sys
import warnings
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError, SAWarning

from harness.faults import (
    KILL,
    STAGES,
    WRITE,
    Audit,
    Cancelling,
    Ledger,
    Left,
    is_clear,
    left_behind,
    unit,
)
from harness.proxy import Proxy, proxied
from harness.servers import run_sql
from harness.tenants import APP_PASSWORD, World, new_world, tenant_in_force, visible
from mgf.sqlalchemy import (
    _carrier,
    create_engine,
    create_sessionmaker,
    tenant_scope,
    tenant_session,
)
from mgf.sqlalchemy.errors import is_transient, sqlstate
from mgf.sqlalchemy.testing import TemporaryPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
    from uuid import UUID

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

# Three statements and a commit: each makes a unit suspend at least once.
SUSPENSIONS = len(STAGES) + 4
# Far more suspensions than a unit has: cancelling would never have let it end.
MANY = 300
SLEEP = text("SELECT pg_sleep(30)")
ASLEEP = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event = 'PgSleep'
"""

BACKENDS = """
    SELECT pid FROM pg_stat_activity WHERE usename = 'app' AND datname = current_database()
"""


@pytest.fixture(scope="module")
def tenants_database(postgres_url: URL) -> URL:
    """On the default server alone: what breaks here is on this side of the wire."""
    return asyncio.run(new_world(postgres_url))


async def outcome(work: Awaitable[Any]) -> BaseException | None:
    """Run work in a task of its own, and return what it raised."""

    async def run() -> None:
        await work

    task = asyncio.create_task(run())
    await asyncio.wait({task})
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def until(is_so: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(20):
        while not await is_so():  # noqa: ASYNC110 - only the database knows
            await asyncio.sleep(0.01)


@dataclass
class Service:
    """An application's pool, and the books of its units."""

    world: World
    engine: AsyncEngine
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def sessionmaker(self) -> async_sessionmaker[AsyncSession]:
        return create_sessionmaker(self.engine)

    def unit(self, tenant: UUID, *at_stage: Callable[[str], Awaitable[None]]) -> Any:
        return unit(self.sessionmaker, tenant, self.ledger, *at_stage)

    async def error_of(self, work: Awaitable[Any]) -> BaseException:
        """Run work that must fail, in a task of its own; what it raised must be clear."""
        error = await outcome(work)
        assert error is not None, "nothing failed"
        assert is_clear(error), repr(error)
        return error

    async def assert_whole(self) -> None:
        """Nothing is left, what comes next succeeds, and the books agree with the database."""
        assert await left_behind(self.engine, self.world.owner) == Left(0, 0)
        async with self.engine.connect() as connection:
            assert await tenant_in_force(connection) is None
        for tenant in (self.world.b, self.world.a):
            await self.unit(tenant)
        assert await left_behind(self.engine, self.world.owner) == Left(0, 0)
        assert await self.ledger.audit(self.world.owner) == Audit(0, 0, 0, 0)


@pytest.fixture
async def service(engine: AsyncEngine, world: World) -> Service:
    """One connection, which has served before."""
    service = Service(world, engine)
    await service.unit(world.b)
    return service


@pytest.fixture
async def proxy(world: World) -> AsyncGenerator[Proxy]:
    async with proxied(world.app) as proxy:
        yield proxy


@pytest.fixture
async def behind_proxy(proxy: Proxy, world: World) -> AsyncGenerator[Service]:
    """As `service`, over a network that can fail."""
    engine = create_engine(proxy.url, pool_size=1, max_overflow=0, pool_timeout=5)
    service = Service(world, engine)
    await service.unit(world.b)
    yield service
    await engine.dispose()


def at(stage: str, fault: Callable[[], Awaitable[object]]) -> Callable[[str], Awaitable[None]]:
    """Return what meets a unit with a fault when it comes to a stage, once."""
    todo = [stage]

    async def meet(now: str) -> None:
        if now in todo:
            todo.remove(now)
            await fault()

    return meet


async def in_flight(service: Service, fault: Callable[[], Awaitable[object]]) -> BaseException:
    """Return what a unit raises that meets the fault while its statement runs."""
    running = asyncio.Event()

    async def sleeps() -> None:
        async with tenant_scope(service.sessionmaker, service.world.a) as session:
            await session.connection()
            running.set()
            await session.execute(SLEEP)

    async def breaks() -> None:
        await running.wait()
        await until(lambda: service.world.truth(ASLEEP))
        await fault()

    error, _ = await asyncio.gather(service.error_of(sleeps()), breaks())
    return error


# --- killed backends ---

# Where no connection is in use, or a transaction has not reached the server yet.
UNHARMED = {"entered", "committed", "left"}


@pytest.mark.parametrize("stage", STAGES)
async def test_a_backend_killed_between_statements(service: Service, stage: str) -> None:
    meet = at(stage, lambda: service.world.truth(KILL))
    work = service.unit(service.world.a, meet)
    if stage in UNHARMED:
        await work
    else:
        assert is_transient(await service.error_of(work))
    await service.assert_whole()


async def test_a_backend_killed_under_a_statement(service: Service) -> None:
    error = await in_flight(service, lambda: service.world.truth(KILL))
    assert is_transient(error)
    await service.assert_whole()


async def test_a_kill_ends_the_transactions_in_progress_and_no_more(world: World) -> None:
    """Six connections, four of them in a unit: after four errors all goes on at once."""
    engine = create_engine(world.app, pool_size=6, max_overflow=0)
    service = Service(world, engine)
    for busy in (6, 4):
        barrier = asyncio.Barrier(busy)

        async def meet(barrier: asyncio.Barrier = barrier) -> None:
            if await barrier.wait() == 0 and barrier.parties == 4:
                await world.truth(KILL)
            await barrier.wait()

        units = (service.unit(world.a, at("written", meet)) for _ in range(busy))
        errors = await asyncio.gather(*map(outcome, units))
    assert [(error is not None) and is_clear(error) for error in errors] == [True] * 4
    await asyncio.gather(*(service.unit(world.b) for _ in range(8)))
    await service.assert_whole()
    await engine.dispose()


# --- the server goes and comes back ---


@dataclass
class OwnServer:
    """A server that may be stopped, with its data kept and on the same port."""

    postgres: TemporaryPostgres

    async def stop(self) -> None:
        await asyncio.to_thread(self.postgres.stop)

    async def start(self) -> None:
        await asyncio.to_thread(self.postgres.start)

    async def restart(self) -> None:
        await self.stop()
        await self.start()


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with TemporaryPostgres(data_dir=folder / "data", port=port) as postgres:
        yield OwnServer(postgres)


@pytest.fixture
async def served(own_server: OwnServer, driver: str) -> AsyncGenerator[Service]:
    owner = await new_world(own_server.postgres.url)
    app = owner.set(drivername=f"postgresql+{driver}", username="app", password=APP_PASSWORD)
    engine = create_engine(app, pool_size=1, max_overflow=0, pool_timeout=5)
    service = Service(await World(owner, app).seed(), engine)
    await service.unit(service.world.b)
    yield service
    await engine.dispose()


@pytest.mark.parametrize("stage", ["entered", "written", "committed"])
async def test_a_server_restarted_in_a_unit(
    served: Service, own_server: OwnServer, stage: str
) -> None:
    work = served.unit(served.world.a, at(stage, own_server.restart))
    if stage in UNHARMED:
        await work
    else:
        assert is_transient(await served.error_of(work))
    await served.assert_whole()


async def test_a_server_that_is_down_is_one_clear_error_each_time(
    served: Service, own_server: OwnServer
) -> None:
    await own_server.stop()
    try:
        for _ in range(3):
            assert is_transient(await served.error_of(served.unit(served.world.a)))
    finally:
        await own_server.start()
    await served.assert_whole()


async def test_a_server_that_crashed_keeps_what_was_committed(served: Service) -> None:
    """The end of one backend by SIGKILL makes PostgreSQL end all others and recover."""

    async def crash() -> None:
        (pid,) = await served.world.truth(
            "SELECT pid FROM pg_stat_activity "
            "WHERE usename = 'app' AND datname = current_database()"
        )
        os.kill(pid, signal.SIGKILL)

    assert is_transient(await served.error_of(served.unit(served.world.a, at("written", crash))))

    async def has_recovered() -> bool:
        error = await outcome(run_sql(served.world.owner, "SELECT 1"))
        assert error is None or is_transient(error), repr(error)
        return error is None

    await until(has_recovered)
    await served.assert_whole()


@pytest.fixture(scope="module")
def standby(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A database on a server that takes reads alone, as a replica does."""
    data = tmp_path_factory.mktemp("standby") / "data"
    with TemporaryPostgres(data_dir=data) as primary:
        owner = asyncio.run(new_world(primary.url))
        app = owner.set(username="app", password=APP_PASSWORD)
        world = asyncio.run(World(owner, app).seed())
    (data / "standby.signal").touch()
    with TemporaryPostgres(data_dir=data) as replica:
        world.owner = owner.set(port=replica.port)
        yield world


@pytest.mark.parametrize("scoped", [True, False])
async def test_a_begin_that_the_server_refuses(standby: World, driver: str, scoped: bool) -> None:
    """As a standby does with SERIALIZABLE. The connection is alive, and must not stay confused."""
    app = standby.app.set(drivername=f"postgresql+{driver}", port=standby.owner.port)
    engine = create_engine(app, pool_size=1, max_overflow=0)
    sessionmaker = create_sessionmaker(engine)
    serializable = {"isolation_level": "SERIALIZABLE"}
    async with tenant_scope(sessionmaker, standby.a) as session:
        assert await visible(session) == ["a1", "a2"]
    async with sessionmaker() as session, AsyncExitStack() as scope:
        if scoped:
            await scope.enter_async_context(tenant_session(session, standby.a))
        with pytest.raises(DBAPIError) as refused:
            await session.connection(execution_options=serializable)
            await visible(session)
    assert sqlstate(refused.value) == "0A000"
    async with tenant_scope(sessionmaker, standby.b) as session:
        assert await visible(session) == ["b1", "b2"]
    assert await left_behind(engine, standby.owner) == Left(0, 0)
    await engine.dispose()


# --- the network ---


async def _cut(proxy: Proxy) -> None:
    proxy.cut()


@pytest.mark.parametrize("stage", STAGES)
async def test_a_network_that_drops_connections_between_statements(
    behind_proxy: Service, proxy: Proxy, stage: str
) -> None:
    async def cut() -> None:
        proxy.cut()
        await asyncio.sleep(0.02)

    work = behind_proxy.unit(behind_proxy.world.a, at(stage, cut))
    if stage in UNHARMED:
        await work
    else:
        assert is_transient(await behind_proxy.error_of(work))
    await behind_proxy.assert_whole()


async def test_a_network_that_drops_the_connection_under_a_statement(
    behind_proxy: Service, proxy: Proxy
) -> None:
    assert is_transient(await in_flight(behind_proxy, lambda: _cut(proxy)))
    # The server learns of it when it has something to say.
    await behind_proxy.world.truth(KILL)
    await behind_proxy.assert_whole()


async def test_a_commit_whose_answer_was_lost_is_an_error_and_may_have_happened(
    behind_proxy: Service, proxy: Proxy
) -> None:
    service = behind_proxy

    async def withhold() -> None:
        proxy.withhold_answers()

    async def is_committed() -> bool:
        return len(await service.world.notes(service.world.a)) == 3

    async def cut_when_committed() -> None:
        await until(is_committed)
        proxy.cut()

    error, _ = await asyncio.gather(
        service.error_of(service.unit(service.world.a, at("read", withhold))),
        cut_when_committed(),
    )
    assert is_transient(error)
    assert len(service.ledger.in_doubt) == 1
    await service.assert_whole()


@pytest.mark.parametrize("how", [Proxy.swallow, Proxy.swallow_all], ids=["it", "all"])
async def test_a_network_that_swallows_everything_under_a_statement(
    behind_proxy: Service, proxy: Proxy, how: Callable[[Proxy], None]
) -> None:
    """The time limit is the caller's: neither driver has one unless it is asked for.

    On that connection alone, or also on the one that asks the server to cancel the statement.
    """
    service = behind_proxy

    async def swallow() -> None:
        how(proxy)

    async def limited() -> None:
        async with asyncio.timeout(0.2):
            await service.unit(service.world.a, at("written", swallow))

    async with asyncio.timeout(30):
        error = await service.error_of(limited())
    assert isinstance(error, TimeoutError)
    proxy.cut()  # else the server would wait for as long as TCP does
    await service.assert_whole()


@pytest.mark.parametrize("driver", ["asyncpg"])  # psycopg waits for as long as TCP does
@pytest.mark.parametrize("how", [Proxy.swallow, Proxy.swallow_all], ids=["it", "all"])
async def test_a_network_that_swallows_everything_at_the_end_of_a_block(
    behind_proxy: Service,
    proxy: Proxy,
    how: Callable[[Proxy], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SQLAlchemy rolls back in a task of its own, which the caller's time limit does not reach."""
    monkeypatch.setattr(_carrier, "_ROLLBACK_TIMEOUT", 0.2)
    service = behind_proxy

    async def swallow() -> None:
        how(proxy)

    async with asyncio.timeout(30):
        work = service.unit(service.world.a, at("read again", swallow))
        assert isinstance(await service.error_of(work), TimeoutError)
    proxy.cut()
    await service.assert_whole()


async def test_a_network_that_swallows_everything_at_rest(
    behind_proxy: Service, proxy: Proxy
) -> None:
    engine = create_engine(proxy.url, pool_size=1, max_overflow=0, pool_ping_idle=0)
    service = Service(behind_proxy.world, engine)
    await service.unit(service.world.b)
    proxy.swallow()
    await service.unit(service.world.a)
    proxy.cut()
    await service.assert_whole()
    await engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg"])  # the other one has no such limit
async def test_a_begin_that_is_answered_after_its_time_limit(world: World, proxy: Proxy) -> None:
    """The server is in a transaction of the tenant's then, and asyncpg in none that it knows."""
    options = {"command_timeout": 0.2}
    engine = create_engine(proxy.url, pool_size=1, max_overflow=0, connect_args=options)
    service = Service(world, engine)
    await service.unit(world.b)

    async def hold() -> None:
        proxy.hold_answers()

    error = await service.error_of(service.unit(world.a, at("begun", hold)))
    assert isinstance(error, TimeoutError)
    proxy.release_answers()
    await service.assert_whole()
    await engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg"])
async def test_a_driver_that_takes_no_end_to_close_a_connection(world: World) -> None:
    """asyncpg before 0.32 does so, where a cancelled statement was never answered."""

    class Endless(asyncpg.Connection):  # type: ignore[misc] # ships no types
        async def close(self, **options: Any) -> None:
            try:
                await (asyncio.Event().wait() if options["timeout"] else asyncio.sleep(0))
            finally:
                self.terminate()

    options = {"connection_class": Endless}
    engine = create_engine(world.app, pool_size=1, max_overflow=0, connect_args=options)
    service = Service(world, engine)

    async def limited() -> None:
        async with asyncio.timeout(0.2), tenant_scope(service.sessionmaker, world.a) as session:
            await session.execute(SLEEP)

    async with asyncio.timeout(10):
        assert isinstance(await service.error_of(limited()), TimeoutError)
    await service.assert_whole()
    await engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg"])
async def test_a_connection_lost_while_it_is_made_is_one_clear_error(world: World) -> None:
    """SQLAlchemy prepares each new connection, and would let asyncpg's own errors pass."""

    class Lost(asyncpg.Connection):  # type: ignore[misc] # ships no types
        async def set_type_codec(self, *args: Any, **options: Any) -> None:
            self.terminate()
            await super().set_type_codec(*args, **options)

    engine = create_engine(world.app, connect_args={"connection_class": Lost})
    service = Service(world, engine)
    error = await service.error_of(service.unit(world.a))
    assert isinstance(error, OperationalError)
    assert sqlstate(error) == "08006"
    assert await left_behind(engine, world.owner) == Left(0, 0)


async def test_a_session_closed_before_its_first_statement(service: Service) -> None:
    """BEGIN, which was to take the tenant along, is not sent; the scope goes on."""
    session = service.sessionmaker()
    async with tenant_session(session, service.world.a):
        await session.connection()
        await session.close()
        await service.assert_whole()


# --- cancellation ---


async def pause(_stage: str) -> None:
    """Make a unit suspend between its statements too."""
    await asyncio.sleep(0)


async def _cancelled_at_each_point(service: Service, *, again: bool, cold: bool = False) -> int:
    """Run units, the n-th of which is cancelled at its n-th suspension, until one is not."""
    for point in range(MANY):
        if cold:
            await service.engine.dispose()
        work = Cancelling(service.unit(service.world.a, pause), point, again=again)
        error = await outcome(work)
        assert error is None or isinstance(error, asyncio.CancelledError), (point, repr(error))
        assert work.was_reached or error is None
        await service.assert_whole()
        if not work.was_reached:
            return point
    raise AssertionError("cancelling never ended")


@pytest.mark.parametrize("again", [False, True], ids=["once", "at each await"])
async def test_cancelled_at_every_await(service: Service, again: bool) -> None:
    assert await _cancelled_at_each_point(service, again=again) >= SUSPENSIONS


async def test_a_scope_cancelled_as_it_is_bound_costs_its_connection(
    behind_proxy: Service, proxy: Proxy
) -> None:
    """As a statement of SQLAlchemy's does: nobody knows what the server would answer next."""
    service = behind_proxy
    before = await service.world.truth(BACKENDS)

    async def limited() -> None:
        async with asyncio.timeout(0.2), tenant_scope(service.sessionmaker, service.world.a) as s:
            proxy.hold_answers()
            await visible(s)

    async def answer_late() -> None:
        await asyncio.sleep(0.4)
        proxy.release_answers()

    error, _ = await asyncio.gather(service.error_of(limited()), answer_late())
    assert isinstance(error, TimeoutError)
    await service.assert_whole()
    assert not {*before} & {*await service.world.truth(BACKENDS)}


async def test_cancelled_at_every_await_of_a_first_connection(service: Service) -> None:
    assert await _cancelled_at_each_point(service, again=False, cold=True) > SUSPENSIONS


async def test_cancelled_at_every_await_behind_a_busy_pool(service: Service) -> None:
    """The cancelled unit waits for the connection first, and hands it on to another one."""
    for point in itertools.count():
        work = Cancelling(service.unit(service.world.a, pause), point)
        first, _, last = await asyncio.gather(
            outcome(service.unit(service.world.b)),
            outcome(work),
            outcome(service.unit(service.world.b)),
        )
        assert (first, last) == (None, None), point
        if not work.was_reached:
            break
        assert point < MANY
    await service.assert_whole()


# --- exhaustion ---


async def test_an_exhausted_pool_is_one_clear_error(world: World) -> None:
    engine = create_engine(world.app, pool_size=1, max_overflow=0, pool_timeout=0.1)
    service = Service(world, engine)

    async def starve() -> None:
        assert is_transient(await service.error_of(service.unit(world.b)))

    await service.unit(world.a, at("written", starve))
    await service.assert_whole()
    await engine.dispose()


async def test_a_server_without_a_free_connection_is_one_clear_error(
    world: World, driver: str
) -> None:
    engine = create_engine(world.app, pool_size=2, max_overflow=0)
    service = Service(world, engine)
    limit = f'ALTER DATABASE "{world.owner.database}" CONNECTION LIMIT'

    async def starve() -> None:
        error = await outcome(service.unit(world.b))
        assert isinstance(error, OperationalError)
        # psycopg has no SQLSTATE for a connection that was refused.
        assert sqlstate(error) == ("53300" if driver == "asyncpg" else None)

    await run_sql(world.owner, f"{limit} 1")
    try:
        await service.unit(world.a, at("written", starve))
    finally:
        await run_sql(world.owner, f"{limit} -1")
    await service.assert_whole()
    await engine.dispose()


# --- the loop ends ---


@pytest.fixture
def between_loops(world: World) -> Iterator[Service]:
    """To be used by one loop after another, the first of which is closed by then.

    asyncpg cannot close a transport without its loop: that falls to the garbage collector.
    """
    service = Service(world, create_engine(world.app, pool_size=1, max_overflow=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield service
        asyncio.run(service.engine.dispose())
        gc.collect()


def test_a_loop_that_ends_by_cancelling_a_unit(between_loops: Service) -> None:
    service = between_loops

    async def leave_behind() -> None:
        reached = asyncio.Event()

        async def stay() -> None:
            reached.set()
            await asyncio.Event().wait()

        tasks.append(asyncio.create_task(service.unit(service.world.a, at("written", stay))))
        await reached.wait()

    tasks: list[asyncio.Task[None]] = []
    asyncio.run(leave_behind())
    assert tasks[0].cancelled()
    asyncio.run(service.assert_whole())


def test_a_loop_that_was_closed_with_a_connection_out(between_loops: Service) -> None:
    service = between_loops

    async def leave_behind() -> None:
        session = service.sessionmaker()
        sessions.append(session)
        scope = tenant_session(session, service.world.a)
        await scope.__aenter__()
        await session.execute(WRITE, {"note": service.ledger.open(service.world.a)})

    sessions: list[AsyncSession] = []
    asyncio.run(leave_behind())
    sessions.clear()
    with pytest.warns(SAWarning, match="garbage collector"):
        gc.collect()
    asyncio.run(service.assert_whole())


# --- all at once ---


def test_a_few_seconds_of_the_soak(driver: str) -> None:
    """`--seed` names the draw that failed; the command ends with its figures."""
    command = Path(__file__).parents[1] / "benchmarks" / "soak.py"
    result = subprocess.run(
        [sys.executable, command, "--units", "2000", "--seconds", "3", "--driver", driver],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " foreign 0, unseen 0, lost 0," in result.stdout
