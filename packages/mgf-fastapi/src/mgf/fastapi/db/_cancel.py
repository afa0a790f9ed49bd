"""Work that ends when nobody waits for its answer any more."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.requests import HTTPConnection  # noqa: TC002 - FastAPI reads it from the signature

from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger("mgf.fastapi.db")

_WATCH = "mgf.fastapi.db.watch"
_DISCONNECT: Message = {"type": "http.disconnect"}
_BODY_HEADERS = (b"content-length", b"transfer-encoding")
# Messages of a body that are read ahead of a handler that does not ask for them.
_READ_AHEAD = 2


class CancelOnDisconnect:
    """ASGI middleware: a client that disconnects cancels the handler of its request.

    Otherwise a handler runs to its end, and holds its connection, for a client that has gone. The
    cancellation is a plain ``task.cancel()``, on which asyncpg and psycopg ask the server to end
    the statement, and the session gives its connection back. ::

        app.add_middleware(CancelOnDisconnect, exempt=["/webhooks"])

    Add it before any other: what is added first is the innermost. A ``BaseHTTPMiddleware`` inside
    it, like any other anyio task group, cancels in a way that gives the connection back too, but
    leaves the statement running on the server.

    Middlewares around this one see the response of a cancelled handler as a 499, as nginx calls a
    request whose client has gone; nobody else gets it.

    Once a request's response is complete, nothing is cancelled: background tasks run. Those of a
    cancelled handler do not. The thread of a ``def`` handler cannot be interrupted: the request
    ends without it, and its session is a `SessionEndedError` to it from then on. Not covered:
    WebSockets; requests with ``Expect: 100-continue``; and a large body that the handler does not
    read to its end.

    Args:
        app: the application.
        exempt: paths whose requests always run to their end, with everything below them.
            `run_to_end` does so for a route.

    Raises:
        AppConfigError: `exempt` is a single string.
    """

    def __init__(self, app: ASGIApp, *, exempt: Iterable[str] = ()) -> None:
        if isinstance(exempt, str):
            raise AppConfigError(f"exempt is a list of paths, not {exempt!r}; write [{exempt!r}]")
        self.app = app
        self._exempt = tuple(path.rstrip("/") for path in exempt)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and watch for the client's end beside it."""
        if scope["type"] != "http" or self._is_exempt(scope):
            await self.app(scope, receive, send)
            return
        limit = asyncio.timeout(None)
        watch = _Watch(scope, receive, send, limit)
        task = asyncio.create_task(watch.run())
        try:
            async with limit:
                await self.app(scope, watch.receive, watch.send)
        except Exception as exc:
            # Whatever came of the cancellation has nobody to be told to.
            if not limit.expired():
                raise
            _log.info(
                "%s %s: the client has gone, the handler was cancelled",
                *(scope["method"], quote(scope["path"])),  # what it holds may look like a record
                exc_info=None if isinstance(exc, TimeoutError) else exc,
            )
            await watch.answer_nobody()
        finally:
            task.cancel()
            await asyncio.wait({task})

    def _is_exempt(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return any(path == one or path.startswith(f"{one}/") for one in self._exempt) or any(
            # To read ahead would ask the client for a body that the handler may not want.
            name == b"expect"
            for name, _ in scope["headers"]
        )


async def run_to_end(request: HTTPConnection) -> None:
    """Let the handler of this request run to its end, whatever the client does; for ``Depends``.

    For work that is not to be given up half-way although a rollback would be clean, such as a
    call to another service. It holds from the moment on at which the dependency is resolved,
    before those of the endpoint's parameters when it stands in a route's ``dependencies=``; a
    handler may also await it itself. Without `CancelOnDisconnect` it does nothing. ::

        @app.post("/payments", dependencies=[Depends(run_to_end)])
    """
    watch: _Watch | None = request.scope.get(_WATCH)
    if watch is not None:
        watch.protect()


class _Watch:
    """What stands between a server and the handler of one request.

    Args:
        scope: of the request.
        receive: the server's.
        send: the server's.
        limit: of the handler; expires when the client has gone.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: asyncio.Timeout) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limit = limit
        self._asgi: dict[str, Any] = scope["asgi"]
        self._messages: asyncio.Queue[Message | Exception] = asyncio.Queue(_READ_AHEAD)
        self._is_protected = False
        self._has_started = False
        self._is_complete = False
        self._has_gone = False
        scope[_WATCH] = self
        # A handler may begin its stream before this watch has had a turn.
        if not any(name in _BODY_HEADERS for name, _ in scope["headers"]):
            self._take_over_streams()

    def protect(self) -> None:
        self._is_protected = True
        self._scope["asgi"] = self._asgi

    async def run(self) -> None:
        """Hand on what the server says, until it says that the client has gone."""
        try:
            while (message := await self._receive())["type"] != "http.disconnect":
                await self._messages.put(message)
                if not message.get("more_body", False):
                    self._take_over_streams()
        except Exception as exc:  # noqa: BLE001 - the handler's business, such as a body too large
            await self._messages.put(exc)
            return
        self._has_gone = True
        if not (self._is_protected or self._is_complete):
            self._limit.reschedule(asyncio.get_running_loop().time())
        # Also to a handler that goes on in spite of its cancellation.
        await self._messages.put(_DISCONNECT)

    async def receive(self) -> Message:
        if self._has_gone and self._messages.empty():
            return _DISCONNECT
        message = await self._messages.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def send(self, message: Message) -> None:
        self._has_started = True
        # Before it is sent: from then on servers say "http.disconnect" to everybody who asks.
        if message["type"] == "http.response.pathsend" or (
            message["type"] == "http.response.body" and not message.get("more_body", False)
        ):
            self._is_complete = True
        await self._send(message)

    async def answer_nobody(self) -> None:
        """Give middlewares further out a response: without one, some take it for an error."""
        if not self._has_started:
            with suppress(OSError):  # some servers' word for a client that has gone
                await self._send({"type": "http.response.start", "status": 499, "headers": []})
                await self._send({"type": "http.response.body"})

    def _take_over_streams(self) -> None:
        """Keep Starlette from watching for the end of a stream's client itself.

        It does so in an anyio task group, whose way to cancel leaves statements running. From
        version 2.4 of the specification on it leaves the end to the server: here, to this watch.
        """
        if not self._is_protected:
            self._scope["asgi"] = {**self._asgi, "spec_version": "2.4"}
