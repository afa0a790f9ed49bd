"""What a session knows about tenants: the one in force, and which objects belong to none.

Listeners on all sessions carry it, so that any `AsyncSession` can be scoped, whoever made it and
whenever its transaction began.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, inspect
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Mapper, Session, object_session

from mgf.sqlalchemy._binding import (
    UNBOUND,
    Setting,
    binding_of,
    next_place,
)
from mgf.sqlalchemy._objects import NO_OBJECTS, ObjectRefs, attach_only, detach_all, forget_derived
from mgf.sqlalchemy._weak import WeakList
from mgf.sqlalchemy.errors import TenantScopeError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from sqlalchemy.orm import SessionTransaction


class RequiresTenant:
    """Mixed into the sessions of create_sessionmaker(require_tenant=True).

    A class, since what is in ``Session.info`` can be replaced by ``sessionmaker.configure()``.
    """


@dataclass(eq=False)
class ScopeFrame:
    """A scope that was entered and not yet left.

    Args:
        setting: what is wanted in it.
        outer_objects: those of the tenant that was in force before.
        endings: how many transactions whose end expires objects the session had seen; -1: the
            objects are out of date anyway.
        entered: its place in the order of entering.
        is_repeat: its tenant was in force already. It changed nothing, and leaving it does not.
    """

    setting: Setting
    outer_objects: ObjectRefs
    endings: int
    entered: int = field(default_factory=next_place)
    is_repeat: bool = False


_OUT_OF_ORDER = (
    "a tenant scope was left while one that was entered later on the same session is still open; "
    "leave scopes in the reverse order of entering them"
)


@dataclass(eq=False)
class SessionState:
    """The scopes that a session is in; none has a tenant while there is none.

    Args:
        loud: the session was made with `require_tenant`.
    """

    loud: bool
    # Of the open transaction, and of past ones as long as somebody holds them.
    connections: WeakList[Connection] = field(default_factory=WeakList[Connection])
    _frames: list[ScopeFrame] = field(default_factory=list[ScopeFrame])
    # Attached when the outermost scope was entered.
    _tenantless: ObjectRefs = NO_OBJECTS
    # Of these, by id, the attributes that were loaded since the last change; None: all.
    _reloaded: dict[int, frozenset[str] | None] = field(
        default_factory=dict[int, frozenset[str] | None]
    )
    _endings: int = 0
    # A transaction is open whose work is lost with close(), which tells of no rollback.
    _may_lose: bool = False
    # The last transaction; a connection that was handed to the session may go on without it.
    _has_ended: bool = False

    # A session keeps what it read: no other tenant may be put on top of it.
    is_exclusive = True

    @property
    def tenant(self) -> UUID | None:
        """The tenant in force, or None."""
        return self._frames[-1].setting.tenant if self._frames else None

    @property
    def entered(self) -> int:
        """The place of the innermost scope in the order of entering, 0 without one."""
        return self._frames[-1].entered if self._frames else 0

    @property
    def setting(self) -> Setting:
        """What the session wants its transactions to be bound to."""
        return self._frames[-1].setting if self._frames else Setting(None, self.loud)

    def repeat(self) -> ScopeFrame:
        """Enter the tenant that is in force already, which changes nothing."""
        frame = replace(self._frames[-1], is_repeat=True)
        self._frames.append(frame)
        return frame

    def enter(self, session: Session, tenant: UUID, held: list[object]) -> ScopeFrame:
        """Change to a tenant, and set aside the objects of the one that was in force.

        Args:
            session: the session, with no work that was not flushed.
            tenant: one that is not in force.
            held: what the session holds.
        """
        kept = self._tenantless.attached_to(session) if self._frames else held
        self._forget(session, kept)
        outer_objects = NO_OBJECTS
        if self._frames:
            kept_ids = {id(one) for one in kept}
            outer_objects = ObjectRefs(one for one in held if id(one) not in kept_ids)
            detach_all(session)
            attach_only(session, kept)
        else:
            self._tenantless = ObjectRefs(kept) if kept else NO_OBJECTS
        for outer, inner in pairwise(self._frames):
            if outer.setting.tenant == tenant:  # whose rows may be changed now, by other objects
                inner.endings = -1
        frame = ScopeFrame(Setting(tenant, self.loud), outer_objects, self._endings)
        self._frames.append(frame)
        self._tell_connections()
        return frame

    def leave(self, session: Session, frame: ScopeFrame) -> None:
        """Change back to what was in force before a scope, with its objects.

        Changes that were not flushed are forgotten.

        Args:
            session: the session.
            frame: what `enter` or `repeat` returned.

        Raises:
            TenantScopeError: an inner scope has not been left yet. It stays in force, and what
                this scope had around it comes back when the inner one is left.
        """
        self._remove(frame)
        if frame.is_repeat:
            return
        try:
            self._restore(session, frame)
        except BaseException:
            detach_all(session)  # nothing rather than what is another tenant's
            raise
        finally:
            self._tell_connections()

    def _remove(self, frame: ScopeFrame) -> None:
        if frame is self._frames[-1]:
            self._frames.pop()
            return
        inner = self._frames[self._frames.index(frame) + 1]
        if not frame.is_repeat:
            inner.outer_objects, inner.endings = frame.outer_objects, frame.endings
            inner.is_repeat = False
        self._frames.remove(frame)
        raise TenantScopeError(_OUT_OF_ORDER)

    def _restore(self, session: Session, frame: ScopeFrame) -> None:
        if not self._frames and not self._tenantless:
            detach_all(session)
            return
        kept = self._tenantless.attached_to(session)
        changed = [one for one in kept if one in session.dirty]
        self._forget(session, kept)
        detach_all(session)
        restored = frame.outer_objects.detached()
        attach_only(session, kept + restored)
        # After a rollback nobody knows which of their values were undone.
        stale = restored if self._endings != frame.endings else []
        for one in changed + stale:
            if one in session:
                session.expire(one)

    def _forget(self, session: Session, kept: list[object]) -> None:
        """Let objects of no tenant forget what they may have got from the rows of one."""
        forget_derived(session, kept)
        for one in kept:
            names = self._reloaded.get(id(one), frozenset())
            if names is None or names:
                session.expire(one, names)
        self._reloaded.clear()

    def begin(self, session: Session, connection: Connection) -> None:
        """Bind a transaction of the session that begins on a connection."""
        self._has_ended = False
        self._may_lose = True
        self.connections.add(connection)
        binding = binding_of(connection)
        binding.add(self)
        is_own = (
            session.bind is connection.engine
            and not binding.is_shared
            and not connection.in_nested_transaction()
        )
        if not is_own:
            # Somebody else may hold this connection, with a transaction or a savepoint open, and
            # go on with it when the session has ended its own.
            binding.hook()
            return
        if self.setting == UNBOUND:
            return
        try:
            binding.apply(connection)
        except BaseException:
            # The session keeps the connection: another try must meet the same error.
            binding.hook()
            raise

    def end(self) -> None:
        """Say nothing more about connections whose transactions of the session have ended."""
        if self._may_lose:
            self.note_ending()
        self._may_lose = False
        self._has_ended = True
        if not self._frames:
            self._tell_connections()

    def note_load(self, one: object, names: Iterable[str] | None) -> None:
        """Remember that an object of no tenant was loaded again: it may be mapped to a view."""
        if self._frames and one in self._tenantless:
            before = self._reloaded.get(id(one), frozenset())
            if names is None or before is None:
                self._reloaded[id(one)] = None
            else:
                self._reloaded[id(one)] = before.union(names)

    def take_back(self, session: Session, one: object, deleted_for: UUID | None) -> None:
        """Take back an object whose DELETE was rolled back, maybe in another tenant's scope.

        There it would be filled from that tenant's row of the same key.

        Args:
            session: the session, which holds it again.
            one: the object.
            deleted_for: the tenant that was in force at the DELETE.
        """
        if deleted_for == self.tenant:
            return
        if one in self._tenantless:
            session.expire(one)
        else:
            session.expunge(one)

    def note_commit(self, session: Session) -> None:
        """Remember that work of a transaction which ends is not lost."""
        self._may_lose = False
        if session.expire_on_commit:
            self.note_ending()

    def note_ending(self) -> None:
        """Remember that values of objects which were set aside may be out of date."""
        self._endings += 1

    def _tell_connections(self) -> None:
        for connection in self.connections.living():
            if not connection.closed:
                binding = binding_of(connection)
                if self._frames or not self._has_ended:
                    binding.add(self)
                else:
                    binding.remove(self)
                binding.hook()


# An attribute of ours: what is in Session.info is copied and cleared by users.
_ATTRIBUTE = "_mgf_state"


def known_state(session: Session) -> SessionState | None:
    """Return the session's state, if anything of the session has been seen."""
    state: SessionState | None = getattr(session, _ATTRIBUTE, None)
    return state


