"""Policies that decide by more than what rows of two tenants can show."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from mgf.sqlalchemy.audit._canonical import holds_to_tenant
from mgf.sqlalchemy.audit._checks.policies import commands, has_floor
from mgf.sqlalchemy.audit._probe._outcome import HELD, Outcome, not_proven

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection, Row

    from mgf.sqlalchemy.audit._probe._ground import Ground
    from mgf.sqlalchemy.rls import Policy

# PostgreSQL's own functions are pinned, and so in no pg_depend.
_NAMES = text(
    """
    SELECT o.polrelid, o.polname,
           ARRAY(SELECT DISTINCT a.attname::text FROM pg_depend AS d
                 JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                 WHERE d.classid = 'pg_policy'::regclass AND d.objid = o.oid
                 AND d.refclassid = 'pg_class'::regclass AND d.refobjid = o.polrelid
                 AND d.refobjsubid > 0) AS columns,
           ARRAY(SELECT DISTINCT d.refobjid::bigint FROM pg_depend AS d
                 WHERE d.classid = 'pg_policy'::regclass AND d.objid = o.oid
                 AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> o.polrelid) AS relations,
           ARRAY(SELECT DISTINCT p.proname::text FROM pg_depend AS d
                 JOIN pg_proc AS p ON p.oid = d.refobjid
                 WHERE d.classid = 'pg_policy'::regclass AND d.objid = o.oid
                 AND d.refclassid = 'pg_proc'::regclass) AS functions
    FROM pg_policy AS o WHERE o.polrelid = ANY(CAST(:oids AS oid[]))
    """
)
_LITERAL = re.compile(r"'(?:[^']|'')*'")
# What makes more of conditions than all of them together, and comparisons other than equality.
_MORE = re.compile(
    r"\b(?:OR|NOT|IS|CASE|COALESCE|UNION|EXCEPT|INTERSECT|LEFT|RIGHT|FULL|LIKE|OPERATOR|COLLATE)\b"
    r"|[<>~!@#%^&|?*/+-]"
)
# A name that is a word of SQL, too, is printed in quotes.
_CALL = re.compile(r"(\w+)\"?\s*\(\s*(\)?)")
# What a cast makes of a value may be the same for two of them, as what cuts off does.
_CAST = re.compile(r'::("[^"]+"|\w+(?: varying)?)(?:\((\d+)\))?')
_LOSSLESS: Final = frozenset(("uuid", "text", "character varying", "character", "bpchar", "name"))
_UUID_LENGTH: Final = 36
# Words that stand before a parenthesis; the last two are types with a length.
_PLAIN: Final = frozenset(
    (
        "nullif",
        "current_setting",
        "exists",
        "select",
        "from",
        "where",
        "and",
        "in",
        "on",
        "join",
        "character",
        "varying",
    )
)
_LAX: Final = (
    "the tenant column compares as equal what is not the same, by its collation or type: tenants "
    "whose names differ in case alone, for one, would be one tenant"
)
_SHOWN_BY: Final = {
    "SELECT": "read",
    "INSERT": "insert",
    "UPDATE": "blind-update",
    "DELETE": "blind-delete",
}


def untold(connection: Connection, ground: Ground) -> dict[int, dict[str, Outcome]]:
    """Return which attacks prove nothing where they are held off, by relation.

    Whether a predicate such as ``CASE WHEN length(note) > 50 THEN true ...`` opens depends on
    what is in a row, or in tables that tenants write, or on the time, and made-up rows meet that
    by chance. A predicate is told by them if it is nothing but equalities, all of which hold, of
    the tenant's column and of keys to tenants' rows. What the metadata declares is meant so.
    Nor do two UUIDs show what a comparison that ignores case makes of other tenants.
    """
    found: defaultdict[int, dict[str, Outcome]] = defaultdict(dict)
    for oid, column in ground.owned.items():
        if column is not None and ground.shapes[oid].slots[column].lax:
            found[oid] = dict.fromkeys(_SHOWN_BY.values(), not_proven(_LAX))
    for row in connection.execute(_NAMES, {"oids": sorted(ground.owned)}):
        relation = ground.relations[row.polrelid]
        policy = next((one for one in relation.policies if one.name == row.polname), None)
        if policy is None or _is_known(ground, policy, row):
            continue
        reason = (
            f"policy {policy.name!r} decides by more than made-up rows can show, and the metadata "
            "does not declare it: by other columns or tables, a function, or a comparison other "
            "than equality"
        )
        for command in commands(policy):
            found[row.polrelid][_SHOWN_BY[command]] = not_proven(reason)
    return found


def doubt_held(
    outcomes: Mapping[str, Outcome], doubts: Mapping[str, Outcome]
) -> dict[str, Outcome]:
    """Take nothing for held that made-up rows cannot show."""
    return {name: doubts.get(name, one) if one == HELD else one for name, one in outcomes.items()}


def _is_known(ground: Ground, policy: Policy, row: Row[tuple[object, ...]]) -> bool:
    subject, relation = ground.subject, ground.relations[row.polrelid]
    if policy.restrictive or not subject.applies(policy):
        return True
    if policy in subject.expected.get(relation.oid, ()) or has_floor(subject, relation, policy):
        return True
    canonical = subject.canonical.get(relation.oid, frozenset())
    keys = {
        name
        for key in ground.foreign_keys(relation.oid)
        if key.parent in ground.owned
        for name in key.columns
    }
    names_others = not (
        {*row.columns} <= {ground.owned[relation.oid], *keys}
        and {*row.relations} <= {*ground.owned}
    )
    return all(
        one is None
        or holds_to_tenant(one, canonical)
        or (not names_others and _is_plain(one, row.functions))
        for one in (policy.using, policy.with_check)
    )


def _is_plain(predicate: str, functions: Collection[str]) -> bool:
    """Say whether a predicate is made of equalities, all of which have to hold.

    A function without arguments gives the same for every row.
    """
    bare = _LITERAL.sub("", predicate)
    return (
        _MORE.search(bare) is None
        and all(
            name.lower() in _PLAIN or (is_empty and name in functions)
            for name, is_empty in _CALL.findall(bare)
        )
        and all(
            type_ in _LOSSLESS and int(length or _UUID_LENGTH) >= _UUID_LENGTH
            for type_, length in _CAST.findall(bare)
        )
    )
