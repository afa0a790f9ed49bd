"""What a connection's current transaction is bound to, and the statements that bind it.

The tenant belongs to the transaction: ``SET LOCAL`` ends with it, whatever ends it, so a pooled
connection cannot carry a tenant to its next user. A transaction is bound when it begins, and a
change inside it is sent with the next statement only: leaving a scope costs nothing when a
commit, a rollback or a close follows.
"""

from __future__ import annotations

import itertools
import re
import weakref
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sqlalchemy import Engine, event

from mgf.sqlalchemy._carrier import BeginCarrier, carrier_of, has_begun, send
from mgf.sqlalchemy._weak import WeakList
from mgf.sqlalchemy.errors import TenantScopeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from sqlalchemy.engine import Connection, ExecutionContext, RootTransaction

SETTING = "app.current_tenant"

# After ROLLBACK TO SAVEPOINT only PostgreSQL knows what is in force; and before it, in a failed
# transaction, nothing else may be sent. Possessive (*+): what was skipped is not looked at again in
# other ways, of which there are exponentially many.
_ROLLBACK_FIRST = re.compile(
    r"(?:[\s;]|--[^\n]*\n|/\*.*?\*/)*+ROLLBACK\b", re.IGNORECASE | re.DOTALL
)
# Anywhere in a text of several statements. In a literal it costs one statement sent again.
_ROLLBACK = re.compile(r"\bROLLBACK\b", re.IGNORECASE)


class Setting(NamedTuple):
    """What a transaction is bound to: a tenant or none.

    Args:
        tenant: rows of this tenant alone.
        loud: without a tenant, PostgreSQL refuses statements on protected tables
            (SQLSTATE 42501) instead of showing no rows.
    """

    tenant: UUID | None = None
    loud: bool = False

    def statements(self, before: Setting | None) -> Iterator[str]:
        """Yield what turns `before` (None: unknown) into this, inside a transaction."""
        if before is None or before.tenant != self.tenant:
            yield set_local(self.tenant)
        if self.loud if before is None else before.refuses != self.refuses:
            yield f"SET LOCAL row_security = {'off' if self.refuses else 'on'}"

    @property
    def refuses(self) -> bool:
        """Whether PostgreSQL refuses protected tables now."""
        return self.loud and self.tenant is None


def set_local(tenant: UUID | None) -> str:
    """Return the statement that binds a transaction to a tenant.

    A literal, since ``SET`` takes no parameters; it is a plain UUID's, whose text is made from
    its number, so that no text of the caller's gets near it. The empty string stands for none,
    as it does in PostgreSQL once the setting was used; a policy reads it as NULL.
    """
    return f"SET LOCAL {SETTING} = '{'' if tenant is None else tenant}'"


UNBOUND = Setting()

# Numbers the scopes of this process in the order of entering, from 1 on.
next_place = itertools.count(1).__next__


class Scope(Protocol):
    """Whoever has a say in what a connection is bound to: a session, or a block of code."""

    @property
    def setting(self) -> Setting:
        """What it wants."""
        ...

    @property
    def entered(self) -> int:
        """Its place in the order of entering: the last one decides. 0 without a tenant."""
        ...

    @property
    def is_exclusive(self) -> bool:
        """Whether no other tenant may be put on top of it: a session keeps what it read."""
        ...


