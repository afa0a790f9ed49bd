"""Operations on row-level security being on, and on privileges.

Each holds the whole state before and after, so that it can be reversed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.operations import Operations

from mgf.alembic._operation import ProtectionOp
from mgf.sqlalchemy import rls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection, ExecutableDDLElement


@Operations.register_operation("alter_row_security")
class AlterRowSecurityOp(ProtectionOp):
    """Switch row-level security of a table on or off."""

    call = "alter_row_security"

    def __init__(
        self,
        table_name: str,
        *,
        schema: str | None = None,
        enabled: bool,
        forced: bool,
        existing_enabled: bool,
        existing_forced: bool,
    ) -> None:
        self.table_name = table_name
        self.schema = schema
        self.after = enabled, forced
        self.before = existing_enabled, existing_forced

    @classmethod
    def alter_row_security(
        cls,
        operations: Operations,
        table_name: str,
        *,
        schema: str | None = None,
        enabled: bool,
        forced: bool,
        existing_enabled: bool,
        existing_forced: bool,
    ) -> None:
        """Switch row-level security of a table on or off.

        Args:
            operations: Alembic's own; not given in a call of ``op.alter_row_security()``.
            table_name: of the table.
            schema: of the table; None is the default schema.
            enabled: ENABLE or DISABLE.
            forced: FORCE or NO FORCE.
            existing_enabled: whether it was enabled before.
            existing_forced: whether it was forced before.

        Raises:
            AppConfigError: there is no such table.
        """
        operations.invoke(
            cls(
                table_name,
                schema=schema,
                enabled=enabled,
                forced=forced,
                existing_enabled=existing_enabled,
                existing_forced=existing_forced,
            )
        )

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        keywords: dict[str, Any] = {} if self.schema is None else {"schema": self.schema}
        names = "enabled", "forced", "existing_enabled", "existing_forced"
        keywords |= zip(names, (*self.after, *self.before), strict=True)
        return (self.table_name,), keywords

    def statements(self) -> Iterable[ExecutableDDLElement]:
        enabled, forced = self.after
        return (
            rls.AlterRowSecurity(
                self.table_name, schema=self.schema, enabled=enabled, forced=forced
            ),
        )

    def reverse(self) -> AlterRowSecurityOp:
        (enabled, forced), (existing_enabled, existing_forced) = self.before, self.after
        return AlterRowSecurityOp(
            self.table_name,
            schema=self.schema,
            enabled=enabled,
            forced=forced,
            existing_enabled=existing_enabled,
            existing_forced=existing_forced,
        )


@Operations.register_operation("grant_privileges")
class GrantPrivilegesOp(ProtectionOp):
    """Grant privileges."""

    call = "grant_privileges"

    def __init__(self, grant: rls.Grant) -> None:
        self.grant = grant

    @classmethod
    def grant_privileges(cls, operations: Operations, grant: rls.Grant) -> None:
        """Grant privileges that a role did not have.

        Args:
            operations: Alembic's own; not given in a call of ``op.grant_privileges()``.
            grant: what, on what, to whom.

        Raises:
            AppConfigError: there is no such object or role, or the role that migrates may not
                grant on the schema.
        """
        operations.invoke(cls(grant))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.grant,), {}

    def check(self, connection: Connection) -> None:
        if self.grant.kind == "SCHEMA" and "ALL" not in self.grant.privileges:
            rls.check_grant(connection, self.grant)

    def statements(self) -> Iterable[ExecutableDDLElement]:
        return (rls.GrantPrivileges(self.grant),)

    def reverse(self) -> RevokePrivilegesOp:
        return RevokePrivilegesOp(self.grant)


@Operations.register_operation("revoke_privileges")
class RevokePrivilegesOp(ProtectionOp):
    """Take privileges back."""

    call = "revoke_privileges"

    def __init__(self, grant: rls.Grant) -> None:
        self.grant = grant

    @classmethod
    def revoke_privileges(cls, operations: Operations, grant: rls.Grant) -> None:
        """Take privileges back that a role had.

        Args:
            operations: Alembic's own; not given in a call of ``op.revoke_privileges()``.
            grant: what, on what, from whom.

        Raises:
            AppConfigError: there is no such object or role.
        """
        operations.invoke(cls(grant))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.grant,), {}

    def statements(self) -> Iterable[ExecutableDDLElement]:
        return (rls.RevokePrivileges(self.grant),)

    def reverse(self) -> GrantPrivilegesOp:
        return GrantPrivilegesOp(self.grant)
