"""Operations on the protection of a table, and on policies.

Each holds the whole state before and after, so that it can be reversed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.operations import Operations

from mgf.alembic._operation import ProtectionOp
from mgf.sqlalchemy import rls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import ExecutableDDLElement


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
            protection: all that goes; with it ``op.protect_table()`` brings it back. A policy
                that is gone already is no error.

        Raises:
            AppConfigError: there is no such table or role.
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
            # A downgrade past the repair of one that somebody had dropped comes here without it.
            yield rls.DropPolicy(policy, if_exists=True)

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
