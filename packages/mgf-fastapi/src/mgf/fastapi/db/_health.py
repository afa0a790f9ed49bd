"""Answers to whoever asks if a process is alive, and if it can serve requests now."""

from __future__ import annotations

import asyncio
import logging
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import sqlalchemy.ext.asyncio
from fastapi import APIRouter
from sqlalchemy import select
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it from the signature
from starlette.responses import JSONResponse

from mgf.common.exceptions import AppConfigError
from mgf.fastapi.db._databases import engine_key
from mgf.fastapi.db._pool import is_full, pool_figures
from mgf.fastapi.db._trouble import driver_message
from mgf.sqlalchemy.errors import sqlstate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from fastapi import FastAPI
    from sqlalchemy.ext.asyncio import AsyncEngine

_log = logging.getLogger("mgf.fastapi.db")

_TOO_MANY_CONNECTIONS = "53300"


class Health(StrEnum):
    """What a check found; ``FAILED`` alone makes a process not ready."""

    OK = "ok"
    BUSY = "busy"
    FAILED = "failed"


if TYPE_CHECKING:
    Check: TypeAlias = Callable[[FastAPI], Awaitable[Health | None]]


async def check_database(engine: AsyncEngine) -> Health:
    """Ask the database for a sign of life, and wait for no other user of the pool.

    Where the pool has a connection to give, that one is used. Where all are in use, the database
    is asked over a connection of its own, which is closed afterwards: if it answers, the process
    is ``BUSY``. So it is when the database says that it has too many clients, while connections of
    the pool are in use; one that has none can serve nobody. psycopg gives no SQLSTATE for a
    connection that was not made: with it too many clients are an error like any other.

    It waits for the database as long as the driver does: give it a time limit.

    Raises:
        sqlalchemy.exc.DBAPIError: the database cannot be reached, or refuses.
        OSError: the same, from an engine that `mgf.sqlalchemy.create_engine` did not make.
    """
    try:
        # Nothing is awaited between the look at the pool and the checkout.
        if not is_full(engine):
            await _ping(engine)
            return Health.OK
        await _ping_apart(engine)
    except Exception as exc:
        in_use = pool_figures(engine).get("checked_out", 0)
        if sqlstate(exc) != _TOO_MANY_CONNECTIONS or not in_use:
            raise
    return Health.BUSY


def health_router(
    *,
    live: str = "/health/live",
    ready: str = "/health/ready",
    timeout: float = 1.0,
    checks: Mapping[str, Check] | None = None,
) -> APIRouter:
    """Return a router with the two answers that an orchestrator or load balancer asks for.

    ``live`` says 200 as long as the process answers at all: the database has no part in it, since
    a restart of the process would not mend that. ``ready`` says 200, or 503 when a check failed,
    with the state of each check and nothing else; the reason is logged. A pool whose connections
    are all in use is busy, not broken: still 200, since to take processes away from a service
    under load only moves the load to the others.

    Neither is in the OpenAPI schema.

    Args:
        live: path of the first.
        ready: path of the second.
        timeout: seconds after which a check counts as failed; all run at once. What it leaves
            behind, such as a connection to a network that swallows everything, is cleared up
            after the answer, and until then the check is not begun again.
        checks: more checks by name: async functions of the application, which raise, or return a
            `Health`. The name "database" replaces the check of `setup_db`'s database.
    """
    bounded = [_Bounded(*one) for one in {"database": _check_own, **(checks or {})}.items()]
    router = APIRouter()

    async def answer_live() -> JSONResponse:
        return _answer({"status": Health.OK})

    async def answer_ready(request: Request) -> JSONResponse:
        found = await asyncio.gather(*(one.run(request.app, timeout) for one in bounded))
        states = {one.name: state for one, state in zip(bounded, found, strict=True)}
        worst = next(state for state in reversed(Health) if state in (*found, Health.OK))
        return _answer({"status": worst, "checks": states}, 503 if worst is Health.FAILED else 200)

    for path, endpoint in ((live, answer_live), (ready, answer_ready)):
        router.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)
    return router


def _answer(body: dict[str, Any], status: int = 200) -> JSONResponse:
    return JSONResponse(body, status, {"Cache-Control": "no-store"})


async def _ping(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(select(1))


async def _ping_apart(engine: AsyncEngine) -> None:
    spare = sqlalchemy.ext.asyncio.create_async_engine(engine.url, pool=engine.pool.recreate())
    try:
        await _ping(spare)
    finally:
        await spare.dispose()


async def _check_own(app: FastAPI) -> Health:
    engine: AsyncEngine | None = getattr(app.state, engine_key(None), None)
    if engine is None:
        raise AppConfigError(
            "this application has no database: enter setup_db(app, database_url=...) in its "
            "lifespan, or give health_router() a check named 'database'"
        )
    return await check_database(engine)


class _Bounded:
    """A check that ends in time, and of which an application has one at a time.

    A crowd of callers, or a database that swallows everything, cannot make it take more than one
    connection.
    """

    def __init__(self, name: str, check: Check) -> None:
        self.name = name
        self._check = check
        self._running: WeakKeyDictionary[FastAPI, asyncio.Task[Health]] = WeakKeyDictionary()

    async def run(self, app: FastAPI, limit: float) -> Health:
        task = self._running.get(app)
        if task is None or task.done():
            task = self._running[app] = asyncio.create_task(self._find(app, limit))
        done, _ = await asyncio.wait({task}, timeout=limit)
        return task.result() if done and not task.cancelled() else Health.FAILED

    async def _find(self, app: FastAPI, limit: float) -> Health:
        try:
            async with asyncio.timeout(limit):
                return await self._check(app) or Health.OK
        except Exception as exc:  # noqa: BLE001 - whatever it is, the check failed
            reason = driver_message(exc) or f"no answer within {limit} seconds"
            _log.warning("check %r failed: %s: %s", self.name, type(exc).__name__, reason)
            return Health.FAILED
