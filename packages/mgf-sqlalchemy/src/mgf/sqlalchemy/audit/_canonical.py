"""The predicates that hold a row to the tenant in force, as this server prints them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.errors import sqlstate
from mgf.sqlalchemy.rls import deparse
from mgf.sqlalchemy.rls._predicates import quote_column

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection

    from mgf.sqlalchemy.audit._snapshot import Relation

_MAY_TRY = text(
    """
    SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'
           AND has_database_privilege(current_database(), 'TEMPORARY')
    """
)
_QUOTED = text("SELECT name, quote_ident(name) FROM unnest(CAST(:names AS text[])) AS name")


# Literals and names in quotes hold what else would count.
_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[()]| AND\s""")


def may_deparse(connection: Connection) -> bool:
    """Say whether a connection may make the temporary table that predicates are tried on."""
    return bool(connection.execute(_MAY_TRY).scalar())


def canonical_predicates(
    connection: Connection,
    tenants: Mapping[Relation, str | None],
    setting: str,
    *,
    recorded: bool,
) -> dict[int, frozenset[str]]:
    """Return, for each relation with a tenant column, what its predicate may be.

    Args:
        connection: to deparse on.
        tenants: relations and their tenant columns.
        setting: that holds the tenant.
        recorded: use what PostgreSQL 15 to 18 were seen to print, and make no temporary table.
    """
    shapes = {
        relation.oid: (column, found.type, found.base)
        for relation, column in tenants.items()
        if column is not None and (found := relation.column(column)) is not None
    }
    if recorded:
        names = sorted({column for column, _, _ in shapes.values()})
        quoted = {row[0]: row[1] for row in connection.execute(_QUOTED, {"names": names})}
        known = {one: _recorded(quoted[one[0]], one[1], setting) for one in set(shapes.values())}
    else:
        known = {one: _deparsed(connection, *one, setting) for one in set(shapes.values())}
    return {oid: known[shape] for oid, shape in shapes.items()}


def _deparsed(
    connection: Connection, column: str, kind: str, base: str | None, setting: str
) -> frozenset[str]:
    name = "'" + setting.replace("'", "''") + "'"
    plain = f"NULLIF(current_setting({name}, true), '')"
    values = [f"{plain}::{kind}"]
    if is_text(kind):
        # A cast to varchar(n) cuts off, and makes one tenant of two.
        values = [plain] if "(" in kind else [*values, plain]
    elif base is not None:
        # A domain is compared as what it is made of.
        values.append(plain if is_text(base) else f"{plain}::{base}")
    predicates = [
        f"{quote_column(column)} = {one}"
        for value in values
        for one in (f"(SELECT {value})", value)
    ]
    try:
        return frozenset(deparse(connection, predicates, columns={column: kind}))
    except DBAPIError as error:
        # Class 42: there is no such comparison, so nothing is canonical for this type.
        if not (sqlstate(error) or "").startswith("42"):
            raise
        return frozenset()
    except AppConfigError:  # The privilege was taken away since it was asked for.
        return frozenset()


def _recorded(column: str, kind: str, setting: str) -> frozenset[str]:
    name = setting.replace("'", "''")
    value = f"NULLIF(current_setting('{name}'::text, true), ''::text)"
    if not is_text(kind):
        value = f"({value})::{kind}"
    elif kind != "text":
        column = f"({column})::text"
    return frozenset({f'({column} = ( SELECT {value} AS "nullif"))', f"({column} = {value})"})


def is_text(kind: str) -> bool:
    """Say whether a type is compared as text, which takes no work and serves its index."""
    return kind == "text" or kind.startswith("character varying")


def holds_to_tenant(predicate: str | None, canonical: Collection[str]) -> bool:
    """Say whether a predicate is one of those, or narrows one down, as ``... AND is_live`` does."""
    return predicate is not None and not {*canonical}.isdisjoint(_conjuncts(predicate))


def _conjuncts(predicate: str) -> list[str]:
    """Return a predicate, and what has to hold with others for it to be true.

    PostgreSQL prints each AND and OR in parentheses of its own, so that those outside of all others
    hold one of both.
    """
    if not predicate.startswith("("):
        return [predicate]
    found, depth, start = [predicate], 0, 1
    for one in _TOKEN.finditer(predicate):
        depth += {"(": 1, ")": -1}.get(one[0], 0)
        if one[0].startswith(" AND") and depth == 1:
            found.append(predicate[start : one.start()])
            start = one.end()
        if depth < 1 and one.end() < len(predicate):
            return [predicate]
    return [*found, predicate[start:-1]]
