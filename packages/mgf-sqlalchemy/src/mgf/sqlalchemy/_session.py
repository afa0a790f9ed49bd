"""Session factories."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy._state import RequiresTenant
from mgf.sqlalchemy._tenancy import SessionScope, parse_tenant

if TYPE_CHECKING:
    from types import TracebackType
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncEngine


def create_sessionmaker(
    engine: AsyncEngine,
    *,
    expire_on_commit: bool = False,
    require_tenant: bool = False,
    **extra: Any,
) -> async_sessionmaker[AsyncSession]:
    """Make a factory of sessions on an engine.

    Args:
        engine: from `create_engine`, or any other async engine.
        expire_on_commit: off, since an expired attribute of an async session cannot be loaded
            by merely reading it.
        require_tenant: make PostgreSQL refuse (SQLSTATE 42501) a statement on a table protected
            by row-level security while the session is in no tenant scope, where it would
            otherwise see no rows. Tables without row-level security are not concerned. It is
            about these sessions: a bare ``engine.connect()`` is not covered.
        extra: goes to ``async_sessionmaker`` (``autoflush``, ``info``, ``class_``, ...).

    Raises:
        AppConfigError: `require_tenant` on a database without row-level security.
    """
    if require_tenant:
        if engine.dialect.name != "postgresql":
            raise AppConfigError(
                f"require_tenant=True needs PostgreSQL's row-level security, which "
                f"{engine.dialect.name!r} does not have; leave it out for this engine"
            )
        class_ = extra.get("class_", AsyncSession)
        base = extra.get("sync_session_class", class_.sync_session_class)
        extra["sync_session_class"] = type(base.__name__, (RequiresTenant, base), {})
    return async_sessionmaker(engine, expire_on_commit=expire_on_commit, **extra)


def tenant_scope(
    sessionmaker: async_sessionmaker[AsyncSession], tenant_id: UUID | str
) -> AbstractAsyncContextManager[AsyncSession]:
    """Open a session scoped to a tenant, and close it at the end of the block.

    As ``async with sessionmaker() as session, tenant_session(session, tenant_id)``, but for the
    flush at the end: what was not committed is rolled back, so there is no use in sending it.

    Args:
        sessionmaker: a factory of sessions, as `create_sessionmaker` makes them.
        tenant_id: as for `tenant_session`.

    Raises:
        ValueError: `tenant_id` is no UUID; before a session is opened.
        TenantScopeError: as for `tenant_session`.
    """
    return _OpenedScope(sessionmaker, parse_tenant(tenant_id))


class _OpenedScope(AbstractAsyncContextManager[AsyncSession]):
    """A session that is opened and scoped in one step, and closed whatever happens."""

    __slots__ = ("_scope", "_session", "_sessionmaker", "_tenant")

    _session: AsyncSession
    _scope: SessionScope[AsyncSession]

    def __init__(self, sessionmaker: async_sessionmaker[AsyncSession], tenant: UUID) -> None:
        self._sessionmaker = sessionmaker
        self._tenant = tenant

    async def __aenter__(self) -> AsyncSession:
        self._session = session = await self._sessionmaker().__aenter__()
        self._scope = SessionScope(session, session, self._tenant)
        try:
            return await self._scope.__aenter__()
        except BaseException as exc:
            await session.__aexit__(type(exc), exc, exc.__traceback__)
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if _closes_at_once(self._session):
                self._session.sync_session.close()
            else:
                await self._session.__aexit__(exc_type, exc, traceback)
        finally:
            self._scope.leave()


def _closes_at_once(session: AsyncSession) -> bool:
    """Say whether closing has nothing to send, and so nothing to wait for.

    SQLAlchemy closes a session in a task of its own, whose end a cancelled caller still waits
    for. After a commit there is nothing that this protects, and it takes a tenth of a unit.
    """
    kind, sync_kind = type(session), type(session.sync_session)
    return (
        not session.sync_session.in_transaction()
        # A class of the user's may do more as it closes.
        and kind.__aexit__ is AsyncSession.__aexit__
        and kind.close is AsyncSession.close
        and sync_kind.close is Session.close
    )
