"""Logs, outboxes and copies that triggers and rules fill, and that nobody took for a tenant's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.audit._probe._changes import changes
from mgf.sqlalchemy.audit._probe._field import REFUSED
from mgf.sqlalchemy.audit._probe._outcome import HELD, Outcome, leaked, not_proven
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
# What a function reads for a materialized view stands in no catalog.
_CALLING = text(
    """
    SELECT DISTINCT w.ev_class FROM pg_rewrite AS w
    JOIN pg_class AS c ON c.oid = w.ev_class AND c.relkind = 'm'
    JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
                        AND d.refclassid = 'pg_proc'::regclass
    JOIN pg_proc AS p ON p.oid = d.refobjid AND p.provolatile <> 'i'
    WHERE NOT EXISTS (SELECT FROM pg_depend AS x WHERE x.classid = 'pg_proc'::regclass
                      AND x.objid = p.oid AND x.deptype = 'e')
    """
)
# What nobody else has: the probe made it up.
_MADE_UP: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|probe-[0-9a-f]{16}")
# Of this transaction, or of a younger one: of a table of any size only these are looked at.
_NEW: Final = "age(xmin) <= 0"


class Spills:
    """Looks for the rows that were put in where nobody put them; copies are refreshed for that.

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
                outcome = self._shows(field, relation, shapes[relation.oid])
            except DBAPIError as error:
                if failure(error) == REFUSED:
                    continue
                outcome = not_proven(explain(error))
            if outcome != HELD:
                found[relation.label] = outcome
        return found

    def _shows(self, field: Field, relation: Relation, shape: Shape) -> Outcome:
        shown = [one.sql for one in shape.slots.values() if one.readable]
        if not shown:
            return HELD
        # Who reads some columns only reads no xmin.
        is_new = _NEW if relation.kind in "rp" and len(shown) == len(shape.slots) else "true"
        tokens = ", ".join(map(literal, self._tokens))
        looking = (
            f"SELECT EXISTS (SELECT FROM {relation.sql} WHERE {is_new} AND EXISTS ("  # noqa: S608
            f"SELECT FROM unnest(ARRAY[{tokens}]) AS mgf_probe_token WHERE "
            f"strpos(CAST(ROW({', '.join(shown)}) AS text), mgf_probe_token) > 0))"
        )
        with field.session.trial(UNTOUCHED):
            for tenant, sql, _ in self._changes:
                self._writer.become(tenant)
                self._writer.run(sql)
            field.session.become(field.stranger)
            is_shown = field.session.scalar(looking)
            if not is_shown and (copies := list(_copies(self._ground, relation))):
                try:
                    self._refresh(copies)
                except DBAPIError as error:
                    return not_proven(f"a copy could not be refreshed ({explain(error)})")
                field.session.become(field.stranger)
                is_shown = field.session.scalar(looking)
        return leaked("any tenant reads what others' rows left there") if is_shown else HELD

    def _refresh(self, copies: Iterable[Relation]) -> None:
        self._writer.become("", role=self._writer.login)
        for one in copies:
            self._writer.run(f"REFRESH MATERIALIZED VIEW {one.sql}")


def _suspects(connection: Connection, ground: Ground) -> Iterator[Relation]:
    """Yield the tables that were written beside those with tenants' rows, and views of them.

    Copies that functions fill are among them.
    """
    snapshot = ground.subject.snapshot
    tables = {one.oid for one in ground.relations.values() if one.kind == "r"}
    others = tables - {*ground.owned} - set(_lists(ground))
    written = set(connection.execute(_WRITTEN, {"oids": sorted(others)}).scalars())
    for oid in list(written):
        written.update(_above(ground, oid))
    written -= {*ground.owned}
    calling = set(connection.execute(_CALLING).scalars())
    for relation in ground.relations.values():
        key = snapshot.key(relation)
        is_view = relation.kind in "vm" and not ground.below(key)
        if relation.oid in written or (
            is_view
            and (
                ground.below(key, written)
                or any(one.oid in calling for one in _copies(ground, relation))
            )
        ):
            yield relation


def _copies(ground: Ground, relation: Relation) -> Iterator[Relation]:
    """Yield the materialized views that a relation shows, each after those that it reads."""
    snapshot = ground.subject.snapshot
    view = snapshot.views.get(snapshot.key(relation))
    if view is None:
        return
    for one in filter(None, map(snapshot.by_key.get, view.reads)):
        yield from _copies(ground, one)
    if view.materialized:
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
