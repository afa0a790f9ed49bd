"""Tenant isolation declared on the models: who may see which rows, in PostgreSQL itself."""

from __future__ import annotations

from mgf.sqlalchemy.rls._canonical import deparse, expected_protection
from mgf.sqlalchemy.rls._catalog import read_protection
from mgf.sqlalchemy.rls._check import UnprotectedViewWarning
from mgf.sqlalchemy.rls._ddl import (
    AlterRowSecurity,
    CreatePolicy,
    DropPolicy,
    GrantPrivileges,
    RevokePrivileges,
    protect_table,
)
from mgf.sqlalchemy.rls._declaration import (
    TenantMixin,
    child_table,
    share_rows,
    shared_table,
    tenant_table,
)
from mgf.sqlalchemy.rls._difference import Difference, compare_protection, taken_along
from mgf.sqlalchemy.rls._grants import check_grant
from mgf.sqlalchemy.rls._keys import tenant_foreign_key, tenant_unique
from mgf.sqlalchemy.rls._predicates import tenant_default, tenant_predicate
from mgf.sqlalchemy.rls._protect import (
    declared_protection,
    is_protected,
    protect_metadata,
    protect_partitions,
    warn_of_views,
)
from mgf.sqlalchemy.rls._role import check_roles, ensure_app_role
from mgf.sqlalchemy.rls._state import Grant, Policy, Protection, TableProtection, ViewProtection
from mgf.sqlalchemy.rls._views import (
    CreateInvokerView,
    DropInvokerView,
    changed_views,
    create_views,
    invoker_view,
)

__all__ = [
    "AlterRowSecurity",
    "CreateInvokerView",
    "CreatePolicy",
    "Difference",
    "DropInvokerView",
    "DropPolicy",
    "Grant",
    "GrantPrivileges",
    "Policy",
    "Protection",
    "RevokePrivileges",
    "TableProtection",
    "TenantMixin",
    "UnprotectedViewWarning",
    "ViewProtection",
    "changed_views",
    "check_grant",
    "check_roles",
    "child_table",
    "compare_protection",
    "create_views",
    "declared_protection",
    "deparse",
    "ensure_app_role",
    "expected_protection",
    "invoker_view",
    "is_protected",
    "protect_metadata",
    "protect_partitions",
    "protect_table",
    "read_protection",
    "share_rows",
    "shared_table",
    "taken_along",
    "tenant_default",
    "tenant_foreign_key",
    "tenant_predicate",
    "tenant_table",
    "tenant_unique",
    "warn_of_views",
]