def state_of(session: Session) -> SessionState:
    """Return the session's state, made on first use."""
    state = known_state(session)
    if state is None:
        state = SessionState(isinstance(session, RequiresTenant))
        setattr(session, _ATTRIBUTE, state)
    return state


@event.listens_for(Session, "after_begin")
def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if not transaction.nested:
        state_of(session).begin(session, connection)


@event.listens_for(Session, "after_transaction_end")
def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None and (state := known_state(session)) is not None:
        state.end()


@event.listens_for(Session, "after_soft_rollback")
def _after_soft_rollback(session: Session, _previous: SessionTransaction) -> None:
    state_of(session).note_ending()


@event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    if not session.in_nested_transaction():  # else a savepoint was released
        state_of(session).note_commit(session)


@event.listens_for(Mapper, "refresh")
def _refresh(one: object, _context: Any, names: Iterable[str] | None) -> None:
    # The context says in which session, but for an UPDATE's objects and for composites.
    session = object_session(one)
    state = None if session is None else known_state(session)
    if state is not None:
        state.note_load(one, names)


@event.listens_for(Mapper, "refresh_flush")
def _refresh_flush(one: object, context: Any, names: Iterable[str] | None) -> None:
    # All but the version that was counted here: it is compared with the row's at the next UPDATE,
    # and one that is loaded only then would hide what somebody else did to the row meanwhile.
    mapper: Mapper[Any] = inspect(one).mapper
    if names is not None and (version := mapper.version_id_col) is not None:
        names = [name for name in names if mapper.columns.get(name) is not version]
    _refresh(one, context, names)


# In what an object's state carries for others.
_DELETED_FOR = "mgf.sqlalchemy.deleted_for"


@event.listens_for(Session, "persistent_to_deleted")
def _persistent_to_deleted(session: Session, one: object) -> None:
    inspect(one).info[_DELETED_FOR] = state_of(session).tenant


@event.listens_for(Session, "deleted_to_persistent")
def _deleted_to_persistent(session: Session, one: object) -> None:
    state_of(session).take_back(session, one, inspect(one).info.pop(_DELETED_FOR, None))
