"""Resolvers, and the sessions they scope: the right tenant, or a refusal, and never another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping  # noqa: TC003 - FastAPI reads these from signatures
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from uuid import UUID, uuid4

import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Request,
    WebSocket,
)
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection  # noqa: TC002 - as above
from websockets.asyncio.client import connect

from harness.serving import asking, listening, make_app, serving
from harness.tenants import World, tenant_in_force, visible
from mgf.common.exceptions import AppConfigError
from mgf.fastapi.db import (
    TENANT_RESPONSES,
    SessionDep,
    TenantLogFilter,
    committing,
    current_tenant_id,
    install_error_handlers,
    problem_responses,
    session_scope,
    setup_db,
    tenant_from_claim,
    tenant_from_header,
    tenant_from_path,
    tenant_from_subdomain,
    tenant_session_from,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    import httpx
    from starlette.types import ASGIApp, Receive, Scope, Send

router = APIRouter(responses=TENANT_RESPONSES)


# Who calls, in these tests: a token is the claims themselves.
TOKENS: dict[str, dict[str, Any]] = {}


async def get_claims(
    authorization: Annotated[str | None, Header()] = None,
) -> Mapping[str, Any] | None:
    return None if authorization is None else TOKENS[authorization]


LABELS: dict[str, UUID] = {}


async def look_up(label: str, request: HTTPConnection) -> UUID | None:
    async with session_scope(request) as session:
        assert await session.scalar(text("SELECT 1")) == 1
    return LABELS.get(label)


get_header_tenant = tenant_from_header()


def get_own_tenant(
    asked: Annotated[UUID, Depends(get_header_tenant)],
    claims: Annotated[Mapping[str, Any], Depends(get_claims)],
) -> str:
    """A resolver of the application's own, not async, on top of another one."""
    if str(asked) not in claims["tenants"]:
        raise HTTPException(403)
    return str(asked)


async def get_nothing() -> UUID:
    return None  # type: ignore[return-value] # what a type checker would have told


def scoped(resolver: Any) -> Any:
    return Depends(tenant_session_from(resolver), scope="function")


get_tenant_session = tenant_session_from(get_header_tenant)
TenantSessionDep = Annotated[AsyncSession, Depends(get_tenant_session, scope="function")]
TenantTransactionDep = Annotated[
    AsyncSession, Depends(committing(get_tenant_session), scope="function")
]
TenantStreamDep = Annotated[AsyncSession, Depends(get_tenant_session, scope="request")]
PathSessionDep = Annotated[AsyncSession, scoped(tenant_from_path("tenant_id"))]


@router.get("/header")
async def by_header(session: TenantSessionDep) -> list[str]:
    return await visible(session)


@router.get("/path/{tenant_id}")
async def by_path(session: PathSessionDep) -> list[str]:
    return await visible(session)


@router.get("/subdomain")
async def by_subdomain(
    session: Annotated[AsyncSession, scoped(tenant_from_subdomain("example.com", look_up))],
) -> list[str]:
    return await visible(session)


@router.get("/claim")
async def by_claim(
    session: Annotated[AsyncSession, scoped(tenant_from_claim(get_claims))],
) -> list[str]:
    return await visible(session)


@router.get("/own")
async def by_own(session: Annotated[AsyncSession, scoped(get_own_tenant)]) -> list[str]:
    return await visible(session)


@router.get("/nothing")
async def by_nothing(session: Annotated[AsyncSession, scoped(get_nothing)]) -> list[str]:
    return await visible(session)


@router.get("/no-parameter")
async def by_no_parameter(session: PathSessionDep) -> list[str]:
    return await visible(session)


@pytest.fixture
async def client(world: World) -> AsyncGenerator[httpx.AsyncClient]:
    TOKENS.clear()
    TOKENS.update(
        a={"tenant": str(world.a), "tenants": [str(world.a)]},
        b={"tenant": world.b.hex},
        none={},
        null={"tenant": None},
        number={"tenant": 5},
    )
    LABELS.clear()
    LABELS.update(acme=world.a, bolt=world.b)
    async with serving(make_app(router, world.app, require_tenant=True)) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "header"),
    [
        ("/header", {"X-Tenant-Id": "{0}"}),
        ("/path/{0}", {}),
        ("/subdomain", {"Host": "{1}.example.com:8000"}),
        ("/claim", {"Authorization": "{2}"}),
    ],
)
async def test_each_resolver_scopes_to_its_tenant(
    client: httpx.AsyncClient, world: World, path: str, header: dict[str, str]
) -> None:
    names = [(world.a, "acme", "a"), (str(world.b).upper(), "BOLT", "b"), (world.a, "acme", "a")]
    answers = [
        await client.get(
            path.format(*name), headers={key: value.format(*name) for key, value in header.items()}
        )
        for name in names
    ]
    assert [answer.json() for answer in answers] == [["a1", "a2"], ["b1", "b2"], ["a1", "a2"]]


