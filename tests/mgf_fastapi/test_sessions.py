"""Sessions of requests and of work outside of them: when they commit, end, and are found."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import DependencyScopeError
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from harness.proxy import proxied
from harness.serving import asking, make_app, serving
from harness.tenants import Invoice, World, visible
from mgf.common.exceptions import AppConfigError
from mgf.fastapi.db import (
    SessionDep,
    SessionEndedError,
    StreamingSessionDep,
    TransactionAbortedError,
    TransactionDep,
    Trouble,
    committing,
    get_session,
    get_session_for,
    get_transaction,
    session_scope,
    setup_db,
    trouble_of,
)
from mgf.sqlalchemy import current_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from sqlalchemy import URL

ONCE = text("INSERT INTO once VALUES (1)")
router = APIRouter()


@pytest.fixture
async def client(world: World) -> AsyncGenerator[httpx.AsyncClient]:
    async with serving(make_app(router, world.app)) as client:
        yield client


async def rows(world: World) -> int:
    count: int = (await world.truth("SELECT count(*) FROM once"))[0]
    return count


def logged_error(caplog: pytest.LogCaptureFixture) -> BaseException | None:
    (logged,) = [record.exc_info for record in caplog.records if record.exc_info]
    return logged[1]


@router.post("/ok")
async def write(session: TransactionDep) -> str:
    await session.execute(ONCE)
    return "written"


@router.get("/select")
async def select(session: TransactionDep) -> None:
    await session.execute(text("SELECT 1"))


@router.get("/select/by-hand")
async def select_by_hand(session: SessionDep) -> None:
    await session.execute(text("SELECT 1"))
    await session.commit()


@router.post("/twice")
async def write_twice(session: TransactionDep) -> str:
    await session.execute(ONCE)
    await session.execute(ONCE)
    return "written"


@router.post("/twice/by-hand")
async def write_twice_by_hand(session: SessionDep) -> str:
    await session.execute(ONCE)
    await session.execute(ONCE)
    await session.commit()
    return "written"


async def test_a_transaction_is_committed_before_the_response(
    client: httpx.AsyncClient, world: World
) -> None:
    response = await client.post("/ok")
    assert (response.json(), await rows(world)) == ("written", 1)


@pytest.mark.parametrize("path", ["/twice", "/twice/by-hand"])
async def test_a_commit_that_fails_is_a_500(
    client: httpx.AsyncClient, world: World, path: str
) -> None:
    response = await client.post(path)
    assert (response.status_code, await rows(world)) == (500, 0)


@router.post("/caught")
async def catch_the_error(session: TransactionDep) -> str:
    await session.execute(ONCE)
    with suppress(DBAPIError):
        await session.execute(text("SELECT 1/0"))
    return "written"


@router.post("/caught/by-hand")
async def catch_the_error_and_commit(session: SessionDep) -> str:
    await session.execute(ONCE)
    with suppress(DBAPIError):
        await session.execute(text("SELECT 1/0"))
    await session.commit()
    return "written"


@router.post("/nested")
async def catch_the_error_of_a_savepoint(session: TransactionDep) -> str:
    await session.execute(ONCE)
    with suppress(DBAPIError):
        async with session.begin_nested():
            await session.execute(text("SELECT 1/0"))
    return "written"


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("path", ["/caught", "/caught/by-hand"])
async def test_a_commit_that_postgres_turns_into_a_rollback_is_a_500(
    world: World, caplog: pytest.LogCaptureFixture, path: str, driver: str
) -> None:
    app = make_app(router, world.app.set(drivername=f"postgresql+{driver}"))
    async with serving(app) as client:
        response = await client.post(path)
        assert (response.status_code, await rows(world)) == (500, 0)
        # The connection is as good as before.
        assert (await client.post("/ok")).status_code == 200
    assert isinstance(error := logged_error(caplog), TransactionAbortedError)
    assert "begin_nested" in str(error)


async def test_after_a_refused_commit_the_session_goes_on(world: World) -> None:
    app = FastAPI()
    async with setup_db(app, database_url=world.app), session_scope(app) as session:
        with suppress(DBAPIError):
            await session.execute(text("SELECT 1/0"))
        with pytest.raises(TransactionAbortedError):
            await session.commit()
        await session.rollback()  # as after any commit that failed
        await session.execute(ONCE)
        await session.commit()
    assert await rows(world) == 1


async def test_a_refused_commit_leaves_no_transaction_behind(world: World) -> None:
    app = FastAPI()
    async with setup_db(app, database_url=world.app, pool_size=1, max_overflow=0):
        for begin in (app.state.mgf_db_engine.begin, app.state.mgf_db_sessionmaker.begin):
            with pytest.raises(TransactionAbortedError):
                async with begin() as work:
                    with suppress(DBAPIError):
                        await work.execute(text("SELECT 1/0"))
            async with begin() as work:
                await work.execute(text("SELECT 1"))


async def test_a_connection_that_is_lost_before_its_commit_is_no_aborted_transaction(
    world: World,
) -> None:
    app = FastAPI()
    async with setup_db(app, database_url=world.app), session_scope(app) as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        with suppress(DBAPIError):
            await session.execute(text("SELECT 1/0"))
        await world.truth("SELECT pg_terminate_backend($1, 5000)", pid)
        with pytest.raises(DBAPIError) as lost:
            await session.commit()
    assert trouble_of(lost.value) is Trouble.UNAVAILABLE


async def test_an_error_that_a_savepoint_undid_does_not_keep_the_rest_from_being_committed(
    client: httpx.AsyncClient, world: World
) -> None:
    response = await client.post("/nested")
    assert (response.status_code, await rows(world)) == (200, 1)


async def test_a_transaction_costs_no_statement_of_its_own(world: World) -> None:
    app = FastAPI()
    app.include_router(router)
    async with (
        proxied(world.app) as proxy,
        setup_db(app, database_url=proxy.url),
        asking(app) as client,
    ):
        counts: list[int] = []
        for path in ("/select/by-hand", "/select"):
            await client.get(path)  # connects, and prepares its statement
            proxy.reset()
            await client.get(path)
            counts.append(proxy.turnarounds)
        assert counts[0] == counts[1] > 0


class TeapotError(Exception):
    pass


@router.post("/fails/{how}")
async def fail(how: str, session: TransactionDep) -> int:
    await session.execute(ONCE)
    if how == "HTTPException":
        raise HTTPException(409)
    if how == "exception":
        raise TeapotError
    return how  # type: ignore[return-value] # an answer that does not fit its model


@pytest.mark.parametrize(
    ("how", "status"), [("HTTPException", 409), ("exception", 500), ("answer", 500)]
)
async def test_a_transaction_is_rolled_back_by(
    client: httpx.AsyncClient, world: World, how: str, status: int
) -> None:
    response = await client.post(f"/fails/{how}")
    assert (response.status_code, await rows(world)) == (status, 0)
    assert (await client.post("/ok")).status_code == 200


@router.post("/lost")
async def lose_the_connection(session: TransactionDep) -> int:
    pid: int = (await session.scalars(text("SELECT pg_backend_pid()"))).one()
    await kill[0](pid)
    raise HTTPException(409)


kill: list[Callable[[int], Awaitable[object]]] = []


async def test_an_exception_is_told_also_when_the_connection_is_lost(
    client: httpx.AsyncClient, world: World
) -> None:
    kill[:] = [lambda pid: world.truth("SELECT pg_terminate_backend($1)", pid)]
    assert (await client.post("/lost")).status_code == 409
    assert (await client.post("/ok")).status_code == 200


async def test_a_session_that_outlives_the_request_is_rolled_back_as_well(world: World) -> None:
    app = FastAPI()
    app.include_router(router)
    async with (
        setup_db(app, database_url=world.app),
        session_scope(app) as shared,
        asking(app) as client,
    ):
        app.dependency_overrides[get_session] = lambda: shared
        assert (await client.post("/fails/HTTPException")).status_code == 409
        assert not shared.in_transaction()


async def refuse_at_the_end(_session: SessionDep) -> AsyncGenerator[None]:
    yield
    raise HTTPException(409)


@router.post("/refused-at-the-end")
async def refused_at_the_end(
    session: TransactionDep, _: Annotated[None, Depends(refuse_at_the_end, scope="function")]
) -> None:
    await session.execute(ONCE)


async def test_a_transaction_is_rolled_back_by_the_end_of_a_later_dependency(
    client: httpx.AsyncClient, world: World
) -> None:
    response = await client.post("/refused-at-the-end")
    assert (response.status_code, await rows(world)) == (409, 0)


@router.post("/returned")
async def return_an_error(session: TransactionDep) -> JSONResponse:
    await session.execute(ONCE)
    return JSONResponse({}, 409)


async def test_an_error_that_is_returned_commits(client: httpx.AsyncClient, world: World) -> None:
    response = await client.post("/returned")
    assert (response.status_code, await rows(world)) == (409, 1)


async def read_before(session: SessionDep) -> AsyncSession:
    await session.execute(text("SELECT 1"))
    return session


@router.post("/read-before")
async def write_after_reading(
    before: Annotated[AsyncSession, Depends(read_before)], session: TransactionDep
) -> bool:
    await session.execute(ONCE)
    return before is session


async def test_a_transaction_takes_in_what_dependencies_did_before(
    client: httpx.AsyncClient, world: World
) -> None:
    response = await client.post("/read-before")
    assert (response.json(), await rows(world)) == (True, 1)


def test_a_transaction_that_would_end_after_the_response_is_refused() -> None:
    app = FastAPI()
    with pytest.raises(DependencyScopeError):

        @app.post("/")
        async def _(session: Annotated[AsyncSession, Depends(get_transaction)]) -> None: ...


def test_the_transaction_of_a_session_is_one_dependency() -> None:
    assert committing(get_session) is get_transaction


@router.get("/stream")
async def stream(session: StreamingSessionDep) -> StreamingResponse:
    return StreamingResponse(number async for number in numbers(session))


@router.get("/stream/ended")
async def stream_from_an_ended_session(session: SessionDep) -> StreamingResponse:
    return StreamingResponse(number async for number in numbers(session))


async def numbers(session: AsyncSession) -> AsyncGenerator[str]:
    result = await session.stream_scalars(text("SELECT generate_series(1, 3)"))
    async for number in result:
        yield f"{number} "


async def test_a_streaming_session_lasts_until_the_last_row(client: httpx.AsyncClient) -> None:
    assert (await client.get("/stream")).text == "1 2 3 "


async def test_a_stream_from_an_ended_session_is_cut_and_leaves_no_connection(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get("/stream/ended")
    assert isinstance(logged_error(caplog), SessionEndedError)
    # The only connection of the pool is free.
    assert (await client.post("/ok")).status_code == 200


@pytest.mark.parametrize("scoped", [False, True])
async def test_an_ended_session_refuses_every_use_of_a_connection(
    world: World, scoped: bool
) -> None:
    app = FastAPI()
    async with setup_db(app, database_url=world.app, require_tenant=True):
        async with session_scope(app, world.a) if scoped else session_scope(app) as session:
            await session.execute(text("SELECT 1"))

        async def write() -> None:
            session.add(Invoice(note="late"))
            await session.commit()

        uses: list[Callable[[], Awaitable[object]]] = [
            lambda: session.execute(text("SELECT 1")),
            lambda: session.stream(text("SELECT 1")),
            lambda: session.get(Invoice, 1),
            session.connection,
            write,
        ]
        for use in uses:
            with pytest.raises(SessionEndedError, match="session_scope"):
                await use()
        assert app.state.mgf_db_engine.pool.checkedout() == 0


async def test_a_session_that_an_endpoint_closed_itself_goes_on() -> None:
    app = FastAPI()
    async with setup_db(app, database_url="sqlite://"), session_scope(app) as session:
        await session.close()
        assert await session.scalar(text("SELECT 1")) == 1


late: list[BaseException] = []


@router.get("/late")
async def late_use(session: SessionDep, background: BackgroundTasks) -> None:
    async def work() -> None:
        try:
            await session.execute(text("SELECT 1"))
        except SessionEndedError as exc:
            late.append(exc)

    background.add_task(work)


async def test_a_background_task_with_the_requests_session_is_told_what_to_do(
    client: httpx.AsyncClient,
) -> None:
    late.clear()
    await client.get("/late")
    await client.post("/ok")  # the task ended before, or there was no connection
    (error,) = late
    assert "session_scope(app" in str(error)


def make_parent(database_url: str | URL, *, yields_state: bool) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[Any]:
        async with setup_db(app, database_url=database_url) as state:
            yield state if yields_state else None

    sub = FastAPI()

    @sub.get("/one")
    async def one(request: Request, session: SessionDep) -> list[int]:
        async with session_scope(request) as other:
            return [await each.scalar(text("SELECT 1")) for each in (session, other)]

    app = FastAPI(lifespan=lifespan)
    app.mount("/sub", sub)
    return app


async def test_a_mounted_application_finds_its_parents_database() -> None:
    async with serving(make_parent("sqlite://", yields_state=True)) as client:
        assert (await client.get("/sub/one")).json() == [1, 1]


async def test_a_mounted_application_without_a_database_is_told_how_to_find_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(make_parent("sqlite://", yields_state=False)) as client:
        assert (await client.get("/sub/one")).status_code == 500
    error = logged_error(caplog)
    assert isinstance(error, AppConfigError)
    assert "yield state" in str(error)


async def test_a_mounted_application_may_have_a_database_of_its_own() -> None:
    parent, sub = FastAPI(), FastAPI()

    @sub.get("/database")
    async def database(session: SessionDep) -> str | None:
        return (await session.connection()).engine.url.database

    parent.mount("/sub", sub)
    async with (
        setup_db(parent, database_url="sqlite:///parent.db") as state,
        setup_db(sub, database_url="sqlite://"),
        asking(parent) as client,
    ):
        assert state["mgf_db_engine"] is parent.state.mgf_db_engine
        assert (await client.get("/sub/database")).json() is None


async def test_a_session_scope_is_scoped_or_in_no_scope(world: World) -> None:
    app = FastAPI()
    async with setup_db(app, database_url=world.app):
        async with session_scope(app, str(world.a)) as session:
            assert (await visible(session), current_tenant(session)) == (["a1", "a2"], world.a)
        async with session_scope(app) as session:
            assert (await visible(session), current_tenant(session)) == ([], None)


@pytest.mark.parametrize("tenant", [None, "", "nobody", "{6f1e7f3c-32a1-4a7e-9d0e-0a4c2f6b8d11}"])
async def test_a_session_scope_of_what_is_no_tenant_is_refused(tenant: Any) -> None:
    app = FastAPI()
    async with setup_db(app, database_url="sqlite://"):
        with pytest.raises(ValueError, match="tenant id"):
            session_scope(app, tenant)


async def test_a_session_scope_rolls_back_what_was_not_committed(world: World) -> None:
    app = FastAPI()
    async with setup_db(app, database_url=world.app):
        async with session_scope(app, world.a) as session:
            await session.execute(text("INSERT INTO invoice (note) VALUES ('lost')"))
        async with session_scope(app, world.a) as session:
            await session.execute(text("INSERT INTO invoice (note) VALUES ('kept')"))
            await session.commit()
    assert await world.notes(world.a) == ["a1", "a2", "kept"]


def test_a_session_scope_without_a_database_names_setup_db() -> None:
    with pytest.raises(AppConfigError, match="setup_db"):
        session_scope(FastAPI())


get_reports = get_session_for("reports")
ReportsDep = Annotated[AsyncSession, Depends(get_reports, scope="function")]
ReportsTransactionDep = Annotated[AsyncSession, Depends(committing(get_reports), scope="function")]


async def test_databases_of_several_names_are_kept_apart(world: World) -> None:
    app = FastAPI()

    @app.get("/users")
    async def users(
        main: SessionDep, reports: ReportsDep, transaction: ReportsTransactionDep
    ) -> list[Any]:
        assert transaction is reports
        user = text("SELECT current_user")
        return [await main.scalar(user), await reports.scalar(user)]

    async with (
        setup_db(app, database_url=world.app),
        setup_db(app, name="reports", database_url=world.owner) as state,
        asking(app) as client,
    ):
        assert (await client.get("/users")).json() == ["app", world.owner.username]
        async with session_scope(app, name="reports") as session:
            assert session.bind is state["mgf_db_reports_engine"]
            assert state["mgf_db_reports_sessionmaker"] is app.state.mgf_db_reports_sessionmaker
    assert not hasattr(app.state, "mgf_db_reports_engine")


def test_a_named_session_is_one_dependency() -> None:
    assert get_session_for("reports") is get_session_for("reports")
    assert get_session_for("reports") is not get_session_for("archive")


async def test_a_name_that_was_not_set_up_is_named() -> None:
    app = FastAPI()
    async with setup_db(app, database_url="sqlite://"):
        with pytest.raises(AppConfigError, match="of the name 'reports'"):
            session_scope(app, name="reports")


async def test_a_name_is_set_up_once() -> None:
    app = FastAPI()
    async with setup_db(app, database_url="sqlite://", name="reports"):
        with pytest.raises(AppConfigError, match="'reports' already"):
            async with setup_db(app, database_url="sqlite://", name="reports"):
                pytest.fail("entered")


async def test_a_name_that_is_no_identifier_is_refused() -> None:
    with pytest.raises(AppConfigError, match="'my reports'"):
        async with setup_db(FastAPI(), database_url="sqlite://", name="my reports"):
            pytest.fail("entered")
