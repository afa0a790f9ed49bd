"""What is looked for: pure functions over the facts, by subject."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mgf.sqlalchemy.audit._checks import doors, keys, policies, roles, server, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mgf.sqlalchemy.audit._finding import Finding
    from mgf.sqlalchemy.audit._snapshot import Subject

CHECKS: Final[tuple[Callable[[Subject], Iterator[Finding]], ...]] = (
    server.check_server,
    roles.check_attributes,
    roles.check_memberships,
    roles.check_parameters,
    roles.check_ownership,
    roles.check_domains,
    roles.check_settings,
    roles.check_schemas,
    roles.check_login,
    tables.check_presence,
    tables.check_row_security,
    tables.check_tenant_columns,
    tables.check_privileges,
    tables.check_strays,
    tables.check_publications,
    policies.check_predicates,
    policies.check_coverage,
    policies.check_roles_of_policies,
    policies.check_functions_of_policies,
    keys.check_unique_keys,
    keys.check_foreign_keys,
    doors.check_views,
    doors.check_functions,
    doors.check_triggers,
)