class Binding:
    """What is wanted on one connection, and what its transaction is bound to."""

    def __init__(self) -> None:
        # Weak: a scope that nobody holds any more has no say, and a session that was dropped
        # must not be kept, with its connection, by its own binding.
        self._scopes: WeakList[Scope] = WeakList()
        self._root: weakref.ref[RootTransaction] | None = None
        self._applied: Setting | None = UNBOUND
        # The tenant whose rows a cursor that is still open may be reading.
        self._read_by: UUID | None = None
        # Whether the transaction has been of another tenant before.
        self._has_changed = False
        self._is_sending = False
        self._is_hooked = False

    @property
    def wanted(self) -> Setting:
        """What the innermost scope wants."""
        return _innermost(self._scopes.living())

    @property
    def is_shared(self) -> bool:
        """Whether others may have a say, too."""
        return len(self._scopes) > 1

    def add(self, scope: Scope) -> None:
        """Let a scope have its say."""
        self._scopes.add(scope)

    def remove(self, scope: Scope) -> None:
        """Let a scope say nothing more."""
        self._scopes.discard(scope)

    def hook(self) -> None:
        """After a change: look at each statement from now on, and bind first if need be."""
        self._is_hooked = True

    def before_statement(self, connection: Connection, statement: str) -> None:
        """Bind first what a statement is about to run in, where something may have changed.

        That is also so in a transaction that nobody announced: a session tells when it begins
        one, but not when its connection was taken from it, and ended or replaced there.
        """
        if not self._is_hooked and self._has_seen(connection.get_transaction()):
            return
        if not _ROLLBACK_FIRST.match(statement):
            self.apply(connection)
        if _ROLLBACK.search(statement):
            self._applied = None

    def apply(self, connection: Connection) -> None:
        """Bind the connection's transaction to what is wanted, if it is not.

        With its BEGIN where that is still to come, else at once. Not before SQLAlchemy has told of
        the transaction, as when a listener to its begin sends a statement: what is applied would
        be taken for another transaction's.

        Raises:
            TenantScopeError: the database has no row-level security, the connection is in
                AUTOCOMMIT, where a setting is lost with the statement that made it, or two
                sessions want different tenants on it.
        """
        root = connection.get_transaction()
        if self._is_sending or root is None:
            return
        wanted = self._agreed()
        if not self._has_seen(root):  # nothing is applied to it
            self._root, self._applied, self._read_by = weakref.ref(root), UNBOUND, None
            self._has_changed = False
        if wanted == self._applied:
            return
        refuse_unscopable(connection)
        if not _ask_at_begin(connection):
            self._send(connection, wanted)

    def bind_at_begin(self, connection: Connection) -> str | None:
        """Return what binds the transaction whose BEGIN is being sent, and take it for applied.

        Whether those that share the connection agree is asked before each statement. Nothing where
        none was announced: what reads by a cursor of the driver's, as ``get_isolation_level()``
        does, makes it send BEGIN, maybe before SQLAlchemy has begun, and the next statement takes
        the transaction for one that is bound to nothing.
        """
        if self._is_sending or not self._has_seen(connection.get_transaction()):
            return None  # it is about to be sent by itself
        wanted = self.wanted
        statements = "; ".join(wanted.statements(UNBOUND))
        self._applied, self._read_by = wanted, wanted.tenant
        return statements or None

    def _send(self, connection: Connection, wanted: Setting) -> None:
        ending = self._ending(wanted) if has_begun(connection) else ()
        statements = [*ending, *wanted.statements(self._applied)]
        self._applied = None
        self._is_sending = True
        try:
            send(connection, statements)
        finally:
            self._is_sending = False
        self._applied, self._read_by = wanted, wanted.tenant

    def _ending(self, wanted: Setting) -> Iterator[str]:
        """Yield what ends what was begun for one tenant and would go on for another.

        That is cursors, since a policy may be evaluated row by row, and deferred triggers, which
        would otherwise run at COMMIT. Nothing before BEGIN: SET TRANSACTION has to come first.
        """
        changes = wanted.tenant != self._read_by
        self._has_changed |= changes
        if changes:
            yield "CLOSE ALL"
        # ROLLBACK TO brings back triggers that ran inside the savepoint, and opens no cursor again.
        # The tenant whose they are, that of the savepoint, is in force again as well.
        if changes or (self._applied is None and self._has_changed):
            yield "SET CONSTRAINTS ALL IMMEDIATE"

    def _has_seen(self, root: RootTransaction | None) -> bool:
        return root is not None and self._root is not None and self._root() is root

    def _agreed(self) -> Setting:
        scopes = self._scopes.living()
        wanted = _innermost(scopes)
        if any(one.is_exclusive and one.setting.tenant != wanted.tenant for one in scopes):
            raise TenantScopeError(
                "this connection is shared with a session that is in no scope of its own, or in "
                "another tenant's; give it a connection of its own, or enter tenant_session() on "
                "it for the same tenant"
            )
        return wanted


def _innermost(scopes: list[Scope]) -> Setting:
    return max(scopes, key=attrgetter("entered")).setting if scopes else UNBOUND


# An attribute of ours, which lives as long as the connection. What it holds must not refer back,
# or a connection that was dropped would have to wait for the garbage collection.
_ATTRIBUTE = "_mgf_binding"


def binding_of(connection: Connection) -> Binding:
    """Return the connection's binding, made on first use."""
    binding: Binding | None = getattr(connection, _ATTRIBUTE, None)
    if binding is None:
        binding = Binding()
        setattr(connection, _ATTRIBUTE, binding)
    return binding


def _ask_at_begin(connection: Connection) -> bool:
    carrier = carrier_of(connection)
    return carrier is not None and carrier.ask(partial(_bind_at_begin, weakref.ref(connection)))


def _bind_at_begin(reference: weakref.ref[Connection], carrier: BeginCarrier) -> str | None:
    """Answer for the connection that asked its driver's connection to ask, while it has it."""
    connection = reference()
    if connection is None or carrier_of(connection) is not carrier:
        return None
    return binding_of(connection).bind_at_begin(connection)


def refuse_unscopable(connection: Connection) -> None:
    """Raise TenantScopeError if what is set on this connection would be without effect."""
    refuse_dialect(connection.dialect.name)
    if connection.dialect.detect_autocommit_setting(
        # The type is Optional for connections that were detached or closed.
        connection.connection.dbapi_connection  # type: ignore[arg-type]
    ):
        raise TenantScopeError(
            "this connection is in AUTOCOMMIT, where a tenant would be lost after each "
            "statement; use an engine or connection with another isolation level"
        )


def refuse_dialect(name: str) -> None:
    """Raise TenantScopeError for any database but PostgreSQL."""
    if name != "postgresql":
        raise TenantScopeError(
            f"a tenant scope needs PostgreSQL's row-level security, which {name!r} does not "
            f"have: rows of all tenants would be visible; use a PostgreSQL database here"
        )


# Events of the dialect, which are asked once for each statement; those of engines and connections
# cost every statement a round through all the events there are. For all dialects, since whoever
# listens to one of them comes later, and may say that the statement has been sent: then nobody
# else is asked.
@event.listens_for(Engine, "do_execute")
@event.listens_for(Engine, "do_executemany")
def _before_statement(
    _cursor: Any, statement: str, _parameters: Any, context: ExecutionContext | None
) -> None:
    if context is not None:
        connection = context.root_connection
        binding: Binding | None = getattr(connection, _ATTRIBUTE, None)
        if binding is not None:
            binding.before_statement(connection, statement)


@event.listens_for(Engine, "do_execute_no_params")
def _before_plain(cursor: Any, statement: str, context: ExecutionContext | None) -> None:
    _before_statement(cursor, statement, None, context)
