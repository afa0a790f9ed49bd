"""What a session knows about tenants: the one in force, and which objects belong to none.

The state lives in ``Session.info``. Listeners on all sessions carry it, so that any
`AsyncSession` can be scoped, whoever made it and whenever its transaction began.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from mgf.sqlalchemy._binding import UNBOUND, Setting, binding_of
from mgf.sqlalchemy._objects import ObjectRefs, hold_only

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy.orm import SessionTransaction

# Set in Session.info by create_sessionmaker(require_tenant=True).
REQUIRE_TENANT = "mgf.sqlalchemy.require_tenant"
_STATE = "mgf.sqlalchemy.state"


@dataclass(frozen=True)
class OuterScope:
    """What was in force before a scope was entered, and has to come back.

    Args:
        tenant: the tenant, or None.
        objects: that tenant's objects.
        rollbacks: how many the session had seen.
    """

    tenant: UUID | None
    objects: ObjectRefs
    rollbacks: int


class SessionState:
    """The scope that a session is in; without a tenant while there is none."""

    # A session keeps what it read: no other tenant may be put on top of it.
    is_exclusive = True

    def __init__(self, session: Session) -> None:
        self.tenant: UUID | None = None
        self.was_scoped = False
        # Of the open transaction, and of past ones as long as somebody holds them.
        self.connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._session = weakref.ref(session)
        self._loud = bool(session.info.get(REQUIRE_TENANT))
        self._rollbacks = 0
        # Attached when the outermost scope was entered.
        self._tenantless = ObjectRefs()

    @classmethod
    def of(cls, session: Session) -> SessionState:
        """Return the session's state, made on first use."""
        if not cls.exists(session):
            session.info[_STATE] = cls(session)
        state: SessionState = session.info[_STATE]
        return state

    @classmethod
    def exists(cls, session: Session) -> bool:
        """Say whether the session has a state, and not one copied with another one's info."""
        state = session.info.get(_STATE)
        return isinstance(state, cls) and state.belongs_to(session)

    def belongs_to(self, session: Session) -> bool:
        """Say whether it is this session's."""
        return self._session() is session

    @property
    def setting(self) -> Setting:
        """What the session wants its transactions to be bound to."""
        return Setting(self.tenant, self._loud)

    def enter(self, session: Session, tenant: UUID) -> OuterScope:
        """Change to a tenant, and set aside the objects of the one that was in force."""
        objects = ObjectRefs()
        if self.tenant is None:
            self._tenantless = ObjectRefs(session)
        else:
            kept = self._tenantless.attached_to(session)
            kept_ids = {id(one) for one in kept}
            objects = ObjectRefs(one for one in session if id(one) not in kept_ids)
            hold_only(session, kept)
        outer = OuterScope(self.tenant, objects, self._rollbacks)
        self._change(tenant)
        return outer

    def leave(self, session: Session, outer: OuterScope, *, discard: bool) -> None:
        """Change back to what was in force, with its objects.

        Args:
            session: the session.
            outer: what `enter` returned.
            discard: forget changes that were not flushed.
        """
        kept = self._tenantless.attached_to(session)
        changed = [one for one in kept if discard and one in session.dirty]
        restored = outer.objects.detached()
        # After a rollback nobody knows which of their values were undone.
        stale = restored if self._rollbacks != outer.rollbacks else []
        try:
            hold_only(session, kept + restored)
            for one in changed + stale:
                if one in session:
                    session.expire(one)
        finally:
            self._change(outer.tenant)

    def begin(self, session: Session, connection: Connection) -> None:
        """Bind a transaction of the session that begins on a connection."""
        self.connections.add(connection)
        if self.setting == UNBOUND:
            return
        binding = binding_of(connection)
        binding.add(self)
        if not isinstance(session.bind, Engine) or connection.in_nested_transaction():
            # Somebody else may hold this connection, with a transaction or a savepoint open.
            binding.hook(connection)
            return
        try:
            binding.apply(connection)
        except BaseException:
            # The session keeps the connection: another try must meet the same error.
            binding.hook(connection)
            raise

    def note_rollback(self) -> None:
        """Remember that values of objects which were set aside may have been undone."""
        self._rollbacks += 1

    def _change(self, tenant: UUID | None) -> None:
        self.was_scoped = True
        self.tenant = tenant
        for connection in list(self.connections):
            if not connection.closed:
                binding = binding_of(connection)
                binding.add(self)
                binding.hook(connection)


@event.listens_for(Session, "after_begin")
def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if not transaction.nested:
        SessionState.of(session).begin(session, connection)


@event.listens_for(Session, "after_soft_rollback")
def _after_soft_rollback(session: Session, _previous: SessionTransaction) -> None:
    SessionState.of(session).note_rollback()


@event.listens_for(Session, "deleted_to_persistent")
def _deleted_to_persistent(session: Session, instance: object) -> None:
    # A rolled back DELETE brings the object back, maybe into another tenant's scope: let the
    # next use of it ask the database.
    if SessionState.of(session).was_scoped:
        session.expire(instance)
