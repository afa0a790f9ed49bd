"""Database trouble, as the clients of a service see it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from uuid import uuid4

import httpx
import pytest
from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, Response
from sqlalchemy import BigInteger, Integer, String, bindparam, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from harness.servers import Bindir, bindirs, name_of, run_sql
from harness.serving import serving
from harness.tenants import APP_PASSWORD, new_world
from mgf.common.exceptions import AppConfigError
from mgf.fastapi.db import (
    Problem,
    Trouble,
    get_session,
    install_error_handlers,
    problem_responses,
    setup_db,
    trouble_of,
)
from mgf.sqlalchemy import tenant_session
from mgf.sqlalchemy.errors import TenantScopeError
from mgf.sqlalchemy.testing import TemporaryPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import URL

TENANT, OTHER = uuid4(), uuid4()
SCHEMA = """
    CREATE TABLE thing (
        id int PRIMARY KEY,
        small smallint,
        big bigint,
        name text NOT NULL DEFAULT '',
        parent int REFERENCES thing,
        late int UNIQUE DEFERRABLE INITIALLY DEFERRED,
        amount int CHECK (amount > 0),
        made timestamptz,
        during int4range,
        EXCLUDE USING gist (during WITH &&)
    );
    INSERT INTO thing (id, late, made, during) VALUES (1, 1, 'infinity', '[1,5)');
    CREATE VIEW positive AS SELECT * FROM thing WHERE id > 0 WITH CHECK OPTION;
    GRANT ALL ON thing, positive TO app;
    CREATE TABLE hidden (id int);
