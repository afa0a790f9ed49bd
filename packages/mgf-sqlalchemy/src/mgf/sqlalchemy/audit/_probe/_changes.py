"""UPDATE and DELETE of rows that were put in, for what triggers and rules make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.audit._probe._seeding import place
from mgf.sqlalchemy.audit._probe._session import UNTOUCHED, failure
from mgf.sqlalchemy.audit._probe._values import cast, invent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mgf.sqlalchemy.audit._probe._field import Field
    from mgf.sqlalchemy.audit._probe._session import Session
    from mgf.sqlalchemy.audit._probe._shapes import Slot

_SAVEPOINT = "mgf_probe_change"


class Change(NamedTuple):
    """A statement of a tenant about its own rows, and the values that it brings."""

    tenant: str
    sql: str
    values: tuple[str, ...] = ()


def changes(field: Field) -> list[Change]:
    """Return what the role may do to its rows, in an order in which all of it succeeds.

    Rows of one tenant are updated, those of the other deleted, if any table has triggers or rules.
    """
    found: list[Change] = []
    updated, deleted = field.tenants
    if not (tables := list(_concerned(field))):
        return found
    with field.session.trial(UNTOUCHED):
        for oid in tables:
            found += _first(field.session, _updates(field, oid, updated))
        # What other tables refer to goes after their rows.
        todo = list(field.seeder.ground.owned)
        while todo:
            done = {oid: _first(field.session, _deletes(field, oid, deleted)) for oid in todo}
            found += [one for made in done.values() for one in made]
            todo = [oid for oid in todo if not done[oid]] if any(done.values()) else []
    return found


def _concerned(field: Field) -> Iterator[int]:
    ground = field.seeder.ground
    snapshot = ground.subject.snapshot
    ways = {one.tgrelid for one in snapshot.triggers} | {one.ev_class for one in snapshot.rules}
    return (oid for oid in ground.owned if oid in ways and ground.relations[oid].kind in "rp")


def _first(session: Session, options: Iterable[Change]) -> list[Change]:
    """Make the first change that can be made, and return it."""
    for one in options:
        session.run(f"SAVEPOINT {_SAVEPOINT}")
        try:
            session.become(one.tenant)
            is_made = session.run(one.sql).rowcount > 0
        except DBAPIError as error:
            failure(error)
            session.run(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
            continue
        if is_made:
            return [one]
    return []


def _deletes(field: Field, oid: int, tenant: str) -> Iterator[Change]:
    table = field.seeder.ground.relations[field.seeder.ground.root(oid)]
    where = place(field.seeder.rows(oid, tenant))
    if where and "DELETE" in table.privileges:
        yield Change(tenant, f"DELETE FROM {table.sql} WHERE {where}")  # noqa: S608


def _updates(field: Field, oid: int, tenant: str) -> Iterator[Change]:
    """Yield an UPDATE that brings new values, and one that assigns to columns what they hold."""
    table = field.seeder.ground.relations[field.seeder.ground.root(oid)]
    where = place(field.seeder.rows(oid, tenant))
    slots = [
        one
        for one in field.seeder.ground.shapes[table.oid].slots.values()
        if one.updatable and one.readable and not one.generated and one.identity != "a"
    ]
    if not (where and slots and "UPDATE" in table.privileges):
        return
    new = {one.name: value for one in slots if (value := _new(field, table.oid, one)) is not None}
    for values in (new, dict[str, str]()):
        given = ", ".join(
            f"{one.sql} = {cast(values[one.name], one.type) if one.name in values else one.sql}"
            for one in slots
        )
        sql = f"UPDATE {table.sql} SET {given} WHERE {where}"  # noqa: S608
        yield Change(tenant, sql, tuple(values.values()))


def _new(field: Field, oid: int, slot: Slot) -> str | None:
    """Return another value of a column, or None where something says what it may be."""
    ground = field.seeder.ground
    shape = ground.shapes[oid]
    bound = {
        *field.seeder.tenant_values(oid, ""),
        *(name for one in shape.conditions for name in one.columns),
        *(name for one in ground.foreign_keys(oid) for name in one.columns),
        *(name for key in shape.keys for name in key),
    }
    return None if slot.name in bound else invent(slot)
