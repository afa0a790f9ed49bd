"""What a leak is called in a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgf.sqlalchemy.audit._finding import Finding
from mgf.sqlalchemy.audit._labels import role_of
from mgf.sqlalchemy.audit._sql import identifier

if TYPE_CHECKING:
    from mgf.sqlalchemy.audit._snapshot import Relation, Subject


def leak(
    subject: Subject, relation: Relation | None, label: str, attack: str, reason: str
) -> Finding:
    """Return the finding for an attack that succeeded.

    Args:
        subject: of the audit.
        relation: that was attacked; None for a role.
        label: of what was attacked.
        attack: its name.
        reason: what was had.
    """
    return Finding(
        f"probe-{attack}", "critical", label, reason, _remedy(subject, relation, label, attack)
    )


def _remedy(subject: Subject, relation: Relation | None, label: str, attack: str) -> str:
    snapshot = subject.snapshot
    role = identifier(snapshot.role.rolname)
    if snapshot.role.rolsuper or snapshot.role.rolbypassrls:
        return f"ALTER ROLE {role} NOSUPERUSER NOBYPASSRLS;"
    if relation is None:
        name = role_of(label)
        if name is None or name == snapshot.role.rolname:
            return f"ALTER ROLE {role} RESET {subject.setting};"
        return f"REVOKE {identifier(name)} FROM {role};"
    if attack == "truncate":
        return f"REVOKE TRUNCATE ON {relation.sql} FROM PUBLIC, {role};"
    view = snapshot.views.get(snapshot.key(relation))
    if view is not None and not (view.security_invoker or view.materialized):
        return f"ALTER VIEW {relation.sql} SET (security_invoker = true);"
    if relation.kind in "mf":
        return f"REVOKE ALL ON {relation.sql} FROM PUBLIC, {role};"
    if view is None and relation.oid not in subject.tenants and not _refers(subject, relation):
        # What triggers fill has no column for a policy.
        return f"REVOKE SELECT ON {relation.sql} FROM PUBLIC, {role};"  # noqa: S608
    if view is None and not relation.enabled:
        return (
            f"ALTER TABLE {relation.sql} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
            "  -- and a policy that holds rows to the tenant"
        )
    return f"-- the audit tells which policy or view lets it through to {relation.sql}"


def _refers(subject: Subject, relation: Relation) -> bool:
    return any(
        one.conrelid == relation.oid and one.confrelid in subject.tenants
        for one in subject.snapshot.foreign_keys
    )