"""

Session = Annotated[AsyncSession, Depends(get_session, scope="function")]


@pytest.fixture(scope="module")
def server(any_postgres_url: URL) -> URL:
    return asyncio.run(new_world(any_postgres_url, SCHEMA))


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(server: URL, request: pytest.FixtureRequest) -> URL:
    return server.set(
        drivername=f"postgresql+{request.param}", username="app", password=APP_PASSWORD
    )


async def committing(session: Session) -> AsyncGenerator[AsyncSession]:
    """A dependency that commits at its end, as services write it."""
    yield session
    await session.commit()


Committing = Annotated[AsyncSession, Depends(committing, scope="function")]


class Work(NamedTuple):
    """A statement of an endpoint, with one value."""

    sql: str
    value: Any = None
    type: Any = None

    async def do(self, session: AsyncSession) -> None:
        statement = text(self.sql)
        if self.type is None:
            await session.execute(statement)
        else:
            statement = statement.bindparams(bindparam("value", type_=self.type))
            await session.execute(statement, {"value": self.value})


def make_app(work: Any, **options: Any) -> FastAPI:
    """An application whose only endpoint does some work, and commits at its end."""
    app = FastAPI()
    install_error_handlers(app, **options)

    @app.post("/things")
    async def endpoint(session: Committing) -> str:
        await work(session)
        return "done"

    return app


async def post(app: FastAPI, url: str | URL, **options: Any) -> httpx.Response:
    """One request; what would be logged by the server is raised."""
    async with (
        setup_db(app, database_url=url, **options),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        return await client.post("/things")


def code(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


INSERT = "INSERT INTO thing (id, {}) VALUES (2, :value)"
CONFLICT, BAD_VALUE, CHECK_FAILED = (409, "conflict"), (422, "bad-value"), (422, "check-failed")
ANSWERS = {
    "unique": (Work("INSERT INTO thing (id) VALUES (1)"), CONFLICT),
    "unique at commit": (Work("INSERT INTO thing (id, late) VALUES (2, 1)"), CONFLICT),
    "foreign key": (Work("INSERT INTO thing (id, parent) VALUES (2, 3)"), CONFLICT),
    "exclusion": (Work("INSERT INTO thing (id, during) VALUES (2, '[2,3)')"), CONFLICT),
    "check": (Work("INSERT INTO thing (id, amount) VALUES (2, 0)"), CHECK_FAILED),
    "check option": (Work("INSERT INTO positive (id) VALUES (-1)"), CHECK_FAILED),
    "NUL": (Work(INSERT.format("name"), "a\0b", String), BAD_VALUE),
    "NUL in a filter": (Work("SELECT FROM thing WHERE name = :value", "\0", String), BAD_VALUE),
    "half a surrogate": (Work(INSERT.format("name"), "\ud800", String), BAD_VALUE),
    "int4 out of range": (Work(INSERT.format("amount"), 2**40, Integer), BAD_VALUE),
    "int4 of a filter": (Work("SELECT FROM thing WHERE id = :value", 2**40, Integer), BAD_VALUE),
    "int8 out of range": (Work(INSERT.format("big"), 2**70, BigInteger), BAD_VALUE),
    "int2 out of range": (Work(INSERT.format("small"), 70_000, Integer), BAD_VALUE),
    "division by zero": (Work("SELECT 1 / 0"), BAD_VALUE),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_what_the_request_is_to_blame_for_is_a_4xx(url: URL, name: str) -> None:
    work, expected = ANSWERS[name]
    assert code(await post(make_app(work.do), url)) == expected


ROW_OF_OTHER = f"INSERT INTO invoice (tenant_id, note) VALUES ('{OTHER}', 'x')"


async def test_a_row_that_a_policy_refuses_is_a_403(url: URL) -> None:
    async def work(session: AsyncSession) -> None:
        async with tenant_session(session, TENANT):
            await session.execute(text(ROW_OF_OTHER))

    assert code(await post(make_app(work), url)) == (403, "row-refused")


async def test_a_forgotten_grant_and_row_security_off_stay_500(url: URL) -> None:
    """The same SQLSTATE, 42501, and mistakes of the service."""
    with pytest.raises(DBAPIError, match="permission denied"):
        await post(make_app(Work("SELECT FROM hidden").do), url)
    with pytest.raises(DBAPIError, match="row-level security"):
        await post(make_app(Work("SELECT FROM invoice").do), url, require_tenant=True)


MISTAKES = {
    "not null": Work("INSERT INTO thing (id, name) VALUES (2, NULL)"),
    "syntax": Work("SELEC"),
    "no such table": Work("SELECT FROM nowhere"),
    "a type that no driver knows": Work("SELECT :value", object(), String),
}


@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_of_the_service_stays_a_500(url: URL, name: str) -> None:
    with pytest.raises(DBAPIError):
        await post(make_app(MISTAKES[name].do), url)


async def test_what_asyncpg_does_not_encode_for_its_type_stays_a_500(url: URL) -> None:
    """psycopg leaves that to the server, which may take it."""
    url = url.set(drivername="postgresql+asyncpg")
    with pytest.raises(DBAPIError, match="expected str, got int"):
        await post(make_app(Work(INSERT.format("name"), 3, String).do), url)


async def test_what_psycopg_cannot_read_stays_a_500(url: URL) -> None:
    """An infinite timestamp: nothing that the request has brought."""
    url = url.set(drivername="postgresql+psycopg")
    with pytest.raises(DBAPIError, match="timestamp too large"):
        await post(make_app(Work("SELECT made FROM thing").do), url)


async def test_a_bad_tenant_and_an_impossible_scope_stay_500(url: URL) -> None:
    async def bad_tenant(session: AsyncSession) -> None:
        async with tenant_session(session, "not-a-uuid"):
            pytest.fail("entered")

    with pytest.raises(ValueError, match="not-a-uuid"):
        await post(make_app(bad_tenant), url)

    async def scope(session: AsyncSession) -> None:
        async with tenant_session(session, TENANT):
            pytest.fail("entered")

    with pytest.raises(TenantScopeError):
        await post(make_app(scope), "sqlite://")


async def test_other_os_errors_and_timeouts_stay_500(url: URL) -> None:
    async def missing_file(session: AsyncSession) -> None:
        raise FileNotFoundError("config")

    async def own_limit(session: AsyncSession) -> None:
        async with asyncio.timeout(0.01):
            await session.execute(text("SELECT pg_sleep(60)"))

    with pytest.raises(FileNotFoundError):
        await post(make_app(missing_file), url)
    with pytest.raises(TimeoutError):
        await post(make_app(own_limit), url)


async def test_a_statement_timeout_is_a_504(url: URL) -> None:
    async def work(session: AsyncSession) -> None:
        await session.execute(text("SET LOCAL statement_timeout = 10"))
        await session.execute(text("SELECT pg_sleep(60)"))

    assert code(await post(make_app(work), url)) == (504, "statement-timeout")


async def test_a_time_limit_of_the_driver_is_a_504(url: URL) -> None:
    url = url.set(drivername="postgresql+asyncpg")
    app = make_app(Work("SELECT pg_sleep(60)").do)
    response = await post(app, url, connect_args={"command_timeout": 0.2})
    assert code(response) == (504, "statement-timeout")


async def test_a_statement_that_somebody_cancelled_stays_a_500(url: URL, server: URL) -> None:
    async def work(session: AsyncSession) -> None:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        cancelling = asyncio.create_task(cancel_once_active(server, pid))
        try:
            await session.execute(text("SELECT pg_sleep(60)"))
        finally:
            await cancelling

    with pytest.raises(DBAPIError, match="user request"):
        await post(make_app(work), url)


async def cancel_once_active(server: URL, pid: int) -> None:
    """Cancel a backend's statement over and over, until it has met one."""
    await run_sql(
        server,
        f"""
        DO $$ BEGIN
            WHILE NOT EXISTS (
                SELECT FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'
            ) LOOP PERFORM pg_sleep(0.01), pg_stat_clear_snapshot(); END LOOP;
            PERFORM pg_cancel_backend({pid});
        END $$
        """,
    )


