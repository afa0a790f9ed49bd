"""Ways around policies: views, functions, triggers and rules that run with other rights."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mgf.sqlalchemy.audit._checks.paths import pinned_path
from mgf.sqlalchemy.audit._checks.policies import has_floor, is_canonical
from mgf.sqlalchemy.audit._checks.written import WRITING, written
from mgf.sqlalchemy.audit._finding import Finding
from mgf.sqlalchemy.audit._sql import identifier

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy import Row

    from mgf.sqlalchemy.audit._snapshot import Relation, Subject
    from mgf.sqlalchemy.rls import Policy
    from mgf.sqlalchemy.rls._names import RelationName


def check_views(subject: Subject) -> Iterator[Finding]:
    """Yield views that show the role more than its own tenant's rows."""
    walk = _Walk(subject)
    for key in subject.snapshot.views:
        relation = subject.snapshot.by_key.get(key)
        if relation is None or not relation.within_reach or not walk.reads_tenants(key):
            continue
        if subject.snapshot.views[key].materialized:
            yield _copy(subject, relation)
        elif not subject.snapshot.views[key].security_invoker:
            yield _definer(subject, relation)
        elif (through := walk.definer_below(key)) is not None:
            yield _chain(subject, relation, through)


class _Walk:
    """Follows what views and owners of functions read, each of them once."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._views = subject.snapshot.views
        self._reads: dict[RelationName, bool] = {}
        self._exempt = dict.fromkeys(subject.snapshot.exempt, True)

    def reads_tenants(self, key: RelationName) -> bool:
        """Say whether a relation has tenants' rows, or a view reads one that has."""
        if key not in self._reads:
            relation = self._subject.snapshot.by_key.get(key)
            self._reads[key] = relation is not None and (
                relation.oid in self._subject.tenants or self._is_copy(relation)
            )
            if key in self._views:
                self._reads[key] |= any(map(self.reads_tenants, self._views[key].reads))
        return self._reads[key]

    def _is_copy(self, relation: Relation) -> bool:
        """Say whether a materialized view has tenants' rows, also where a function gave them."""
        return relation.kind == "m" and relation.column(self._subject.tenant_column) is not None

    def definer_below(self, key: RelationName) -> RelationName | None:
        """Return a view with other rights than its reader's that a view reads tenants' rows by."""
        for one in self._views[key].reads:
            if one in self._views and self.reads_tenants(one):
                view = self._views[one]
                if view.materialized or not view.security_invoker:
                    return one
                if (below := self.definer_below(one)) is not None:
                    return below
        return None

    def is_beyond_policies(self, oid: int) -> bool:
        """Say whether a view or foreign table shows tenants' rows that no policy of its reader
        holds.
        """
        relation = self._subject.snapshot.relations.get(oid)
        if relation is None:
            return False
        key = self._subject.snapshot.key(relation)
        if key not in self._views:
            return relation.kind == "f" and oid in self._subject.tenants
        view = self._views[key]
        is_held = view.security_invoker and not view.materialized
        return self.reads_tenants(key) and not (is_held and self.definer_below(key) is None)

    def is_exempt(self, owner: str) -> bool:
        """Say whether who owns a definer function reads rows that no policy holds to one tenant."""
        if owner not in self._exempt:
            row = self._subject.snapshot.definers[owner]
            # It has the rights of the roles that it inherits from.
            self._exempt[owner] = not self._not_held.isdisjoint(row.roles) or any(
                map(self.is_beyond_policies, row.reads)
            )
        return self._exempt[owner]

    @cached_property
    def _not_held(self) -> frozenset[str]:
        """Roles that own a table whose policies do not hold its owner, or that a policy lets see
        other tenants' rows.
        """
        relations = self._subject.relations
        owners = {one.owner for one in relations if not (one.enabled and one.forced)}
        return frozenset(owners).union(
            *(
                _opened_to(self._subject, one, policy)
                for one in relations
                for policy in one.policies
            )
        )


def _copy(subject: Subject, relation: Relation) -> Finding:
    return Finding(
        "view-materialized",
        "critical",
        relation.label,
        "is a copy of tenants' rows, which no policy can protect: who may read it reads all",
        f"REVOKE ALL ON {relation.sql} FROM PUBLIC, {identifier(subject.snapshot.role.rolname)};",
    )


def _definer(subject: Subject, relation: Relation) -> Finding:
    return Finding(
        "view-not-invoker",
        "error",
        relation.label,
        f"reads tenants' rows with the rights of {relation.owner!r}"
        + (
            ", whom no policy holds: it shows every tenant's"
            if relation.owner_exempt
            else ": it shows every tenant's as soon as no policy holds that role"
        ),
        f"ALTER VIEW {relation.sql} SET (security_invoker = true);"
        if subject.snapshot.version >= 150000
        else f"DROP VIEW {relation.sql};  -- security_invoker needs PostgreSQL 15",
    )