MALFORMED = ["", "1", "{6f1e7f3c-32a1-4a7e-9d0e-0a4c2f6b8d11}", f"{UUID(int=1)},{UUID(int=2)}"]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/header", {}, 401),
        *(("/header", {"X-Tenant-Id": value}, 400) for value in MALFORMED),
        *((f"/path/{value}", {}, 400) for value in MALFORMED if value),
        ("/subdomain", {"Host": "example.com"}, 401),
        ("/subdomain", {"Host": "EXAMPLE.com.:80"}, 401),
        ("/subdomain", {"Host": "nobody.example.com"}, 403),
        ("/subdomain", {"Host": "acme.example.org"}, 400),
        ("/subdomain", {"Host": "acmeexample.com"}, 400),
        ("/subdomain", {"Host": "a.acme.example.com"}, 400),
        ("/subdomain", {"Host": "-.example.com"}, 400),
        ("/subdomain", {"Host": "[::1]:80"}, 400),
        ("/subdomain", {"Host": "nobody.example.com", "X-Forwarded-Host": "acme.example.com"}, 403),
        ("/claim", {}, 401),
        ("/claim", {"Authorization": "none"}, 401),
        ("/claim", {"Authorization": "null"}, 401),
        ("/claim", {"Authorization": "number"}, 400),
        ("/own", {"Authorization": "a", "X-Tenant-Id": str(UUID(int=1))}, 403),
        ("/nothing", {}, 500),
        ("/no-parameter", {}, 500),
    ],
)
async def test_a_request_without_a_right_tenant_is_refused(
    client: httpx.AsyncClient, path: str, headers: dict[str, str], status: int
) -> None:
    response = await client.get(path, headers=headers)
    assert response.status_code == status
    # RFC 9110, section 15.5.2: a 401 names what would be accepted.
    assert ("WWW-Authenticate" in response.headers) == (status == 401)


