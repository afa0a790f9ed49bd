"""A transaction in which one thing after the other is tried as somebody, and undone."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.audit._look import LOCK_TIMEOUT, milliseconds
from mgf.sqlalchemy.errors import sqlstate

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy import Connection, CursorResult

# Seconds. What runs longer is not proven.
STATEMENT_TIMEOUT: Final = 30.0

# Leaves the setting as it is.
UNTOUCHED: Final = None

_SAVEPOINT = "mgf_probe"
# Takes no lock, other than ALTER TABLE; foreign keys are triggers, too. Policies are not.
_TRIGGERS_OFF = "SET LOCAL session_replication_role = replica"
_TRIGGERS_ON = "SET LOCAL session_replication_role = origin"
_BECOME = text("SELECT set_config('role', :role, true)")
_BECOME_AND_BIND = text(
    "SELECT set_config('role', :role, true), set_config(:setting, :tenant, true)"
)
_LIMITS = text(
    "SELECT set_config('lock_timeout', :lock, true), set_config('statement_timeout', :run, true),"
    # Names are looked for in SQL that PostgreSQL prints.
    " set_config('quote_all_identifiers', 'off', true)"
)


class Session:
    """Runs statements as a role, in one savepoint that is rolled back to again and again.

    Args:
        connection: in a transaction that its owner rolls back.
        role: of the application.
        login: the role that the connection comes back to.
        setting: that holds the tenant.
    """

    def __init__(self, connection: Connection, *, role: str, login: str, setting: str) -> None:
        self.connection = connection
        self.role = role
        self.login = login
        self.setting = setting
        self._without_triggers = False

    def start(self) -> None:
        """Set the savepoint."""
        # What is deferred is never checked in a transaction that does not commit.
        self.run("SET CONSTRAINTS ALL IMMEDIATE")
        self.run(f"SAVEPOINT {_SAVEPOINT}")

    @contextmanager
    def trial(
        self, tenant: str | None, *, role: str | None = None, keep: bool = False
    ) -> Generator[None]:
        """Undo what the block did.

        Args:
            tenant: that the setting holds; UNTOUCHED leaves it as it was.
            role: other than the application's.
            keep: what a block did that raised nothing stays until the end of the transaction.
        """
        try:
            if self._without_triggers:
                self.run(_TRIGGERS_OFF)
            self.become(tenant, role=role)
            yield
        except BaseException:
            # A cancelled statement took its connection along, and stays what is raised.
            if not self.connection.invalidated:
                self.undo()
            raise
        if keep:
            self.become(None if tenant is UNTOUCHED else "", role=self.login)
            if self._without_triggers:
                self.run(_TRIGGERS_ON)
            self.run(f"RELEASE SAVEPOINT {_SAVEPOINT}")
            self.run(f"SAVEPOINT {_SAVEPOINT}")
        else:
            self.undo()

    def undo(self) -> None:
        """Go back to the savepoint, which stays."""
        self.run(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")

    def may_do_without_triggers(self) -> bool:
        """Say whether the login may switch triggers off: a superuser, or who was granted it."""
        try:
            self.run(_TRIGGERS_OFF)
        except DBAPIError as error:
            failure(error)
            return False
        finally:
            if not self.connection.invalidated:
                self.undo()
        return True

    @contextmanager
    def without_triggers(self) -> Generator[None]:
        """Switch triggers off in each trial of the block; the login has to be allowed to."""
        self._without_triggers = True
        try:
            yield
        finally:
            self._without_triggers = False

    def become(self, tenant: str | None, *, role: str | None = None) -> None:
        """Take a role, the application's unless given, and a tenant."""
        who = {"role": role or self.role}
        if tenant is UNTOUCHED:
            self.connection.execute(_BECOME, who)
        else:
            self.connection.execute(
                _BECOME_AND_BIND, {**who, "setting": self.setting, "tenant": tenant}
            )

    def run(self, sql: str) -> CursorResult[Any]:
        """Execute a statement as it is written."""
        if "format" in self.connection.dialect.paramstyle:
            sql = sql.replace("%", "%%")
        return self.connection.exec_driver_sql(sql)

    def scalar(self, sql: str) -> Any:
        """Return the first value of a statement's first row."""
        return self.run(sql).scalar()


def limit(connection: Connection) -> None:
    """Set the limits for the rest of a transaction."""
    limits = {"lock": milliseconds(LOCK_TIMEOUT), "run": milliseconds(STATEMENT_TIMEOUT)}
    connection.execute(_LIMITS, limits)


def failure(error: DBAPIError) -> str:
    """Return an error's SQLSTATE; what says that the connection is gone is raised."""
    code = sqlstate(error)
    if code is None or error.connection_invalidated or code.startswith(("08", "57P0")):
        raise error
    return code


def explain(error: DBAPIError) -> str:
    """Return SQLSTATE and message, without values.

    Of class 22, data exceptions, the message tells the value, and of class P0 whatever a trigger
    puts into it, so that is told in its place; details, which tell whole rows, are left out of all.
    """
    code = failure(error)
    if code.startswith("P0"):
        return f"{code}: raised by a trigger or function"
    message = "" if code.startswith("22") else _message(error)
    return f"{code}: {message}" if message else code


def is_ungranted(error: DBAPIError) -> bool:
    """Say whether a privilege is missing, which has the SQLSTATE of what a policy refuses."""
    for one in (error.orig, getattr(error.orig, "__cause__", None)):
        function = getattr(getattr(one, "diag", None), "source_function", None)
        if "aclcheck_error" in (function, getattr(one, "server_source_function", None)):
            return True
    return False


def _message(error: DBAPIError) -> str:
    for one in (error.orig, getattr(error.orig, "__cause__", None)):
        primary = getattr(getattr(one, "diag", None), "message_primary", None)
        found = primary or getattr(one, "message", None)
        if isinstance(found, str):
            return found.splitlines()[0]
    return ""