def _chain(subject: Subject, relation: Relation, through: RelationName) -> Finding:
    other = subject.snapshot.by_key[through]
    return Finding(
        "view-chain",
        "error",
        relation.label,
        f"is read with its reader's rights, but reads {other.label}, which is not: what that one "
        "shows of other tenants comes through",
        f"ALTER VIEW {other.sql} SET (security_invoker = true);"
        if other.kind == "v"
        else f"REVOKE ALL ON {relation.sql} FROM {identifier(subject.snapshot.role.rolname)};",
    )


def check_functions(subject: Subject) -> Iterator[Finding]:
    """Yield functions that the role may call and that go past policies."""
    sets = re.compile(
        rf"(?:set_config\s*\(\s*'|\bSET\s+(?:LOCAL\s+|SESSION\s+)?){re.escape(subject.setting)}\b",
        re.IGNORECASE,
    )
    walk = _Walk(subject)
    for row in subject.snapshot.functions:
        if row.proleakproof:
            yield Finding(
                "function-leakproof",
                "error",
                row.label,
                "is marked LEAKPROOF, so PostgreSQL may call it on rows before policies have "
                "removed them: it sees every tenant's values",
                f"ALTER {row.kind} {row.sql} NOT LEAKPROOF;",
            )
        if row.executable or row.is_trigger:
            yield from _definer_function(subject, walk, row)
        if row.executable and (sets.search(row.body or "") or _has(row, subject.setting)):
            yield Finding(
                "function-sets-tenant",
                "error",
                row.label,
                f"sets {subject.setting}: who calls it, or gets a value into its arguments, "
                "chooses whose rows are read next",
                f"REVOKE EXECUTE ON {row.kind} {row.sql} FROM PUBLIC, "
                f"{identifier(subject.snapshot.role.rolname)};",
            )


def _has(row: Row[Any], setting: str) -> bool:
    return any(one.lower().startswith(f"{setting.lower()}=") for one in row.proconfig or ())


def _definer_function(subject: Subject, walk: _Walk, row: Row[Any]) -> Iterator[Finding]:
    if not row.prosecdef:
        return
    if not row.is_trigger and walk.is_exempt(row.owner):
        yield Finding(
            "function-definer",
            "error",
            row.label,
            f"runs with the rights of {row.owner!r}, whom no policy holds to one tenant: what it "
            "reads and writes for its caller is every tenant's",
            f"ALTER {row.kind} {row.sql} SECURITY INVOKER;",
        )
    if (path := pinned_path(subject, row)) is not None:
        yield Finding(
            "function-search-path",
            "warning",
            row.label,
            f"runs with the rights of {row.owner!r} on a search_path that its caller has a hand "
            "in: a caller's own function, or temporary table with triggers, of a name that it uses "
            "is taken for what was meant, with those rights",
            f"ALTER {row.kind} {row.sql} SET search_path = {path};",
        )


def _opened_to(subject: Subject, relation: Relation, policy: Policy) -> Collection[str]:
    """Return the roles, others than the application's, that a policy shows other tenants' rows."""
    others = set(policy.to) - subject.snapshot.reachable.keys()
    if (
        not others
        or policy.restrictive
        or is_canonical(subject, relation, policy)
        or has_floor(subject, relation, policy)
    ):
        return ()
    return others


def check_triggers(subject: Subject) -> Iterator[Finding]:
    """Yield triggers and rules of tenants' tables that run with other rights."""
    relations, walk, places = subject.snapshot.relations, _Walk(subject), written(subject)
    functions = {row.oid: row for row in subject.snapshot.functions if row.prosecdef}
    for row in subject.snapshot.triggers:
        relation = relations.get(row.tgrelid)
        if relation is None or not row.prosecdef:
            continue
        function = functions.get(row.function_oid)
        # Elsewhere, also on a view, it is a door for who may write there.
        if row.tgrelid in subject.tenants or (
            function is not None
            and any((relation.oid, one) in places for one in WRITING)
            and walk.is_exempt(function.owner)
        ):
            yield Finding(
                "trigger-definer",
                "error",
                relation.label,
                f"trigger {row.tgname!r} calls {row.function} with its owner's rights: what it "
                "writes elsewhere, and whose rows it reads, no policy of the caller decides",
                f"ALTER FUNCTION {row.function_sql} SECURITY INVOKER;",
            )
    for row in subject.snapshot.rules:
        relation = relations.get(row.ev_class)
        if relation is None:
            continue
        if row.ev_class not in subject.tenants and (row.ev_class, row.event) not in places:
            continue
        if any(
            walk.reads_tenants(subject.snapshot.key(relations[one]))
            for one in row.names
            if one in relations
        ):
            yield Finding(
                "table-rule",
                "error" if relation.owner_exempt else "warning",
                relation.label,
                f"rule {row.rulename!r} does something else, with the rights of "
                f"{relation.owner!r}, than the statement that was sent",
                f"DROP RULE {row.sql} ON {relation.sql};",
            )
