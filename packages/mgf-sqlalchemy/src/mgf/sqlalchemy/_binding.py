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
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import event

from mgf.sqlalchemy._carrier import carrier_of, send
from mgf.sqlalchemy.errors import TenantScopeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from sqlalchemy.engine import Connection, Engine, RootTransaction

SETTING = "app.current_tenant"

# After ROLLBACK TO SAVEPOINT only PostgreSQL knows what is in force; and before it, in a failed
# transaction, nothing else may be sent.
_ROLLBACK_FIRST = re.compile(
    r"(?:[\s;]+|--[^\n]*\n|/\*.*?\*/)*ROLLBACK\b", re.IGNORECASE | re.DOTALL
)
# Anywhere in a text of several statements. In a literal it costs one statement sent again.
_ROLLBACK = re.compile(r"\bROLLBACK\b", re.IGNORECASE)


@dataclass(frozen=True)
class Setting:
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
        self._scopes: weakref.WeakSet[Scope] = weakref.WeakSet()
        self._root: weakref.ref[RootTransaction] | None = None
        self._applied: Setting | None = UNBOUND
        # The tenant whose rows a cursor that is still open may be reading.
        self._read_by: UUID | None = None
        self._is_sending = False
        self._is_hooked = False

    @property
    def wanted(self) -> Setting:
        """What the innermost scope wants."""
        live = self._live()
        return live[-1].setting if live else UNBOUND

    @property
    def has_begun(self) -> bool:
        """Whether a transaction of the connection has been seen."""
        return self._root is not None

    def add(self, scope: Scope) -> None:
        """Let a scope have its say."""
        self._scopes.add(scope)

    def remove(self, scope: Scope) -> None:
        """Let a scope say nothing more."""
        self._scopes.discard(scope)

    def hook(self, connection: Connection) -> None:
        """After a change: look at each statement from now on, and bind first if need be."""
        self._drop_carried(connection)
        if not self._is_hooked:
            event.listen(connection, "before_cursor_execute", _before_statement)
            self._is_hooked = True

    def apply(self, connection: Connection) -> None:
        """Bind the connection's transaction to what is wanted, with its BEGIN where that is due.

        To be called when a transaction begins, or a statement is about to be sent.

        Raises:
            TenantScopeError: the database has no row-level security, the connection is in
                AUTOCOMMIT, where a setting is lost with the statement that made it, or two
                sessions want different tenants on it.
        """
        if self._is_sending:
            return
        _refuse_conflict(self._live())
        root = connection.get_transaction()
        if root is not None and (self._root is None or self._root() is not root):
            self._root, self._applied, self._read_by = weakref.ref(root), UNBOUND, None
        wanted = self.wanted
        if wanted != self._applied:
            refuse_unscopable(connection)
            statements = list(wanted.statements(self._applied))
            carrier = carrier_of(connection)
            if carrier is None or not carrier.carry("; ".join(statements)):
                self._send(connection, statements)
            self._applied, self._read_by = wanted, wanted.tenant

    def _send(self, connection: Connection, statements: list[str]) -> None:
        changes_tenant = self.wanted.tenant != self._read_by
        self._is_sending = True
        try:
            send(connection, statements, ends_work=changes_tenant)
        finally:
            self._is_sending = False

    def _drop_carried(self, connection: Connection) -> None:
        carrier = carrier_of(connection)
        if carrier is not None and carrier.drop():
            self._applied = UNBOUND  # BEGIN was still to come

    def forget(self) -> None:
        """Take what is applied for unknown: part of the transaction is being rolled back."""
        self._applied = None

    def _live(self) -> list[Scope]:
        return sorted(self._scopes, key=attrgetter("entered"))


# The values must not refer to their keys, or no connection would ever be collected.
_bindings: weakref.WeakKeyDictionary[Connection, Binding] = weakref.WeakKeyDictionary()


def binding_of(connection: Connection) -> Binding:
    """Return the connection's binding, made on first use."""
    binding = _bindings.get(connection)
    if binding is None:
        binding = _bindings[connection] = Binding()
    return binding


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


def _refuse_conflict(scopes: list[Scope]) -> None:
    if len(scopes) < 2:
        return
    wanted = scopes[-1].setting.tenant
    if wanted is not None and any(
        scope.is_exclusive and scope.setting.tenant != wanted for scope in scopes[:-1]
    ):
        raise TenantScopeError(
            "this connection is shared with a session that is in no scope of its own, or in "
            "another tenant's; give it a connection of its own, or enter tenant_session() on "
            "it for the same tenant"
        )


_watched: weakref.WeakSet[Engine] = weakref.WeakSet()


def watch_transactions(engine: Engine) -> None:
    """Notice when a connection's transaction is ended and followed by one that nobody announced.

    A session that is bound to an engine tells when a transaction begins, but not when its
    connection was taken from it and committed there.
    """
    if engine not in _watched:
        _watched.add(engine)
        event.listen(engine, "begin", _hook_next_transaction)


def _hook_next_transaction(connection: Connection) -> None:
    binding = _bindings.get(connection)
    if binding is not None and binding.has_begun:
        binding.hook(connection)


def _before_statement(
    connection: Connection,
    _cursor: Any,
    statement: str,
    _parameters: Any,
    _context: Any,
    _executemany: bool,
) -> None:
    binding = binding_of(connection)
    if not _ROLLBACK_FIRST.match(statement):
        binding.apply(connection)
    if _ROLLBACK.search(statement):
        binding.forget()
