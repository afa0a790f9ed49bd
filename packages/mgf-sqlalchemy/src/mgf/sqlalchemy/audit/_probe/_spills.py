"""Logs, outboxes and copies that triggers and rules fill, and that nobody took for a tenant's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.audit._probe._changes import changes
from mgf.sqlalchemy.audit._probe._field import REFUSED
from mgf.sqlalchemy.audit._probe._outcome import Outcome, leaked, not_proven
from mgf.sqlalchemy.audit._probe._session import UNTOUCHED, explain, failure
from mgf.sqlalchemy.audit._probe._survey import shapes_of
from mgf.sqlalchemy.audit._sql import literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection

    from mgf.sqlalchemy.audit._probe._changes import Change
    from mgf.sqlalchemy.audit._probe._field import Field
    from mgf.sqlalchemy.audit._probe._ground import Ground
    from mgf.sqlalchemy.audit._probe._shapes import Shape
    from mgf.sqlalchemy.audit._snapshot import Relation

# Counted are also rows that were undone. Without counts any table may have been written.
_WRITTEN = text(
    """
    SELECT oid FROM unnest(CAST(:oids AS oid[])) AS oid
    WHERE NOT CAST(current_setting('track_counts') AS bool)
       OR pg_stat_get_xact_tuples_inserted(oid) + pg_stat_get_xact_tuples_updated(oid) > 0
    """
)
# What nobody else has: the probe made it up.
_MADE_UP: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|probe-[0-9a-f]{16}")
# Of this transaction, or of a younger one: of a table of any size only these are looked at.
_NEW: Final = "age(xmin) <= 0"


class Spills:
    """Looks for the rows that were put in where nobody put them.

    Also after rows were updated and deleted, which is done again for each look and undone. Tables
    that the tenant's columns refer to are left out: they list the tenants.

    Args:
        connection: on which the rows were put in.
        field: with their seeder.
    """

    def __init__(self, connection: Connection, field: Field) -> None:
        self._connection = connection
        self._ground = field.seeder.ground
        self._writer = field.session
        self._changes = changes(field)
        self._relations = list(_suspects(connection, self._ground))
        self._tokens = sorted(_tokens(field, self._changes))

    def read(self, field: Field) -> dict[str, Outcome]:
        """Return what a tenant without rows reads there, by relation, where that is anything."""
        found: dict[str, Outcome] = {}
        if not self._relations:
            return found
        oids = [one.oid for one in self._relations]
        shapes = shapes_of(self._connection, oids, role=field.session.role)
        for relation in self._relations:
            try:
                if self._shows(field, relation, shapes[relation.oid]):
                    found[relation.label] = leaked(
                        "any tenant reads what a trigger or rule wrote there of others' rows"
                    )
            except DBAPIError as error:
                if failure(error) != REFUSED:
                    found[relation.label] = not_proven(explain(error))
        return found

    def _shows(self, field: Field, relation: Relation, shape: Shape) -> bool:
        shown = [one.sql for one in shape.slots.values() if one.readable]
        if not shown:
            return False
        # Who reads some columns only reads no xmin.
        is_new = _NEW if relation.kind in "rp" and len(shown) == len(shape.slots) else "true"
        tokens = ", ".join(map(literal, self._tokens))
        with field.session.trial(UNTOUCHED):
            for tenant, sql, _ in self._changes:
                self._writer.become(tenant)
                self._writer.run(sql)
            field.session.become(field.stranger)
            return bool(
                field.session.scalar(
                    f"SELECT EXISTS (SELECT FROM {relation.sql} WHERE {is_new} AND EXISTS ("  # noqa: S608
                    f"SELECT FROM unnest(ARRAY[{tokens}]) AS mgf_probe_token WHERE "
                    f"strpos(CAST(ROW({', '.join(shown)}) AS text), mgf_probe_token) > 0))"
                )
            )


def _suspects(connection: Connection, ground: Ground) -> Iterator[Relation]:
    """Yield the tables that were written beside those with tenants' rows, and views of them."""
    snapshot = ground.subject.snapshot
    tables = {one.oid for one in ground.relations.values() if one.kind == "r"}
    others = tables - {*ground.owned} - set(_lists(ground))
    written = set(connection.execute(_WRITTEN, {"oids": sorted(others)}).scalars())
    for oid in list(written):
        written.update(_above(ground, oid))
    written -= {*ground.owned}
    for relation in ground.relations.values():
        key = snapshot.key(relation)
        is_view = relation.kind == "v" and not ground.below(key)
        if relation.oid in written or (is_view and ground.below(key, written)):
            yield relation


def _lists(ground: Ground) -> Iterator[int]:
    for oid, column in ground.owned.items():
        for key in ground.foreign_keys(oid):
            if column in key.columns:
                yield key.parent


def _above(ground: Ground, oid: int) -> Iterator[int]:
    for parent in ground.relations[oid].parents:
        if parent in ground.relations:
            yield parent
            yield from _above(ground, parent)


def _tokens(field: Field, changed: Iterable[Change]) -> Iterable[str]:
    """Return values that are one tenant's alone, and that nobody has by chance."""
    one, other = (field.seeder.written(tenant) for tenant in field.tenants)
    one |= {value for each in changed for value in each.values}
    own = (one ^ other) - field.seeder.written("")
    return {*field.tenants, *(value for value in own if _MADE_UP.fullmatch(value))}
