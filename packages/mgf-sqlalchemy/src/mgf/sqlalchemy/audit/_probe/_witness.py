"""Rows that a policy lets through although they are another tenant's, where there are such."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.audit._probe._session import failure
from mgf.sqlalchemy.audit._probe._shapes import Condition
from mgf.sqlalchemy.audit._probe._solver import solve
from mgf.sqlalchemy.audit._sql import identifier

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mgf.sqlalchemy.audit._probe._ground import Ground
    from mgf.sqlalchemy.audit._probe._seeding import Seeder, Values
    from mgf.sqlalchemy.audit._probe._session import Session


def add_witnesses(
    session: Session, ground: Ground, seeder: Seeder, tenants: Sequence[str], stranger: str
) -> None:
    """Put in, for both tenants, rows that a policy shows to a stranger.

    A predicate such as ``... OR is_public`` is open for some rows only; values for which it is
    true are asked of PostgreSQL. Policies that the metadata declares are left alone: what they
    share is meant to be shared.
    """
    for oid in ground.owned:
        if ground.relations[oid].kind == "f":
            continue
        for values in _witnesses(session, seeder, oid, tenants[0], stranger):
            # A row of each, also where one of them cannot have it.
            added = [seeder.add(oid, tenant, values) for tenant in tenants]
            if all(added):
                seeder.variants[oid].append(values)


def _witnesses(
    session: Session, seeder: Seeder, oid: int, tenant: str, stranger: str
) -> Iterator[Values]:
    ground = seeder.ground
    relation, shape = ground.relations[oid], ground.shapes[oid]
    known = seeder.tenant_values(oid, tenant)
    for predicate in _unusual(ground, oid):
        condition = Condition(f"({predicate}) IS TRUE", shape.named_in(predicate))
        try:
            with session.trial(stranger):
                found = solve(session, identifier(relation.name), shape, [condition], known)
        except DBAPIError as error:
            failure(error)
            continue
        values = {name: one for name, one in (found or {}).items() if name not in known}
        if values:
            yield values


def _unusual(ground: Ground, oid: int) -> Iterator[str]:
    """Yield predicates that neither hold rows to the tenant nor are declared."""
    declared = ground.subject.expected.get(oid, ())
    meant = {one for policy in declared for one in (policy.using, policy.with_check)}
    usual = {*meant, *ground.subject.canonical.get(oid, ()), None}
    for policy in ground.relations[oid].policies:
        for predicate in dict.fromkeys([policy.using, policy.with_check]):
            if not policy.restrictive and predicate not in usual:
                yield predicate or ""