@pytest.mark.parametrize(
    ("path", "headers", "status", "code", "detail"),
    [
        ("/header", {}, 401, "tenant-missing", "the header X-Tenant-Id is missing"),
        (
            "/header",
            {"X-Tenant-Id": "1"},
            400,
            "tenant-malformed",
            "the header X-Tenant-Id is no UUID",
        ),
        (
            "/subdomain",
            {"Host": "nobody.example.com"},
            403,
            "tenant-refused",
            "no tenant has the sub-domain nobody",
        ),
    ],
)
async def test_a_refusal_is_a_problem_document_where_the_handlers_are_installed(
    world: World, path: str, headers: dict[str, str], status: int, code: str, detail: str
) -> None:
    app = make_app(router, world.app)
    async with serving(app) as client:
        plain = await client.get(path, headers=headers)
    install_error_handlers(app := make_app(router, world.app))
    async with serving(app) as client:
        problem = await client.get(path, headers=headers)

    assert plain.json() == {"detail": detail}
    assert problem.headers["content-type"] == "application/problem+json"
    assert problem.json() == {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    challenge = "WWW-Authenticate"
    assert problem.headers.get(challenge) == plain.headers.get(challenge)


async def test_an_http_exception_of_the_applications_own_stays_as_it_is(world: World) -> None:
    install_error_handlers(app := make_app(router, world.app))
    async with serving(app) as client:
        headers = {"Authorization": "a", "X-Tenant-Id": str(UUID(int=1))}
        response = await client.get("/own", headers=headers)
    assert (response.status_code, response.json()) == (403, {"detail": "Forbidden"})


async def test_two_headers_are_not_one_tenant(client: httpx.AsyncClient, world: World) -> None:
    headers = [("X-Tenant-Id", str(world.a)), ("X-Tenant-Id", str(world.b))]
    assert (await client.get("/header", headers=headers)).status_code == 400


@pytest.mark.parametrize("hosts", [[], ["acme.example.com", "bolt.example.com"]])
async def test_a_request_without_one_host_has_no_subdomain(hosts: list[str]) -> None:
    """Over the ASGI protocol itself: HTTP/1.0 needs no Host, and some servers let two pass."""
    app = FastAPI()
    app.include_router(router)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    headers = [(b"host", host.encode()) for host in hosts]
    scope = {"type": "http", "method": "GET", "path": "/subdomain", "query_string": b""}
    async with setup_db(app, database_url="sqlite://"):
        await app({**scope, "headers": headers}, receive, send)
    assert sent[0]["status"] == 400


async def test_a_resolver_of_the_applications_own_scopes(
    client: httpx.AsyncClient, world: World
) -> None:
    headers = {"Authorization": "a", "X-Tenant-Id": str(world.a)}
    assert (await client.get("/own", headers=headers)).json() == ["a1", "a2"]


async def test_a_resolver_that_returns_no_tenant_is_an_error_of_the_application(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await client.get("/nothing")
    (record,) = [record for record in caplog.records if record.exc_info]
    error = record.exc_info[1] if record.exc_info else None
    assert isinstance(error, AppConfigError)
    assert "get_nothing" in str(error)


@router.get("/two")
async def two_tenants(
    one: TenantSessionDep, other: Annotated[AsyncSession, scoped(lambda: UUID(int=7))]
) -> list[Any]:
    return [await tenant_in_force(session) for session in (one, other)]


async def test_two_tenants_in_one_request_have_a_session_each(world: World) -> None:
    app = FastAPI()
    app.include_router(router)
    async with (
        setup_db(app, database_url=world.app),
        asking(app) as client,
    ):
        answer = await client.get("/two", headers={"X-Tenant-Id": str(world.a)})
    assert answer.json() == [str(world.a), str(UUID(int=7))]


@router.post("/notes/{note}")
async def add_note(note: str, session: TenantTransactionDep, same: TenantSessionDep) -> bool:
    await session.execute(text("INSERT INTO invoice (note) VALUES (:note)"), {"note": note})
    if note == "refused":
        raise HTTPException(409)
    return session is same


async def test_a_tenants_transaction_commits_before_the_response(
    client: httpx.AsyncClient, world: World
) -> None:
    response = await client.post("/notes/a3", headers={"X-Tenant-Id": str(world.a)})
    assert response.json() is True
    assert await world.notes(world.a) == ["a1", "a2", "a3"]


async def test_a_tenants_transaction_is_rolled_back_by_an_http_exception(
    client: httpx.AsyncClient, world: World
) -> None:
    response = await client.post("/notes/refused", headers={"X-Tenant-Id": str(world.a)})
    assert response.status_code == 409
    assert await world.notes(world.a) == ["a1", "a2"]


@router.get("/stream")
async def stream(session: TenantStreamDep) -> StreamingResponse:
    async def notes() -> AsyncGenerator[str]:
        result = await session.stream_scalars(text("SELECT note FROM invoice ORDER BY note"))
        async for note in result:
            yield note

    return StreamingResponse(notes())


async def test_a_tenants_stream_is_scoped_to_its_end(
    client: httpx.AsyncClient, world: World
) -> None:
    response = await client.get("/stream", headers={"X-Tenant-Id": str(world.b)})
    assert response.text == "b1b2"


@router.get("/background")
async def in_the_background(
    request: Request,
    tenant_id: Annotated[UUID, Depends(get_header_tenant)],
    session: TenantSessionDep,
    background: BackgroundTasks,
) -> list[str]:
    async def work() -> None:
        async with session_scope(request.app, tenant_id) as own:
            await own.execute(text("INSERT INTO invoice (note) VALUES ('later')"))
            await own.commit()

    background.add_task(work)
    return await visible(session)


async def test_a_background_task_has_a_scope_of_its_own(
    client: httpx.AsyncClient, world: World
) -> None:
    response = await client.get("/background", headers={"X-Tenant-Id": str(world.a)})
    assert response.json() == ["a1", "a2"]
    await client.get("/header", headers={"X-Tenant-Id": str(world.b)})  # waits for the connection
    assert await world.notes(world.a) == ["a1", "a2", "later"]


@router.websocket("/path/{tenant_id}/notes")
async def answer_with_notes(
    websocket: WebSocket, tenant_id: Annotated[UUID, Depends(tenant_from_path())]
) -> None:
    await websocket.accept()
    async for _ in websocket.iter_text():
        async with session_scope(websocket, tenant_id) as session:
            await websocket.send_json([await visible(session), str(current_tenant_id())])


async def test_a_websocket_has_a_scope_for_each_message(world: World) -> None:
    async with listening(make_app(router, world.app, require_tenant=True)) as port:
        place = f"ws://127.0.0.1:{port}/path"
        async with (
            connect(f"{place}/{world.a}/notes") as a,
            connect(f"{place}/{world.b}/notes") as b,
        ):
            # One connection in the pool: neither holds it while it waits for a message.
            for socket, tenant, notes in [(a, world.a, '"a1","a2"'), (b, world.b, '"b1","b2"')] * 2:
                await socket.send("?")
                assert await socket.recv() == f'[[{notes}],"{tenant}"]'


HANDSHAKE = (
    "GET /path/nobody/notes HTTP/1.1",
    "Host: test",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


@pytest.mark.parametrize("install", [lambda app: None, install_error_handlers])
async def test_a_websocket_of_no_tenant_is_refused_before_it_is_accepted(
    world: World, install: Callable[[FastAPI], None]
) -> None:
    """With no client of a library: some cannot read how some versions of uvicorn refuse."""
    install(app := make_app(router, world.app))
    async with listening(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write("\r\n".join([*HANDSHAKE, "", ""]).encode())
        status = (await reader.readline()).split()[1]
        writer.close()
        await writer.wait_closed()
    assert status == b"400"


logger = logging.getLogger("tests.tenants")


@router.get("/logged")
async def logged(session: TenantSessionDep, background: BackgroundTasks) -> None:
    logger.info("endpoint")
    background.add_task(logger.info, "background")


@router.get("/sync")
def sync(session: TenantSessionDep) -> str:
    return str(current_tenant_id())


async def test_every_record_of_a_request_carries_its_tenant(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(TenantLogFilter())
    caplog.set_level(logging.INFO)
    async with serving(make_app(router, world.app), log_level="info") as client:
        await client.get("/logged", headers={"X-Tenant-Id": str(world.a)})
        await client.get("/openapi.json")
    seen = {record.getMessage().split(" ")[0]: vars(record)["tenant"] for record in caplog.records}
    lines = [vars(record)["tenant"] for record in caplog.records if record.name == "uvicorn.access"]
    assert (seen["endpoint"], seen["background"]) == (str(world.a), str(world.a))
    assert lines == [str(world.a), "-"]


async def test_an_endpoint_in_a_thread_knows_the_tenant(
    client: httpx.AsyncClient, world: World
) -> None:
    response = await client.get("/sync", headers={"X-Tenant-Id": str(world.a)})
    assert response.json() == str(world.a)


async def test_after_a_request_in_the_same_task_no_tenant_is_known(world: World) -> None:
    app = FastAPI()
    app.include_router(router)
    async with (
        setup_db(app, database_url=world.app),
        asking(app) as client,
    ):
        response = await client.get("/sync", headers={"X-Tenant-Id": str(world.a)})
        async with session_scope(app, world.b):
            assert current_tenant_id() == world.b
    assert (response.status_code, current_tenant_id()) == (200, None)


class Spy:
    """A plain ASGI middleware that looks at the state of a request when it has ended."""

    seen: ClassVar[list[Any]] = []

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
        if scope["type"] == "http":
            self.seen.append(scope["state"].get("mgf_tenant_id"))


async def test_middlewares_of_both_kinds_see_the_tenant(world: World) -> None:
    seen: list[Any] = []

    async def dispatch(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        seen.append(request.state.mgf_tenant_id)
        return response

    Spy.seen.clear()
    app = make_app(router, world.app)
    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    app.add_middleware(Spy)
    async with serving(app) as client:
        await client.get("/header", headers={"X-Tenant-Id": str(world.a)})
    assert (seen, Spy.seen) == ([world.a], [world.a])


class RecordedSpan(trace.NonRecordingSpan):
    def __init__(self) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.attributes: dict[str, Any] = {}

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes[key] = value


async def get_traced_tenant(tenant: Annotated[UUID, Depends(get_header_tenant)]) -> UUID:
    trace.get_current_span().set_attribute("tenant.id", str(tenant))
    return tenant


@router.get("/traced")
async def traced(session: Annotated[AsyncSession, scoped(get_traced_tenant)]) -> list[str]:
    return await visible(session)


async def test_a_resolver_may_mark_the_span_of_its_request(world: World) -> None:
    span = RecordedSpan()
    app = FastAPI()
    app.include_router(router)
    async with (
        setup_db(app, database_url=world.app),
        asking(app) as client,
    ):
        with trace.use_span(span):
            answer = await client.get("/traced", headers={"X-Tenant-Id": str(world.a)})
    assert answer.json() == ["a1", "a2"]
    assert span.attributes == {"tenant.id": str(world.a)}


async def test_no_statement_of_a_request_has_the_tenant_in_its_text(world: World) -> None:
    app = FastAPI()
    app.include_router(router)
    statements: list[str] = []
    async with (
        setup_db(app, database_url=world.app),
        asking(app) as client,
    ):

        @event.listens_for(app.state.mgf_db_engine.sync_engine, "before_cursor_execute")
        def note(_1: Any, _2: Any, statement: str, *_: Any) -> None:
            statements.append(statement)

        await client.post("/notes/new", headers={"X-Tenant-Id": str(world.a)})
    assert statements == ["INSERT INTO invoice (note) VALUES ($1)"]


def test_openapi_shows_the_parameters_and_the_refusals() -> None:
    app = FastAPI()
    app.include_router(router)
    paths = app.openapi()["paths"]
    header, path = (paths[one]["get"] for one in ("/header", "/path/{tenant_id}"))
    for operation, name, place in ((header, "X-Tenant-Id", "header"), (path, "tenant_id", "path")):
        (parameter,) = operation["parameters"]
        assert (parameter["name"], parameter["in"], parameter["required"]) == (name, place, True)
        assert parameter["schema"]["format"] == "uuid"
    assert {"400", "401", "403"} <= set(header["responses"])
    assert "WWW-Authenticate" in header["responses"]["401"]["headers"]


def test_openapi_shows_refusals_beside_the_troubles_of_the_same_status() -> None:
    responses = problem_responses(tenants=True)

    problem = responses[403]["content"]["application/problem+json"]["schema"]
    assert problem["properties"]["code"]["enum"] == ["row-refused", "tenant-refused"]
    assert "may not write this row. The tenant is not allowed." in responses[403]["description"]
    assert "application/json" in responses[403]["content"]
    assert "WWW-Authenticate" in responses[401]["headers"]
    assert set(responses) == {400, 401, *problem_responses()}


async def test_another_header_and_another_claim_can_be_named(world: World) -> None:
    app = FastAPI()

    @app.get("/header")
    async def header(tenant: Annotated[UUID, Depends(tenant_from_header("X-Org"))]) -> UUID:
        return tenant

    @app.get("/claim")
    async def claim(
        tenant: Annotated[UUID, Depends(tenant_from_claim(lambda: {"org": uuid4()}, "org"))],
    ) -> UUID:
        return tenant

    @app.get("/nobody")
    async def nobody(
        tenant: Annotated[UUID, Depends(tenant_from_claim(lambda: None, "org", challenge="Basic"))],
    ) -> UUID:
        return tenant

    @app.get("/label")
    async def label(
        tenant: Annotated[
            UUID, Depends(tenant_from_subdomain("test", lambda label, _: UUID(label)))
        ],
    ) -> UUID:
        return tenant

    async with asking(app) as client:
        assert (await client.get("/header", headers={"X-Org": str(world.a)})).json() == str(world.a)
        assert (await client.get("/claim")).status_code == 200
        assert (await client.get("/nobody")).headers["WWW-Authenticate"] == "Basic"
        answer = await client.get("/label", headers={"Host": f"{world.a}.test"})
        assert answer.json() == str(world.a)


async def test_a_session_in_no_scope_beside_a_scoped_one_stays_in_none(
    world: World,
) -> None:
    app = FastAPI()

    @app.get("/")
    async def both(session: SessionDep, tenant: TenantSessionDep) -> list[Any]:
        return [await tenant_in_force(one) for one in (session, tenant, session)]

    async with (
        setup_db(app, database_url=world.app),
        asking(app) as client,
    ):
        answer = await client.get("/", headers={"X-Tenant-Id": str(world.a)})
    assert answer.json() == [None, str(world.a), None]
