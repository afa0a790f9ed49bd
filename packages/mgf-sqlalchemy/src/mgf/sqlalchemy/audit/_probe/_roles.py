"""The roles that the application's role can become."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from mgf.sqlalchemy.audit._probe._attacks import BY_ROLE, attempt
from mgf.sqlalchemy.audit._probe._outcome import NOT_APPLICABLE, Outcome
from mgf.sqlalchemy.audit._probe._refused import judge
from mgf.sqlalchemy.audit._probe._session import Session
from mgf.sqlalchemy.audit._probe._survey import shapes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

    from mgf.sqlalchemy.audit._probe._field import Field
    from mgf.sqlalchemy.audit._probe._spills import Spills
    from mgf.sqlalchemy.audit._probe._target import Target
    from mgf.sqlalchemy.audit._snapshot import Snapshot

# SET ROLE needs an option of its own since PostgreSQL 16.
_MAY_SET = "SELECT rolname FROM pg_roles WHERE rolname <> :role AND pg_has_role(:role, oid, '{}')"
_PRIVILEGES = text(
    """
    SELECT c.oid, ARRAY(
        SELECT p FROM unnest(CAST(:privileges AS text[])) AS p
        WHERE has_table_privilege(:role, c.oid, p)
           OR p IN ('SELECT', 'INSERT', 'UPDATE') AND has_any_column_privilege(:role, c.oid, p)
    ) AS privileges
    FROM pg_class AS c WHERE c.oid = ANY(CAST(:oids AS oid[]))
    """
)
_ASKED: Final = ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"]
# Worst first: what one relation gave, the role gives.
_RANKS: Final = ("leaked", "not_proven", "held", "not_applicable")


def roles_to_become(connection: Connection, snapshot: Snapshot) -> list[str]:
    """Return the other roles that SET ROLE takes; of a superuser, who needs none, no role."""
    if snapshot.role.rolsuper:
        return []
    sql = text(_MAY_SET.format("SET" if snapshot.version >= 160000 else "MEMBER"))
    return sorted(connection.execute(sql, {"role": snapshot.role.rolname}).scalars())


def attack_as(
    field: Field, targets: Sequence[Target], role: str, spills: Spills
) -> dict[str, Outcome]:
    """Attack all relations as a role that the application can become.

    What a role cannot get at is closed to it, so its own rows are no control here: that the
    statements work was shown by the application's role.
    """
    session = field.session
    other = Session(session.connection, role=role, login=session.login, setting=session.setting)
    theirs = field.of(other)
    worst: dict[str, Outcome] = {}

    def note(name: str, label: str, outcome: Outcome) -> None:
        if outcome.result == "leaked":
            outcome = Outcome("leaked", f"{label}: {outcome.reason}")
        before = worst.get(name, NOT_APPLICABLE)
        worst[name] = min(before, outcome, key=lambda each: _RANKS.index(each.result))

    for target in _as_seen_by(session.connection, targets, role):
        for name, one in BY_ROLE.items():
            again = partial(attempt, theirs, target, one)
            note(name, target.relation.label, judge(theirs, target, name, again(), again))
    for label, outcome in spills.read(theirs).items():
        note("read", label, outcome)
    return worst


def _as_seen_by(connection: Connection, targets: Sequence[Target], role: str) -> Iterator[Target]:
    """Yield the relations with what another role may do there."""
    oids = [one.relation.oid for one in targets]
    shapes = shapes_of(connection, oids, role=role)
    asked = {"role": role, "oids": oids, "privileges": _ASKED}
    privileges = {
        one.oid: frozenset(one.privileges) for one in connection.execute(_PRIVILEGES, asked)
    }
    for target in targets:
        theirs = privileges[target.relation.oid]
        if theirs and target.relation.kind != "m":
            relation = replace(target.relation, privileges=theirs)
            yield replace(target, relation=relation, shape=shapes[relation.oid])
