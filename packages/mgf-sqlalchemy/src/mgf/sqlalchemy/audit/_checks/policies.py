"""Policies: that each permissive one lets through the rows of the tenant in force, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgf.sqlalchemy.audit._canonical import holds_to_tenant, is_text
from mgf.sqlalchemy.audit._finding import Finding, NotProven
from mgf.sqlalchemy.audit._predicates import faults
from mgf.sqlalchemy.audit._sql import identifier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgf.sqlalchemy.audit._finding import Severity
    from mgf.sqlalchemy.audit._snapshot import Relation, Subject
    from mgf.sqlalchemy.rls import Policy

_COMMANDS = ("SELECT", "INSERT", "UPDATE", "DELETE")
# The policies that `mgf.sqlalchemy.rls` writes itself; others of a metadata are its user's own.
_WRITTEN = ("tenant_isolation", "tenant_floor")


def check_predicates(subject: Subject) -> Iterator[Finding]:
    """Yield permissive policies for the role that are not canonical."""
    for relation in _guarded(subject):
        permissive = [one for one in _applying(subject, relation) if not one.restrictive]
        for policy in permissive:
            if _is_declared(subject, relation, policy) or is_canonical(subject, relation, policy):
                continue
            is_floored = has_floor(subject, relation, policy)
            yield from _faults(subject, relation, policy, is_floored=is_floored)
            beside = [
                one.name
                for one in permissive
                if one is not policy and set(commands(one)) & set(commands(policy))
            ]
            if beside:
                yield Finding(
                    "policy-permissive-beside",
                    "warning" if is_floored else "error",
                    relation.label,
                    f"permissive policy {policy.name!r} stands beside {', '.join(beside)}: a row "
                    "passes when one of them lets it, so the widest decides",
                    _drop(relation, policy),
                )


def _guarded(subject: Subject) -> Iterator[Relation]:
    return (one for one in subject.relations if one.policies)


def _applying(subject: Subject, relation: Relation) -> list[Policy]:
    return [one for one in relation.policies if subject.applies(one)]


def commands(policy: Policy) -> tuple[str, ...]:
    """Return the commands that a policy is for."""
    return _COMMANDS if policy.for_ == "ALL" else (policy.for_,)


def is_canonical(subject: Subject, relation: Relation, policy: Policy) -> bool:
    """Say whether a policy lets through the rows of the tenant in force and no other."""
    canonical = subject.canonical.get(relation.oid, frozenset())
    given = [one for one in (policy.using, policy.with_check) if one is not None]
    return bool(given) and all(holds_to_tenant(one, canonical) for one in given)


def _is_declared(subject: Subject, relation: Relation, policy: Policy) -> bool:
    """Say whether a policy is one of the metadata's, predicate included."""
    return not subject.recorded and policy in subject.expected.get(relation.oid, ())


def has_floor(subject: Subject, relation: Relation, policy: Policy) -> bool:
    """Say whether restrictive policies hold what a policy lets through to the tenant in force."""
    floors = [
        one
        for one in relation.policies
        if one.restrictive
        and "PUBLIC" in one.to
        and (
            is_canonical(subject, relation, one)
            or (one.name.startswith(_WRITTEN) and _is_declared(subject, relation, one))
        )
    ]
    # Without USING, all that reaches rows which are there goes past it.
    covered = {
        command
        for one in floors
        for command in commands(one)
        if one.using is not None or command == "INSERT"
    }
    return covered.issuperset(commands(policy))


def _faults(
    subject: Subject, relation: Relation, policy: Policy, *, is_floored: bool
) -> Iterator[Finding]:
    canonical = subject.canonical.get(relation.oid, frozenset())
    column = subject.tenants[relation.oid]
    for clause, predicate in (("USING", policy.using), ("WITH CHECK", policy.with_check)):
        if predicate is None or holds_to_tenant(predicate, canonical):
            continue
        if clause == "WITH CHECK" and predicate == policy.using:
            continue
        for fault in faults(predicate, column, subject.setting):
            if fault.id == "policy-not-canonical" and _is_untold(subject, relation, policy):
                continue
            severity: Severity = fault.severity
            if is_floored and severity != "info":
                severity = "warning"
            yield Finding(
                fault.id,
                severity,
                relation.label,
                f"{clause} of policy {policy.name!r} {fault.consequence}"
                + (" (the restrictive policy holds it for now)" if is_floored else ""),
                _remedy(relation, policy, column, subject.setting),
            )


def _is_untold(subject: Subject, relation: Relation, policy: Policy) -> bool:
    """Say whether there is nothing to compare a policy's predicate with.

    `unproven_policies` says so; for a tenant column the recorded predicates are the judge.
    """
    if subject.declared is None:
        return subject.tenants[relation.oid] is None
    names = {one.name for one in subject.expected.get(relation.oid, ())}
    is_judged = policy.name.startswith(_WRITTEN) and subject.tenants[relation.oid] is not None
    return subject.recorded and policy.name in names and not is_judged


def _remedy(relation: Relation, policy: Policy, column: str | None, setting: str) -> str:
    if column is None or relation.column(column) is None:
        return _drop(relation, policy)
    kind = next(one.type for one in relation.columns.values() if one.name == column)
    name = setting.replace("'", "''")
    # A cast to varchar(n) cuts off, and makes one tenant of two.
    cast = "" if is_text(kind) else f"::{kind}"
    predicate = f"{identifier(column)} = (SELECT NULLIF(current_setting('{name}', true), ''){cast})"
    clauses = ""
    if policy.for_ != "INSERT":
        clauses += f"\n    USING ({predicate})"
    if policy.for_ not in ("SELECT", "DELETE"):
        clauses += f"\n    WITH CHECK ({predicate})"
    return f"ALTER POLICY {identifier(policy.name)} ON {relation.sql}{clauses};"


