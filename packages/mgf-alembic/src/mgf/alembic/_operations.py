"""Operations on what protects tables: ``op.protect_table()`` and its like.

Each holds the whole state before and after, so that it can be reversed. On databases other than
PostgreSQL those on policies and privileges do nothing, as ``create_all`` does nothing there.
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
    from collections.abc import Iterable, Iterator

    from sqlalchemy import ExecutableDDLElement

# What to do about an error of PostgreSQL's: undefined_table, undefined_column, duplicate_object,
# undefined_object, duplicate_table, invalid_schema_name.
_FIXES = {
    "42P01": "create it before, or correct its name or schema",
    "42703": "create the column before, or correct its name",
    "42710": "drop the one that is there before, with op.drop_policy(), or take another name",
    "42704": "create it before, or correct its name",
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

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what ``alembic check`` prints."""
        positional, keywords = self.arguments()
        return (self.call, *positional, *([keywords] if keywords else []))


@Operations.register_operation("protect_table")
class ProtectTableOp(ProtectionOp):
    """Give a table its protection, which has none yet."""

    call = "protect_table"

    def __init__(self, protection: rls.TableProtection) -> None:
        self.protection = protection

    @classmethod
    def protect_table(cls, operations: Operations, protection: rls.TableProtection) -> None:
        """Give a table its protection, which has none yet.

        Args:
            operations: Alembic's own; not given in a call of ``op.protect_table()``.
            protection: policies, ENABLE and FORCE, and grants. What default privileges gave to
                PUBLIC and to the roles of the grants is taken back.

        Raises:
            AppConfigError: there is no such table or role, a policy of that name is there, or
                policies would not hold a role that they are for.
        """
        operations.invoke(cls(protection))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.protection,), {}

    def policies(self) -> Iterable[rls.Policy]:
        return self.protection.policies

    def statements(self) -> Iterable[ExecutableDDLElement]:
        return rls.protect_table(self.protection)

    def reverse(self) -> UnprotectTableOp:
        return UnprotectTableOp(self.protection)


@Operations.register_operation("unprotect_table")
class UnprotectTableOp(ProtectionOp):
    """Take a table's protection away."""

    call = "unprotect_table"

    def __init__(self, protection: rls.TableProtection) -> None:
        self.protection = protection

    @classmethod
    def unprotect_table(cls, operations: Operations, protection: rls.TableProtection) -> None:
        """Take a table's protection away: its grants first, then row-level security.

        Args:
            operations: Alembic's own; not given in a call of ``op.unprotect_table()``.
            protection: all that goes; with it ``op.protect_table()`` brings it back.

        Raises:
            AppConfigError: there is no such table, policy or role.
        """
        operations.invoke(cls(protection))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.protection,), {}

    def statements(self) -> Iterator[ExecutableDDLElement]:
        one = self.protection
        for grant in one.grants:
            if grant.privileges:
                yield rls.RevokePrivileges(grant)
        if one.enabled or one.forced:
            yield rls.AlterRowSecurity(
                one.name,
                schema=one.schema,
                enabled=False if one.enabled else None,
                forced=False if one.forced else None,
            )
        for policy in one.policies:
            yield rls.DropPolicy(policy)

    def reverse(self) -> ProtectTableOp:
        return ProtectTableOp(self.protection)


@Operations.register_operation("create_policy")
class CreatePolicyOp(ProtectionOp):
    """Create a policy."""

    call = "create_policy"

    def __init__(self, policy: rls.Policy) -> None:
        self.policy = policy

    @classmethod
    def create_policy(cls, operations: Operations, policy: rls.Policy) -> None:
        """Create a policy.

        Args:
            operations: Alembic's own; not given in a call of ``op.create_policy()``.
            policy: all of it.

        Raises:
            AppConfigError: there is no such table or role, a policy of that name is there, or
                policies would not hold a role that it is for.
        """
        operations.invoke(cls(policy))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.policy,), {}

    def policies(self) -> Iterable[rls.Policy]:
        return (self.policy,)

    def statements(self) -> Iterable[ExecutableDDLElement]:
        return (rls.CreatePolicy(self.policy),)

    def reverse(self) -> DropPolicyOp:
        return DropPolicyOp(self.policy)


@Operations.register_operation("drop_policy")
class DropPolicyOp(ProtectionOp):
    """Drop a policy."""

    call = "drop_policy"

    def __init__(self, policy: rls.Policy) -> None:
        self.policy = policy

    @classmethod
    def drop_policy(cls, operations: Operations, policy: rls.Policy) -> None:
        """Drop a policy.

        Args:
            operations: Alembic's own; not given in a call of ``op.drop_policy()``.
            policy: name and table are what counts; the rest serves to bring it back.

        Raises:
            AppConfigError: there is no such table or policy.
        """
        operations.invoke(cls(policy))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.policy,), {}

    def statements(self) -> Iterable[ExecutableDDLElement]:
        return (rls.DropPolicy(self.policy),)

    def reverse(self) -> CreatePolicyOp:
        return CreatePolicyOp(self.policy)


@Operations.register_operation("alter_policy")
class AlterPolicyOp(ProtectionOp):
    """Put a policy in another's place."""

    call = "alter_policy"

    def __init__(self, policy: rls.Policy, *, existing: rls.Policy) -> None:
        self.policy = policy
        self.existing = existing

    @classmethod
    def alter_policy(
        cls, operations: Operations, policy: rls.Policy, *, existing: rls.Policy
    ) -> None:
        """Put a policy in another's place.

        It is dropped and created again: ALTER POLICY cannot change the command or the kind.

        Args:
            operations: Alembic's own; not given in a call of ``op.alter_policy()``.
            policy: what it is to be.
            existing: what is there.

        Raises:
            AppConfigError: there is no such table, policy or role, or policies would not hold a
                role that it is for.
        """
        operations.invoke(cls(policy, existing=existing))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.policy,), {"existing": self.existing}

    def policies(self) -> Iterable[rls.Policy]:
        return (self.policy,)

    def statements(self) -> Iterable[ExecutableDDLElement]:
        return rls.DropPolicy(self.existing), rls.CreatePolicy(self.policy)

    def reverse(self) -> AlterPolicyOp:
        return AlterPolicyOp(self.existing, existing=self.policy)


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
            AppConfigError: there is no such object or role.
        """
        operations.invoke(cls(grant))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.grant,), {}

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


@Operations.implementation_for(ProtectionOp)
def _run(operations: Operations, operation: ProtectionOp) -> None:
    migrations = operations.get_context()
    is_postgresql = migrations.dialect.name == "postgresql"
    if is_postgresql and not migrations.as_sql:
        _check_roles(operations, operation)
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


def _check_roles(operations: Operations, operation: ProtectionOp) -> None:
    connection = operations.get_bind()
    roles = {role for policy in operation.policies() for role in policy.to}
    for role in sorted(roles - {"PUBLIC"}):
        try:
            rls.check_roles(connection, role, ())
        except AppConfigError as error:
            raise AppConfigError(f"{_title(operation)} failed: {error}") from None


def _title(operation: ProtectionOp) -> str:
    positional, _ = operation.arguments()
    named = positional[0]
    name = getattr(named, "on", None) or getattr(named, "name", named)
    return f"op.{operation.call}() of {name!r}"
