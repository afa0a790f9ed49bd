"""What has to be true of a database before an application serves."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy import text

from mgf.common.exceptions import OperationError
from mgf.fastapi.db._trouble import driver_message
from mgf.sqlalchemy.audit import require_rls
from mgf.sqlalchemy.errors import is_transient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    MigrationCheck: TypeAlias = Callable[[AsyncConnection], Awaitable[bool]]

_log = logging.getLogger("mgf.fastapi.db")

# Seconds between two attempts: a server that restarts is there within one, one that is being
# made takes minutes.
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0


class DatabaseNotReadyError(OperationError):
    """The database did not answer in time, or its migrations are not at head."""

    __module__ = "mgf.fastapi.db"


@dataclass(frozen=True)
class StartUp:
    """What is asked of a database before an application serves; nothing, unless it is named.

    Args:
        wait: seconds in which it has to be there, all attempts and checks included. 0 waits for
            nothing: the first error ends the start, and where no check is asked for either, no
            connection is made.
        require_rls: row-level security has to hold, of the tables of a metadata if one is given.
        check_migrations: says whether the migrations are at head.
    """

    wait: float
    require_rls: bool | MetaData
    check_migrations: MigrationCheck | None

    async def check(self, engine: AsyncEngine) -> None:
        """Return when the database is ready.

        Raises:
            DatabaseNotReadyError: it is not.
            RlsNotActiveError: row-level security does not hold this role.
        """
        if self.wait or self.require_rls is not False or self.check_migrations is not None:
            await self._repeat(engine)

    async def _repeat(self, engine: AsyncEngine) -> None:
        """Make attempts until one succeeds, or fails for another reason than bad times."""
        last: Exception | None = None
        limit = asyncio.timeout(self.wait or None)
        try:
            async with limit:
                for delay in _delays():
                    try:
                        await self._attempt(engine)
                    except Exception as exc:
                        if not self.wait or not is_transient(exc):
                            raise
                        last = exc
                    else:
                        if last is not None:
                            _log.info("%s is ready", _place(engine))
                        return
                    _log.warning(
                        "%s is not ready, trying again in %.1f s: %s",
                        _place(engine),
                        delay,
                        _reason(last),
                    )
                    await asyncio.sleep(delay)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise DatabaseNotReadyError(
                f"{_place(engine)} was not ready within {self.wait:g} s: "
                f"{_reason(last or exc)}; see whether its server runs, or wait longer"
            ) from (last or exc)

    async def _attempt(self, engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            await connection.rollback()
            if self.require_rls is not False:
                metadata = None if self.require_rls is True else self.require_rls
                await require_rls(connection, metadata=metadata)
            if self.check_migrations is not None and not await self.check_migrations(connection):
                raise DatabaseNotReadyError(
                    f"the migrations of {_place(engine)} are not at head, says check_migrations; "
                    "run them ('alembic upgrade head'), or start the version that fits"
                )


def _delays() -> Iterator[float]:
    delay = _FIRST_DELAY
    while True:
        # Not all instances at the same moment.
        yield delay * random.uniform(0.5, 1)  # noqa: S311 - no secret
        delay = min(2 * delay, _LONGEST_DELAY)


def _place(engine: AsyncEngine) -> str:
    """Name a database by what is no secret in its URL."""
    url = engine.url
    host = url.host or url.query.get("host") or "the default host"
    return f"database {url.database!r} on {host}" + (f":{url.port}" if url.port else "")


def _reason(exc: BaseException) -> str:
    # A TimeoutError has no text.
    return driver_message(exc) or type(exc).__name__
