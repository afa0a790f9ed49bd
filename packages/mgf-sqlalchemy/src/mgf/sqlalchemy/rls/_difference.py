"""Where the protection that is there differs from the one that is expected."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from mgf.sqlalchemy.rls._names import PUBLIC
from mgf.sqlalchemy.rls._state import TableProtection, ViewProtection

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from mgf.sqlalchemy.rls._names import RelationName
    from mgf.sqlalchemy.rls._state import Grant, Protection

_Protected = TypeVar("_Protected", TableProtection, ViewProtection)

Aspect: TypeAlias = Literal[
    "table", "view", "row security", "policy", "index", "grant", "owner", "parent"
]


@dataclass(frozen=True)
class Difference:
    """One thing that is not as expected.

    Args:
        aspect: what it is about. ``"table"``: the table is missing. ``"view"``: the view is
            missing, or is not read with its reader's rights. ``"owner"``: a role that policies
            are to hold owns the table, and could drop them. ``"parent"``: the rows are also
            read through a table that is not expected, whose policies hold then.
        table: schema and name of the table or view; None for a grant on a schema or a sequence
            of no column.
        expected: what should be there; None where something is too much.
        there: what is there; None where something is missing.

    What both are, by `aspect`: a `TableProtection`; a `ViewProtection`; a pair (enabled,
    forced); a `Policy`; a column's name; a `Grant`, of the privileges that are missing
    (`expected`) or too many (`there`); a role's name; schema and name of the parent.
    """

    aspect: Aspect
    table: RelationName | None
    expected: Any
    there: Any


def compare_protection(expected: Protection, there: Protection) -> Iterator[Difference]:
    """Yield every difference between what is expected and what is there.

    Grants on a table and its columns count for the roles that it is expected to grant something,
    for PUBLIC, and for former roles: those that an expected policy is there for instead, and that
    nothing is expected for. What others were granted is their business. On schemas only missing
    ones count, on loose sequences those of former roles too, and tables that are not expected do
    not. Columns are not compared, nor is what a view shows; membership in the owner's role is not
    seen either.

    Args:
        expected: as `expected_protection` gives it.
        there: as `read_protection` gives it, of every schema in `expected`.
    """
    found = {one.key: one for one in there.tables}
    keys = {one.key for one in expected.tables}
    former = _former_roles(expected, found)
    for table in expected.tables:
        if table.key in found:
            yield from _compare_tables(table, found[table.key], former)
            for parent in found[table.key].parents:
                if table.enabled and parent not in keys:
                    yield Difference("parent", table.key, None, parent)
        else:
            yield Difference("table", table.key, table, None)
    views = {one.key: one for one in there.views}
    for view in expected.views:
        yield from _compare_views(view, views.get(view.key), former)
    roles = {one.to for one in expected.grants}
    sequences = {(one.schema, one.on) for one in expected.grants if one.kind == "SEQUENCE"}
    for grant, is_missing in _compare_grants(expected.grants, there.grants, roles | former):
        if is_missing:
            yield Difference("grant", None, grant, None)
        elif grant.to in former and (grant.schema, grant.on) in sequences:
            yield Difference("grant", None, None, grant)


def taken_along(
    revoked: Grant, expected: Iterable[Grant], there: Iterable[Grant]
) -> Iterator[Grant]:
    """Yield what is to stay on columns, and a REVOKE on their table takes with it.

    Args:
        revoked: privileges that are too many.
        expected: the grants of the table that are expected, its columns' among them.
        there: those that are there.
    """
    found = {replace(one, privileges=()): {*one.privileges} for one in there}
    for one in expected:
        whole = replace(one, privileges=revoked.privileges, columns=())
        reaches = revoked in {whole, replace(whole, grantable=False)}
        if one.columns and reaches:
            held = found.get(replace(one, privileges=()), set[str]())
            if kept := held.intersection(one.privileges, revoked.privileges):
                yield replace(one, privileges=tuple(kept))


def _former_roles(expected: Protection, there: Mapping[RelationName, TableProtection]) -> set[str]:
    """Return the roles whose place in expected policies others take."""
    current, named = {PUBLIC, *(grant.to for grant in expected.grants)}, set[str]()
    for view in expected.views:
        current.update(grant.to for grant in view.grants)
    for table in expected.tables:
        current.update(grant.to for grant in table.grants)
        wanted = {policy.name: set(policy.to) for policy in table.policies}
        current.update(*wanted.values())
        for policy in there[table.key].policies if table.key in there else ():
            if policy.name in wanted and wanted[policy.name].isdisjoint(policy.to):
                named.update(policy.to)
    return named - current


def _compare_tables(
    expected: TableProtection, there: TableProtection, former: Collection[str]
) -> Iterator[Difference]:
    key = expected.key
    if expected.enabled and there.owner in {one.to for one in expected.grants}:
        yield Difference("owner", key, None, there.owner)
    flags = [(one.enabled, one.forced) for one in (expected, there)]
    if flags[0] != flags[1]:
        yield Difference("row security", key, *flags)
    wanted = {policy.name: policy for policy in expected.policies}
    found = {policy.name: policy for policy in there.policies}
    for name in sorted(wanted.keys() | found.keys()):
        pair = wanted.get(name), found.get(name)
        if pair[0] != pair[1]:
            yield Difference("policy", key, *pair)
    for column in expected.indexed:
        if column not in there.indexed:
            yield Difference("index", key, column, None)
    yield from _grant_differences(expected, there, former)


def _compare_views(
    expected: ViewProtection, there: ViewProtection | None, former: Collection[str]
) -> Iterator[Difference]:
    if there is None or not there.security_invoker:
        yield Difference("view", expected.key, expected, there)
    if there is not None:
        yield from _grant_differences(expected, there, former)


def _grant_differences(
    expected: _Protected, there: _Protected, former: Collection[str]
) -> Iterator[Difference]:
    roles = {PUBLIC, *former, *(one.to for one in expected.grants)}
    for grant, is_missing in _compare_grants(expected.grants, there.grants, roles):
        yield Difference(
            "grant", expected.key, grant if is_missing else None, None if is_missing else grant
        )


def _compare_grants(
    expected: Iterable[Grant], there: Iterable[Grant], roles: Collection[str]
) -> Iterator[tuple[Grant, bool]]:
    """Yield what is missing, with True, and what is too much, with False."""
    wanted = {replace(one, privileges=()): set(one.privileges) for one in expected}
    found = {replace(one, privileges=()): set(one.privileges) for one in there}
    for one in sorted(wanted.keys() | found.keys(), key=repr):
        has, needs = found.get(one, set[str]()), wanted.get(one, set[str]())
        if one.to in roles:
            for privileges, is_missing in ((needs - has, True), (has - needs, False)):
                if privileges:
                    yield replace(one, privileges=tuple(privileges)), is_missing