def _drop(relation: Relation, policy: Policy) -> str:
    return f"DROP POLICY {identifier(policy.name)} ON {relation.sql};"


def check_coverage(subject: Subject) -> Iterator[Finding]:
    """Yield tables that no policy opens for the role, and those without a restrictive one."""
    snapshot = subject.snapshot
    role = snapshot.role.rolname
    for relation in subject.relations:
        if not relation.enabled:
            continue
        if not relation.policies:
            # A partition is reached by way of its parent, whose policies hold there.
            if not subject.is_partition(relation):
                yield Finding(
                    "rls-no-policy",
                    "warning",
                    relation.label,
                    "has row-level security and no policy: nobody but exempt roles reads or "
                    "writes it, which tempts to switch it off",
                    f"CREATE POLICY tenant_isolation ON {relation.sql} TO {identifier(role)} ...;",
                )
            continue
        permissive = [one for one in relation.policies if not one.restrictive]
        if relation.privileges and not any(_helps(subject, one) for one in permissive):
            yield Finding(
                "policy-not-for-role",
                "error",
                relation.label,
                f"no permissive policy is for {role!r}, which has privileges on it: it sees no "
                "row, and whoever notices will open more than it needs",
                f"ALTER POLICY ... ON {relation.sql} TO {identifier(role)};",
            )
        if subject.declared is None and not all(
            has_floor(subject, relation, one) for one in permissive
        ):
            yield Finding(
                "policy-no-floor",
                "info",
                relation.label,
                "has no RESTRICTIVE policy: the next permissive one opens it",
                f"CREATE POLICY tenant_floor ON {relation.sql} AS RESTRICTIVE ...;",
            )


def _helps(subject: Subject, policy: Policy) -> bool:
    reachable = subject.snapshot.reachable
    return any(to == "PUBLIC" or (to in reachable and reachable[to].inherited) for to in policy.to)


def check_roles_of_policies(subject: Subject) -> Iterator[Finding]:
    """Yield permissive policies for everybody, and those for roles that policies do not hold."""
    for relation in _guarded(subject):
        for policy in relation.policies:
            if policy.restrictive or _is_declared(subject, relation, policy):
                continue
            exempt = sorted(subject.snapshot.exempt.intersection(policy.to))
            if exempt:
                yield Finding(
                    "policy-to-exempt",
                    "warning",
                    relation.label,
                    f"permissive policy {policy.name!r} is for {', '.join(map(repr, exempt))}, "
                    "whom no policy holds: it looks like a limit and is none",
                    f"ALTER ROLE {identifier(exempt[0])} NOSUPERUSER NOBYPASSRLS;\n"
                    f"-- or {_drop(relation, policy)}",
                )
            if "PUBLIC" in policy.to:
                yield Finding(
                    "policy-to-public",
                    "warning",
                    relation.label,
                    f"permissive policy {policy.name!r} is for every role of the server, also "
                    "those that are made for something else",
                    f"ALTER POLICY {identifier(policy.name)} ON {relation.sql} "
                    f"TO {identifier(subject.snapshot.role.rolname)};",
                )


def check_functions_of_policies(subject: Subject) -> Iterator[Finding]:
    """Yield functions in policies that answer wrongly, slowly, or with other rights."""
    for row in subject.snapshot.policy_functions:
        if row.polrelid not in subject.tenants:
            continue
        relation = subject.snapshot.relations[row.polrelid]
        says = f"policy {row.polname!r} calls {row.function}, which is"
        if row.provolatile == "i":
            yield Finding(
                "policy-function-immutable",
                "critical",
                relation.label,
                f"{says} IMMUTABLE: a plan that was made for one tenant keeps its answer, and "
                "shows that tenant's rows to the next",
                f"ALTER FUNCTION {row.sql} STABLE;",
            )
        if row.provolatile == "v":
            yield Finding(
                "policy-function-volatile",
                "error",
                relation.label,
                f"{says} VOLATILE: no index serves the policy, and each query reads the rows of "
                "all tenants",
                f"ALTER FUNCTION {row.sql} STABLE;",
            )
        if row.prosecdef:
            yield Finding(
                "policy-function-definer",
                "warning",
                relation.label,
                f"{says} SECURITY DEFINER: what it reads, it reads past the policies of who asks",
                f"ALTER FUNCTION {row.sql} SECURITY INVOKER;",
            )


def unproven_policies(subject: Subject) -> Iterator[NotProven]:
    """Yield policies that equality with the canonical predicate neither clears nor condemns."""
    for relation in _guarded(subject):
        for policy in _applying(subject, relation):
            if subject.declared is None and _is_untold(subject, relation, policy):
                yield NotProven(
                    relation.label,
                    f"policy {policy.name}",
                    "the table has no tenant column, and no metadata says whose rows it has; give "
                    "the metadata, or let a live probe tell",
                )
    for oid, policies in subject.expected.items():
        relation = subject.snapshot.relations[oid]
        there = {one.name for one in relation.policies}
        for policy in policies:
            is_own = not policy.name.startswith(_WRITTEN)
            if policy.name not in there or is_canonical(subject, relation, policy):
                continue
            if is_own or subject.recorded:
                yield NotProven(
                    relation.label,
                    f"policy {policy.name}",
                    "it is declared, and is not the canonical predicate; only a live probe can "
                    "tell whose rows it lets through"
                    if is_own
                    else "its predicate could not be compared without a temporary table",
                )
