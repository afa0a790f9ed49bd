"""What operations on what protects tables have in common.

On databases other than PostgreSQL those on policies and privileges do nothing, as ``create_all``
does nothing there.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from alembic.operations import MigrateOperation, Operations
from sqlalchemy.exc import DBAPIError

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import rls
from mgf.sqlalchemy.errors import sqlstate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection, ExecutableDDLElement

# What to do about an error of PostgreSQL's: undefined_table, undefined_column, duplicate_object,
# undefined_object, duplicate_table, invalid_schema_name.
_FIXES = {
    "42P01": "create it before, or correct its name or schema",
    "42703": "create the column before, or correct its name",
    "42710": "drop the one that is there before, with op.drop_policy(), or take another name",
    "42704": "create it before (a role: ensure_app_role() or CREATE ROLE), or correct its name",
    "42P07": "drop the one that is there before, or take another name",
    "3F000": "create the schema before, or correct its name",
}
# What other databases have too.
_PORTABLE = (rls.CreateInvokerView, rls.DropInvokerView)


class ProtectionOp(MigrateOperation):
    """An operation on what protects tables."""

    # What it is called as.
    call: ClassVar[str]

    @abstractmethod
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what it is called with: what is positional, and keywords."""

    @abstractmethod
    def statements(self) -> Iterable[ExecutableDDLElement]:
        """Return what it sends."""

    def policies(self) -> Iterable[rls.Policy]:
        """Return the policies that it makes."""
        return ()

    def check(self, connection: Connection) -> None:
        """Raise `AppConfigError` where PostgreSQL would do it, and what it did would not hold."""
        roles = {role for policy in self.policies() for role in policy.to}
        for role in sorted(roles - {"PUBLIC"}):
            rls.check_roles(connection, role, ())

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what ``alembic check`` prints."""
        positional, keywords = self.arguments()
        return (self.call, *positional, *([keywords] if keywords else []))


@Operations.implementation_for(ProtectionOp)
def _run(operations: Operations, operation: ProtectionOp) -> None:
    migrations = operations.get_context()
    is_postgresql = migrations.dialect.name == "postgresql"
    if is_postgresql and not migrations.as_sql:
        try:
            operation.check(operations.get_bind())
        except AppConfigError as error:
            raise AppConfigError(f"{_title(operation)} failed: {error}") from None
    try:
        for statement in operation.statements():
            if is_postgresql or isinstance(statement, _PORTABLE):
                operations.execute(statement)
    except DBAPIError as error:
        fix = _FIXES.get(sqlstate(error) or "")
        if fix is None:
            raise
        reason = str(error.orig).splitlines()[0]
        raise AppConfigError(f"{_title(operation)} failed: {reason}; {fix}") from error


def _title(operation: ProtectionOp) -> str:
    positional, _ = operation.arguments()
    named = positional[0]
    name = getattr(named, "on", None) or getattr(named, "name", named)
    return f"op.{operation.call}() of {name!r}"