def unavailable(response: httpx.Response, name: str) -> bool:
    return code(response) == (503, name) and int(response.headers["retry-after"]) > 0


async def test_a_killed_backend_is_a_503(url: URL, server: URL) -> None:
    async def work(session: AsyncSession) -> None:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        await run_sql(server, f"SELECT pg_terminate_backend({pid}, 5000)")
        await session.execute(text("SELECT 1"))

    assert unavailable(await post(make_app(work), url), "database-unavailable")


async def test_a_backend_killed_before_its_commit_is_a_503(url: URL, server: URL) -> None:
    async def work(session: AsyncSession) -> None:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        await run_sql(server, f"SELECT pg_terminate_backend({pid}, 5000)")

    assert unavailable(await post(make_app(work), url), "database-unavailable")


async def test_a_refused_connection_is_a_503_also_from_an_engine_made_by_others(url: URL) -> None:
    async def work(session: AsyncSession) -> None:
        await session.execute(text("SELECT 1"))

    nowhere = url.set(host="127.0.0.1", port=1)
    assert unavailable(await post(make_app(work), nowhere), "database-unavailable")

    async def with_own_engine(session: AsyncSession) -> None:
        engine = create_async_engine(nowhere)
        async with engine.connect():
            pytest.fail("connected")

    assert unavailable(await post(make_app(with_own_engine), url), "database-unavailable")


async def test_too_many_connections_are_a_503(url: URL, server: URL) -> None:
    url = url.set(username="crowd")
    await run_sql(
        server,
        f"CREATE ROLE crowd LOGIN PASSWORD '{APP_PASSWORD}' CONNECTION LIMIT 0",
    )
    try:
        response = await post(make_app(Work("SELECT 1").do), url)
        assert unavailable(response, "database-unavailable")
    finally:
        await run_sql(server, "DROP ROLE crowd")


LASTING = {
    "password": ({"password": "wrong"}, "password authentication failed"),
    "database": ({"database": "nowhere"}, "does not exist"),
}


@pytest.mark.parametrize("wrong", LASTING)
async def test_a_connection_that_is_refused_for_good_stays_a_500(url: URL, wrong: str) -> None:
    change, message = LASTING[wrong]
    with pytest.raises(DBAPIError, match=message):
        await post(make_app(Work("SELECT 1").do), url.set(**change))  # type: ignore[arg-type]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("bindir", bindirs(), ids=name_of)
async def test_a_server_that_is_full_or_stopped_is_a_503(bindir: Bindir, driver: str) -> None:
    app = make_app(Work("SELECT 1").do)
    # Of these connections three are for superusers.
    with TemporaryPostgres(bindir=bindir, settings={"max_connections": "5"}) as own:
        await run_sql(own.url, f"CREATE ROLE app LOGIN PASSWORD '{APP_PASSWORD}'")
        url = own.url.set(drivername=f"postgresql+{driver}", username="app", password=APP_PASSWORD)
        crowd = create_async_engine(url)
        async with crowd.connect(), crowd.connect():
            assert unavailable(await post(app, url), "database-unavailable")
        await crowd.dispose()
        own.stop()
        assert unavailable(await post(app, url), "database-unavailable")


