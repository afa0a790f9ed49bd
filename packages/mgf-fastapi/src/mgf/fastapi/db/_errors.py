"""Answers to requests that met database trouble."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from urllib.parse import quote

from sqlalchemy import exc as sa_exc
from starlette.requests import Request

from mgf.common.exceptions import AppConfigError
from mgf.fastapi.db._problem import PROBLEMS, Problem, describe
from mgf.fastapi.db._refusal import (
    CHALLENGE,
    REFUSALS,
    TENANT_RESPONSES,
    TenantRefusedError,
)
from mgf.fastapi.db._trouble import (
    RAW_ERRORS,
    Trouble,
    constraint_of,
    driver_message,
    trouble_of,
)
from mgf.sqlalchemy.errors import sqlstate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from fastapi import FastAPI
    from starlette.responses import Response
    from starlette.websockets import WebSocket

    Answer: TypeAlias = Callable[[Request, Exception], Awaitable[Response]]
    Overrides: TypeAlias = Mapping[Trouble, Problem | Answer | None]

_log = logging.getLogger("mgf.fastapi.db")

# What a driver raises itself: where SQLAlchemy 2.0 connects, and through a raw connection.
_DRIVER_ERRORS = {"asyncpg": ("PostgresError", "InterfaceError"), "psycopg": ("Error",)}


# What FastAPI answers with itself. It documents its 422 only where the application documents none.
_DETAIL = {
    "title": "Detail",
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"type": "string"}},
}
_VALIDATION_ERROR = {
    "title": "ValidationError",
    "type": "object",
    "properties": {"detail": {"type": "array", "items": {"type": "object"}}},
}


def install_error_handlers(app: FastAPI, *, overrides: Overrides | None = None) -> None:
    """Answer database trouble with problem documents (RFC 9457) instead of a 500.

    `Trouble` lists what is answered, `trouble_of` tells what an exception is. It works wherever
    an error leaves the endpoint or a dependency before the response has started: with
    ``Depends(..., scope="function")`` that includes a failing COMMIT. Each answer is logged by
    the logger ``mgf.fastapi.db``, at level WARNING for a 5xx, else INFO.

    Everything else is raised again, and becomes the 500 that the server logs. So does every
    error of a WebSocket. A `TenantRefusedError` becomes a problem document too, with its own status
    and detail; any other ``HTTPException`` is none of this function's business. A handler that the
    application has for one of these classes, SQLAlchemy's or the driver's stays, and one for a more
    specific class wins.

    Args:
        app: the application, before it is served. A mounted one needs handlers of its own.
        overrides: another `Problem` for a kind of trouble; or an async function of the request
            and the exception, which returns the response; or None to leave it a 500.

    Raises:
        AppConfigError: the application has started, or an override is for no `Trouble`.
    """
    answers: dict[Trouble, Problem | Answer | None] = {**PROBLEMS, **_checked(overrides)}
    if app.middleware_stack is not None:
        raise AppConfigError(
            f"{app!r} has started, and would not see new handlers: "
            "call install_error_handlers() where the application is made"
        )

    async def answer(connection: Request | WebSocket, exc: Exception) -> Response:
        trouble = trouble_of(exc)
        how = None if trouble is None else answers[trouble]
        if trouble is None or how is None or not isinstance(connection, Request):
            raise exc
        response = how.response(trouble) if isinstance(how, Problem) else await how(connection, exc)
        _note(connection, exc, trouble, response.status_code)
        return response

    app.exception_handlers.setdefault(TenantRefusedError, _answer_refusal)
    for handled in (sa_exc.DBAPIError, sa_exc.TimeoutError, *RAW_ERRORS, *_driver_errors()):
        app.exception_handlers.setdefault(handled, answer)


async def _answer_refusal(_connection: Request | WebSocket, exc: TenantRefusedError) -> Response:
    problem = Problem(status=exc.status_code, detail=exc.detail)
    return problem.response(exc.code, exc.headers)


def problem_responses(
    *troubles: Trouble, overrides: Overrides | None = None, tenants: bool = False
) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI shall say of the answers, for ``responses=`` of an app, router or route.

    Args:
        troubles: which; all unless given.
        overrides: those of `install_error_handlers`. What they give to a function, or leave a
            500, is not described.
        tenants: describe the refusals of a tenant too, together with the troubles of the same
            status: ``TENANT_RESPONSES | problem_responses()`` would lose one of them.
    """
    answers = {**PROBLEMS, **_checked(overrides)}
    told: dict[str, Problem | Answer | None] = {
        trouble.value: answers[trouble] for trouble in troubles or Trouble
    }
    by_status: dict[int, dict[str, Problem]] = {}
    for code, problem in (told | dict(REFUSALS) if tenants else told).items():
        if isinstance(problem, Problem):
            by_status.setdefault(problem.status, {})[code] = problem
    plain: dict[int | str, dict[str, Any]] = {422: _VALIDATION_ERROR}
    if tenants:
        # Of what says who is calling, such as those of fastapi.security.
        plain |= dict.fromkeys(TENANT_RESPONSES, _DETAIL)
    described: dict[int | str, dict[str, Any]] = {
        status: describe(status, problems, plain=plain.get(status))
        for status, problems in by_status.items()
    }
    if tenants:
        described[401].setdefault("headers", {}).update(CHALLENGE)
    return described


def _checked(overrides: Overrides | None) -> Overrides:
    for trouble in overrides or {}:
        # What callers without a type checker pass.
        if not isinstance(trouble, Trouble):
            raise AppConfigError(f"an override is for a Trouble, not for {trouble!r}")
    return overrides or {}


def _driver_errors() -> Iterator[type[Exception]]:
    for module, names in _DRIVER_ERRORS.items():
        try:
            driver = import_module(module)
        except ImportError:
            continue
        yield from (cast("type[Exception]", getattr(driver, name)) for name in names)


def _note(request: Request, exc: Exception, trouble: Trouble, status: int) -> None:
    """Log an answer, without the texts that may quote values."""
    told = [type(exc).__name__]
    if code := sqlstate(exc):
        told.append(f"SQLSTATE {code}")
    if constraint := constraint_of(exc):
        told.append(f"constraint {constraint}")
    if trouble in (Trouble.UNAVAILABLE, Trouble.POOL_EXHAUSTED):
        told.append(driver_message(exc))
    level = logging.WARNING if status >= 500 else logging.INFO
    _log.log(
        level,
        "%s %s: answered %d, %s (%s)",
        request.method,
        quote(request.scope["path"]),  # what it holds may look like a record
        status,
        trouble.value,
        "; ".join(told),
    )
