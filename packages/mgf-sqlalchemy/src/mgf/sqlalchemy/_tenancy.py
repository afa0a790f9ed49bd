"""The tenant scope: blocks of code in which a session or a connection belongs to a tenant."""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import FlushError

from mgf.sqlalchemy._binding import (
    Setting,
    binding_of,
    next_place,
    refuse_dialect,
    refuse_unscopable,
    set_local,
)
from mgf.sqlalchemy._state import known_state, state_of
from mgf.sqlalchemy.errors import TenantScopeError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from mgf.sqlalchemy._state import ScopeFrame

# uuid.UUID() also takes braces, "urn:uuid:", odd dashes and surrounding characters.
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}")

# As many as SQLAlchemy's commit() takes until a session is clean.
_MOST_FLUSHES = 100

_Session = TypeVar("_Session", bound="AsyncSession | async_scoped_session[Any]")


def tenant_session(
    session: _Session, tenant_id: UUID | str
) -> AbstractAsyncContextManager[_Session]:
    """Scope a session to a tenant for the length of a block.

    Every transaction of the block carries the tenant: the one that is open already, those that
    begin by themselves, those after ``commit()`` and ``rollback()``, savepoints and what
    remains after a savepoint was rolled back. Leaving the block restores what an outer scope had
    put in force, else none, also in the middle of an open transaction; nothing is sent for that
    before the next statement. Scopes nest.

    Objects follow their tenant. Entering flushes pending work, and what listeners to that flush
    add, under the tenant that created it and sets that tenant's objects aside, leaving puts them
    back; entering the tenant already in force changes nothing. What may be out of date by then
    (work was rolled back, or another scope of that tenant lay in between) comes back expired.
    Objects loaded under no tenant stay attached. Leaving the outermost block flushes, then
    detaches what the block loaded, as ``close()`` would: objects stay readable, and are changed
    again in a new scope with ``session.merge()``. What objects of no tenant have loaded through
    relationships, or computed by a query, they forget at each of these changes, and so they do
    with attributes that were loaded again in between, as a view's may be: rows of a tenant may
    have gone into it. Name it again (``refresh()``, a loader option) where it is needed. When the
    block ends by an exception, what was not flushed is discarded. A flush that fails at the end
    raises its error, and the scope is left all the same: the error is about work that is lost, and
    staying in the scope would not save it.

    A result that is still being read when the tenant of an open transaction changes ends with
    the next statement: reading on raises (SQLSTATE 34000, or SQLAlchemy's
    ``InvalidRequestError`` for objects). A policy may be evaluated row by row, and the rest could
    be the other tenant's rows. Deferred constraints and triggers are checked at that moment, for
    the tenant whose work they are about, and are immediate for the rest of the transaction.

    Args:
        session: any `AsyncSession`, or an `async_scoped_session` around one. It is what the
            block gets.
        tenant_id: a `UUID`, or text of that shape in either case, with dashes or without.

    Raises:
        ValueError: `tenant_id` is neither; before any SQL.
        TypeError: `session` is something else.
        TenantScopeError: at entry, the session's database has no row-level security (SQLite,
            MySQL); with a statement, the connection is in AUTOCOMMIT, or it is shared with a
            session that is in no scope, or in another tenant's; at exit, an inner scope of the
            session is still open.
    """
    tenant = parse_tenant(tenant_id)
    if isinstance(session, async_scoped_session):
        return SessionScope(session, session(), tenant)
    if not isinstance(session, AsyncSession):
        raise TypeError(f"tenant_session() takes an AsyncSession, not {_kind(session)}")
    if not _is_real(session):
        return _scope_test_double(session, tenant)
    return SessionScope(session, session, tenant)


def tenant_connection(
    connection: AsyncConnection, tenant_id: UUID | str
) -> AbstractAsyncContextManager[AsyncConnection]:
    """Scope a connection to a tenant for the length of a block, as `tenant_session` does.

    For code without the ORM. Each transaction of the connection carries the tenant, the one
    that is open at entry included; leaving restores what was in force before. A session that
    uses the connection meanwhile has to enter a scope of its own, since it keeps objects.

    Args:
        connection: a started `AsyncConnection`. It is what the block gets.
        tenant_id: as for `tenant_session`.

    Raises:
        ValueError: `tenant_id` is no UUID; before any SQL.
        TypeError: `connection` is something else.
        TenantScopeError: at entry, the database has no row-level security, or the connection is
            not open or in AUTOCOMMIT; with the first statement, it is shared with a session in
            the scope of another tenant.
    """
    tenant = parse_tenant(tenant_id)
    if not isinstance(connection, AsyncConnection):
        raise TypeError(f"tenant_connection() takes an AsyncConnection, not {_kind(connection)}")
    return _scope_connection(connection, tenant)


def current_tenant(
    session_or_connection: AsyncSession | async_scoped_session[Any] | AsyncConnection,
) -> UUID | None:
    """Return the tenant whose scope a session or connection is in, or None.

    What is in force by the scopes of this process; the database is not asked.

    Raises:
        TypeError: the argument is neither a session nor a connection.
    """
    if isinstance(session_or_connection, AsyncConnection):
        connection = session_or_connection.sync_connection
        return None if connection is None else binding_of(connection).wanted.tenant
    if isinstance(session_or_connection, async_scoped_session):
        session_or_connection = session_or_connection()
    if not isinstance(session_or_connection, AsyncSession):
        raise TypeError(
            "current_tenant() takes an AsyncSession or an AsyncConnection, "
            f"not {_kind(session_or_connection)}"
        )
    if not _is_real(session_or_connection):
        return None
    return state_of(session_or_connection.sync_session).tenant