async def test_an_exhausted_pool_is_a_503(url: URL) -> None:
    app = make_app(Work("SELECT 1").do)
    options: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05}
    async with setup_db(app, database_url=url, **options):
        transport = httpx.ASGITransport(app)
        async with (
            app.state.mgf_db_engine.connect(),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            assert unavailable(await client.post("/things"), "pool-exhausted")


async def test_contention_is_a_503(url: URL) -> None:
    sql = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT FROM thing"
    update = "UPDATE thing SET big = 1 WHERE id = 1"

    async def serialization_failure(session: AsyncSession) -> None:
        for statement in sql:
            await session.execute(text(statement))
        bind: Any = session.bind
        async with bind.begin() as other:
            await other.execute(text(update))
        await session.execute(text(update))

    async def lock_timeout(session: AsyncSession) -> None:
        bind: Any = session.bind
        async with bind.connect() as other:
            await other.execute(text(update))
            await session.execute(text("SELECT FROM thing WHERE id = 1 FOR UPDATE NOWAIT"))

    assert unavailable(await post(make_app(serialization_failure), url), "contention")
    assert unavailable(await post(make_app(lock_timeout), url), "contention")


async def test_a_deadlock_is_a_503(url: URL, server: URL) -> None:
    """One of two transactions that wait for each other; the locks are advisory ones."""
    lock = "SELECT pg_advisory_xact_lock({})"

    async def work(session: AsyncSession) -> None:
        bind: Any = session.bind
        async with bind.connect() as other:
            # The one that waits last is the one whose time runs out last.
            await other.execute(text("SET LOCAL deadlock_timeout = '1h'"))
            await other.execute(text(lock.format(1)))
            await session.execute(text(lock.format(2)))
            waiting = asyncio.create_task(other.execute(text(lock.format(2))))
            try:
                await session.execute(text(lock.format(1)))
            finally:
                await session.rollback()
                await waiting

    superuser = server.set(drivername=url.drivername)  # who may set deadlock_timeout
    assert unavailable(await post(make_app(work), superuser), "contention")


async def test_no_value_sql_or_credential_shows_in_body_or_log(
    url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mgf.fastapi.db")
    sql = "INSERT INTO secret_thing VALUES (:value)"

    async def work(session: AsyncSession) -> None:
        await session.execute(
            text("CREATE TEMPORARY TABLE secret_thing (word text CONSTRAINT one_word UNIQUE)")
        )
        for _ in range(2):
            await Work(sql, "hunter2", String).do(session)

    response = await post(make_app(work), url)
    assert code(response) == CONFLICT
    for told in (response.text, caplog.text):
        assert not any(secret in told for secret in ("hunter2", "INSERT", APP_PASSWORD))
    assert "secret_thing" not in response.text
    assert "one_word" not in response.text
    assert "/things: answered 409, conflict" in caplog.text
    assert "SQLSTATE 23505; constraint one_word" in caplog.text


async def test_a_5xx_is_logged_as_a_warning_with_its_reason(
    url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mgf.fastapi.db")
    await post(make_app(Work("SELECT 1").do), url.set(host="127.0.0.1", port=1))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "answered 503, database-unavailable" in record.getMessage()
    assert "127.0.0.1" in record.getMessage()
    assert APP_PASSWORD not in record.getMessage()


async def test_the_body_is_a_problem_document(url: URL) -> None:
    response = await post(make_app(ANSWERS["unique"][0].do), url)
    assert response.json() == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "detail": "The request conflicts with data that is stored already.",
        "code": "conflict",
    }
    assert "retry-after" not in response.headers


async def test_each_kind_can_be_answered_otherwise(url: URL) -> None:
    async def own(request: Request, exc: Exception) -> Response:
        assert request.url.path == "/things"
        assert isinstance(exc, IntegrityError)
        return JSONResponse({"mine": True}, 418)

    async def ask(how: Any) -> httpx.Response:
        work = ANSWERS["unique"][0].do
        return await post(make_app(work, overrides={Trouble.CONFLICT: how}), url)

    problem = Problem(status=400, detail="Taken.", type="/problems/taken", title="Taken")
    assert (await ask(problem)).json()["type"] == "/problems/taken"
    assert (await ask(own)).status_code == 418
    with pytest.raises(IntegrityError):
        await ask(None)


async def test_a_handler_of_the_application_stays() -> None:
    app = FastAPI()

    @app.exception_handler(DBAPIError)
    async def own(request: Request, exc: DBAPIError) -> Response:
        return Response(status_code=418)

    install_error_handlers(app)
    assert app.exception_handlers[DBAPIError] is own


async def test_what_cannot_work_is_refused() -> None:
    app = FastAPI()
    with pytest.raises(AppConfigError, match="not for 'conflict'"):
        install_error_handlers(app, overrides={"conflict": None})  # type: ignore[dict-item]
    with pytest.raises(AppConfigError, match="not for 409"):
        problem_responses(overrides={409: None})  # type: ignore[dict-item]
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as client:
        await client.get("/")
    with pytest.raises(AppConfigError, match="has started"):
        install_error_handlers(app)


async def test_behind_uvicorn_a_failed_commit_of_a_dependency_is_no_200(url: URL) -> None:
    app = make_app(ANSWERS["unique at commit"][0].do)
    async with setup_db(app, database_url=url), serving(app) as client:
        assert code(await client.post("/things")) == CONFLICT


async def test_behind_uvicorn_a_mistake_is_the_servers_500(url: URL) -> None:
    app = make_app(MISTAKES["no such table"].do)
    async with setup_db(app, database_url=url), serving(app) as client:
        response = await client.post("/things")
    assert (response.status_code, response.text) == (500, "Internal Server Error")


async def test_the_error_of_a_websocket_is_raised(url: URL) -> None:
    app = FastAPI()
    install_error_handlers(app)

    @app.websocket("/things")
    async def endpoint(websocket: WebSocket, session: Session) -> None:
        await websocket.accept()
        await ANSWERS["unique"][0].do(session)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        pass

    scope = {"type": "websocket", "path": "/things", "headers": [], "query_string": b""}
    async with setup_db(app, database_url=url):
        with pytest.raises(IntegrityError):
            await app({**scope, "subprotocols": []}, receive, send)


async def test_sqlite_has_no_sqlstate_so_its_errors_stay_500() -> None:
    async def work(session: AsyncSession) -> None:
        for sql in ("CREATE TABLE t (id int UNIQUE)", *["INSERT INTO t VALUES (1)"] * 2):
            await session.execute(text(sql))

    with pytest.raises(IntegrityError):
        await post(make_app(work), "sqlite://")


def test_an_exception_of_something_else_is_no_trouble() -> None:
    assert trouble_of(ValueError()) is None
    assert trouble_of(OSError()) is None


def test_openapi_describes_the_answers() -> None:
    app = FastAPI(responses=problem_responses())

    @app.get("/things")
    async def endpoint(number: int) -> None: ...

    responses = app.openapi()["paths"]["/things"]["get"]["responses"]
    assert sorted(responses) == ["200", "403", "409", "422", "503", "504"]
    schema = responses["503"]["content"]["application/problem+json"]["schema"]
    assert schema["properties"]["code"]["enum"] == [
        "database-unavailable",
        "pool-exhausted",
        "contention",
    ]
    assert "Retry-After" in responses["503"]["headers"]
    assert "headers" not in responses["409"]
    # FastAPI's own stays described.
    assert set(responses["422"]["content"]) == {"application/json", "application/problem+json"}


def test_openapi_follows_the_choice_and_the_overrides() -> None:
    problem = Problem(status=400, detail="Taken.")
    overrides = {Trouble.CONFLICT: problem, Trouble.ROW_REFUSED: None}
    assert set(problem_responses(Trouble.CONFLICT, Trouble.BAD_VALUE)) == {409, 422}
    assert set(problem_responses(overrides=overrides)) == {400, 422, 503, 504}