def parse_tenant(tenant_id: object) -> UUID:
    """Return a tenant id as a plain `UUID`, as strictly as every scope reads it.

    Any other than a plain UUID is rebuilt from its digits: nothing that a subclass of UUID or str
    overrides gets through.

    Args:
        tenant_id: a `UUID`, or text of that shape in either case, with dashes or without. Not
            what else `UUID` takes: braces, prefixes, odd dashes, bytes.

    Raises:
        ValueError: it is anything else, None included.
    """
    if type(tenant_id) is UUID:
        return tenant_id
    if isinstance(tenant_id, UUID):
        return UUID(int=int(tenant_id.int))
    if isinstance(tenant_id, str) and (match := _UUID.fullmatch(tenant_id)):
        return UUID(hex=match.group())
    given = repr(tenant_id) if isinstance(tenant_id, str) else _kind(tenant_id)
    raise ValueError(
        f"a tenant id is a uuid.UUID, or a str like "
        f"'6f1e7f3c-32a1-4a7e-9d0e-0a4c2f6b8d11', not {given}"
    )


class SessionScope(AbstractAsyncContextManager[_Session]):
    """What `tenant_session` returns. No generator, which would cost a third of the scope.

    Args:
        given: what the block gets.
        session: the session itself.
        tenant: a plain UUID.
    """

    __slots__ = ("_frame", "_given", "_session", "_tenant")

    def __init__(self, given: _Session, session: AsyncSession, tenant: UUID) -> None:
        self._given = given
        self._session = session
        self._tenant = tenant
        self._frame: ScopeFrame | None = None

    async def __aenter__(self) -> _Session:
        if self._frame is not None:
            raise TenantScopeError(
                "this scope has been entered already; call tenant_session() for each block"
            )
        session = self._session.sync_session
        _refuse_unscopable_bind(session)
        await _meet_open_transaction(self._session)
        state = state_of(session)
        if state.tenant == self._tenant:
            self._frame = state.repeat()
        else:
            held = await _flush(self._session)
            self._frame = state.enter(session, self._tenant, held)
        return self._given

    async def __aexit__(self, exc_type: object, exc: object, traceback: object) -> None:
        try:
            if exc_type is None and self._frame is not None and not self._frame.is_repeat:
                await _flush(self._session)
        finally:
            self.leave()

    def leave(self) -> None:
        """Leave the scope; see `SessionState.leave`."""
        frame, self._frame = self._frame, None
        if frame is not None:
            session = self._session.sync_session
            state_of(session).leave(session, frame)


@asynccontextmanager
async def _scope_connection(
    connection: AsyncConnection, tenant: UUID
) -> AsyncGenerator[AsyncConnection]:
    sync_connection = connection.sync_connection
    if sync_connection is None or sync_connection.closed:
        raise TenantScopeError(
            "this connection is not open; enter the scope inside 'async with engine.connect()'"
        )
    if not sync_connection.invalidated:  # else the first statement makes a new one, and is refused
        refuse_unscopable(sync_connection)
    binding = binding_of(sync_connection)
    scope = _ConnectionScope(Setting(tenant))
    binding.hook()
    binding.add(scope)
    try:
        yield connection
    finally:
        binding.remove(scope)


@asynccontextmanager
async def _scope_test_double(session: _Session, tenant: UUID) -> AsyncGenerator[_Session]:
    """Scope what only says that it is an AsyncSession: send the statement, nothing else."""
    await session.execute(text(set_local(tenant)))
    yield session


@dataclass(frozen=True, eq=False)
class _ConnectionScope:
    """A block of code that scopes a connection."""

    setting: Setting
    entered: int = field(default_factory=next_place)
    is_exclusive: bool = False


def _is_real(session: AsyncSession) -> bool:
    """Tell a session, also behind a transparent proxy, from a test double that says it is one."""
    return isinstance(getattr(session, "sync_session", None), Session)


def _kind(thing: object) -> str:
    # Not its repr(): it may be a URL with a password, or somebody's claims.
    return f"an object of type {type(thing).__name__!r}"


def _refuse_unscopable_bind(session: Session) -> None:
    try:
        bind = session.bind or session.get_bind()
    except Exception:  # noqa: BLE001
        # Per-mapper binds alone, or a choice of the user's that has to know for what: refused when
        # the first of them begins a transaction.
        return
    refuse_dialect(bind.dialect.name)


async def _meet_open_transaction(session: AsyncSession) -> None:
    """Make sure that a transaction begun before this module was imported is known."""
    if session.in_transaction() and known_state(session.sync_session) is None:
        with suppress(UnboundExecutionError):
            connection = (await session.connection()).sync_connection
            if connection is not None:
                state_of(session.sync_session).connections.add(connection)


async def _flush(session: AsyncSession) -> list[object]:
    """Flush a session, and what its listeners add meanwhile, and return what it holds."""
    sync_session = session.sync_session
    for _ in range(_MOST_FLUSHES):
        held = list(sync_session)
        # Most sessions hold nothing here, which is the cheapest to find out; and flush() starts
        # a greenlet before it looks.
        if not held or not (sync_session.new or sync_session.dirty or sync_session.deleted):
            return held
        await session.flush()
    raise FlushError(
        f"after {_MOST_FLUSHES} flushes there is still work for the tenant in force: "
        "a listener to after_flush() seems to make new work each time"
    )
