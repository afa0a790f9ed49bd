"""Writing through views: those that PostgreSQL updates itself, and those with triggers or rules.

What a statement did is looked up in the tables behind the view, as whoever logged in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.audit._probe._field import (
    CHECK_OPTION,
    FOREIGN_KEY_VIOLATION,
    KEY_TAKEN,
    NOT_NULL_VIOLATION,
    REFUSED,
    is_closed,
    is_impossible,
)
from mgf.sqlalchemy.audit._probe._outcome import (
    HELD,
    NOT_APPLICABLE,
    NOT_REACHED,
    Outcome,
    leaked,
    not_proven,
)
from mgf.sqlalchemy.audit._probe._seeding import insert, place
from mgf.sqlalchemy.audit._probe._session import explain, failure
from mgf.sqlalchemy.audit._probe._shapes import Shape
from mgf.sqlalchemy.audit._probe._values import cast

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mgf.sqlalchemy.audit._probe._field import Field
    from mgf.sqlalchemy.audit._probe._seeding import Values
    from mgf.sqlalchemy.audit._probe._shapes import Slot
    from mgf.sqlalchemy.audit._probe._target import Target

    # The table and column that a view's column shows.
    Origins = Mapping[str, tuple[int, str]]


# invalid_column_reference: no unique key is found for ON CONFLICT.
_NO_SUCH_KEY = "42P10"


class Effect(NamedTuple):
    """What a statement did to a tenant's rows: how many there are, and how many are untouched."""

    error: DBAPIError | None
    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def is_change(self) -> bool:
        """Whether rows were added, changed or removed."""
        return self.before != self.after


def own_write(field: Field, target: Target) -> Outcome:
    """A tenant writes a row of its own through a view."""
    if not target.may("INSERT"):
        return NOT_APPLICABLE
    origins = origins_of(field, target)
    for tenant in field.tenants:
        effect = effect_of(field, target, tenant, tenant, _insert(field, target, tenant, origins))
        if effect.error is not None:
            code = failure(effect.error)
            if is_impossible(effect.error):
                return NOT_APPLICABLE
            # Nobody writes through a view without the column that a row has to have.
            if code in (REFUSED, NOT_NULL_VIOLATION) and not _owners(field, tenant, origins):
                return NOT_APPLICABLE
            if code not in KEY_TAKEN:
                reason = explain(effect.error)
                return not_proven(f"a tenant cannot write a row of its own ({reason})")
        elif effect.after[0] <= effect.before[0]:
            return not_proven("an INSERT made no row of the tenant's: a trigger or rule saw to it")
    return HELD


def insert_other(field: Field, target: Target) -> Outcome:
    """A tenant writes a row for the other through a view."""
    if not target.may("INSERT"):
        return NOT_APPLICABLE
    origins = origins_of(field, target)
    for tenant, other in field.pairs:
        statement = _insert(field, target, other, origins)
        outcome = _written(field, target, tenant, other, statement)
        if outcome != HELD:
            return outcome
    return HELD


def insert_unscoped(field: Field, target: Target) -> Outcome:
    """A row is written for a tenant through a view while none is set."""
    if not target.may("INSERT"):
        return NOT_APPLICABLE
    tenant = field.tenants[0]
    statement = _insert(field, target, tenant, origins_of(field, target))
    return _written(field, target, "", tenant, statement)


def upsert(field: Field, target: Target) -> Outcome:
    """A tenant writes over the other's row that has the same key, through a view.

    ON CONFLICT looks past the conditions of a view, also where it has a CHECK OPTION.
    """
    if not target.may("INSERT", "UPDATE", "SELECT"):
        return NOT_APPLICABLE
    origins = origins_of(field, target)
    for tenant, other in field.pairs:
        statement = _upsert(field, target, (tenant, other), origins)
        if not statement:
            return NOT_APPLICABLE
        effect = effect_of(field, target, tenant, other, statement)
        if effect.error is not None:
            code = failure(effect.error)
            # A view with triggers or rules of its own takes no ON CONFLICT.
            if is_impossible(effect.error) or code == _NO_SUCH_KEY:
                return NOT_APPLICABLE
            if code in (REFUSED, CHECK_OPTION):
                continue
            # Keys have a say when the row that was there was written over.
            if code not in (FOREIGN_KEY_VIOLATION, *KEY_TAKEN):
                return not_proven(explain(effect.error))
        elif not effect.is_change:
            continue
        return leaked("a tenant writes over another one's row through it")
    return HELD


def move(field: Field, target: Target) -> Outcome:
    """A tenant gives a row of its own to the other through a view."""
    if not target.may("UPDATE"):
        return NOT_APPLICABLE
    origins = origins_of(field, target)
    for tenant, other in field.pairs:
        given = ", ".join(
            f"{slot.sql} = {cast(value, slot.type)}"
            for name, value in _owners(field, other, origins).items()
            if (slot := target.shape.slots[name]).updatable
        )
        if not given:
            return NOT_APPLICABLE
        if not (where := _own_rows(target, tenant)):
            return not_proven("a tenant's own rows cannot be told without reading them")
        own = _set_itself(field, target, origins) or given
        reached = effect_of(field, target, tenant, tenant, _update(target, own, where))
        if reached.error is not None and is_impossible(reached.error):
            return NOT_APPLICABLE
        if not reached.is_change:
            return not_proven(f"UPDATE {NOT_REACHED}")
        outcome = _written(field, target, tenant, other, _update(target, given, where))
        if outcome != HELD:
            return outcome
    return HELD


def update_itself(field: Field, target: Target) -> str:
    """Return an UPDATE through a view that changes no value, or an empty string."""
    given = _set_itself(field, target, origins_of(field, target))
    return _update(target, given) if given else ""


def does_more(field: Field, target: Target, statement: str) -> Outcome:
    """Say whether what a trigger or rule of a view does with own rows changes other tenants'."""
    snapshot = field.seeder.ground.subject.snapshot
    ways = {one.tgrelid for one in snapshot.triggers} | {one.ev_class for one in snapshot.rules}
    if not target.is_view or target.relation.oid not in ways:
        return HELD
    for tenant, other in field.pairs:
        if not statement or not (where := _own_rows(target, tenant)):
            return not_proven("a tenant's own rows cannot be told without reading them")
        effect = effect_of(field, target, tenant, other, f"{statement} WHERE {where}")
        if effect.error is not None:
            return not_proven(explain(effect.error))
        if effect.is_change:
            return leaked("what a view does for a tenant's own rows changes those of another one")
    return HELD


def effect_of(field: Field, target: Target, tenant: str, whose: str, statement: str) -> Effect:
    """Run a statement of a tenant, undo it, and return what it did to somebody's rows."""
    session = field.session
    with session.trial(whose, role=session.login):
        before = after = _census(field, target, whose)
    try:
        with session.trial(tenant):
            session.run(statement)
            session.become(whose, role=session.login)
            after = _census(field, target, whose)
    except DBAPIError as error:
        failure(error)
        return Effect(error, before, before)
    return Effect(None, before, after)


def origins_of(field: Field, target: Target) -> Origins:
    """Return what the columns of a view show: by their names, or else by rows that were put in."""
    shapes = field.seeder.ground.shapes
    found: dict[str, tuple[int, str]] = {}
    for oid in target.tables:
        for name, slot in target.shape.slots.items():
            base = shapes[oid].slots.get(name)
            if base is not None and base.type == slot.type:
                found.setdefault(name, (oid, name))
    return {**found, **_by_values(field, target, found)}


def _by_values(field: Field, target: Target, known: Collection[str]) -> Origins:
    slots = [one for name, one in target.shape.slots.items() if name not in known]
    if not slots:
        return {}
    columns = ", ".join(f"CAST({one.sql} AS text)" for one in slots)
    samples: list[tuple[str, Values]] = []
    for tenant in field.tenants:
        where = target.rows_of(tenant) or "false"
        sql = f"SELECT {columns} FROM {target.sql} WHERE {where} LIMIT 1"  # noqa: S608
        with field.session.trial(tenant, role=field.session.login):
            row = field.session.run(sql).first()
        if row is None:
            return {}
        samples.append((tenant, dict(zip([one.name for one in slots], row, strict=True))))
    found: dict[str, tuple[int, str]] = {}
    for slot in slots:
        for oid in target.tables:
            for name, base in field.seeder.ground.shapes[oid].slots.items():
                if base.type == slot.type and all(
                    values[slot.name] in _values_of(field, oid, tenant, name)
                    for tenant, values in samples
                ):
                    found.setdefault(slot.name, (oid, name))
    return found


def _values_of(field: Field, oid: int, tenant: str, name: str) -> set[str]:
    values = (row.values.get(name) for row in field.seeder.rows(oid, tenant))
    return {one for one in values if one is not None}


def _owners(field: Field, tenant: str, origins: Origins) -> Values:
    """Return the columns of a view that say whose a row is, as they are for a tenant."""
    owners = {oid: field.seeder.owners(oid, tenant) for oid, _ in origins.values()}
    return {
        name: owners[oid][column]
        for name, (oid, column) in origins.items()
        if column in owners[oid]
    }


def _insert(field: Field, target: Target, tenant: str, origins: Origins) -> str:
    rows = {oid: field.seeder.values_like(oid, tenant) for oid, _ in origins.values()}
    values = {
        name: rows[oid][column]
        for name, (oid, column) in origins.items()
        if column in rows[oid] and target.shape.slots[name].insertable
    }
    return insert(target.sql, target.shape, values)


def _upsert(field: Field, target: Target, pair: tuple[str, str], origins: Origins) -> str:
    """Return the INSERT on top of the other's row, or an empty string where no key is shown."""
    tenant, other = pair
    shown = {origin: name for name, origin in origins.items()}
    for oid in target.tables:
        base, mine = field.seeder.ground.shapes[oid], field.seeder.tenant_values(oid, tenant)
        keys = [key for key in base.keys if all((oid, one) in shown for one in key)]
        rows = field.seeder.rows(oid, other)
        if not keys or not rows:
            continue
        # A key without the tenant is the way in, where there is one.
        key = min(keys, key=lambda one: field.seeder.ground.owned[oid] in one)
        values: Values = {}
        slots: dict[str, Slot] = {}
        for column, value in {**rows[0].values, **mine}.items():
            name = shown.get((oid, column), "")
            slot = target.shape.slots.get(name)
            if slot is None or not slot.insertable or base.slots[column].generated:
                continue
            values[name] = rows[0].values.get(column) if column in key else value
            slots[name] = replace(slot, identity=base.slots[column].identity)
        names = [shown[oid, one] for one in key]
        # That of the tenant first: a CHECK OPTION lets a row pass that was taken over.
        free = [one for name, one in slots.items() if one.updatable and name not in names]
        owners = [shown.get((oid, one)) for one in mine]
        updated = max(free, key=lambda one: one.name in owners, default=None)
        if updated is not None and values.keys() >= {*names}:
            columns = ", ".join(target.shape.slots[one].sql for one in names)
            return (
                f"{insert(target.sql, Shape(slots), values)} ON CONFLICT ({columns}) "
                f"DO UPDATE SET {updated.sql} = EXCLUDED.{updated.sql}"
            )
    return ""


def _set_itself(field: Field, target: Target, origins: Origins) -> str:
    """Return an assignment that changes no value, or an empty string."""
    slot = next(
        (
            one
            for one in target.shape.slots.values()
            if one.updatable and one.readable and _is_plain(field, origins.get(one.name))
        ),
        None,
    )
    return "" if slot is None else f"{slot.sql} = {slot.sql}"


def _is_plain(field: Field, origin: tuple[int, str] | None) -> bool:
    slot: Slot | None = origin and field.seeder.ground.shapes[origin[0]].slots[origin[1]]
    return slot is None or not (slot.generated or slot.identity == "a")


def _update(target: Target, given: str, where: str = "") -> str:
    return f"UPDATE {target.sql} SET {given}" + (f" WHERE {where}" if where else "")  # noqa: S608


def _own_rows(target: Target, tenant: str) -> str:
    return target.rows_of(tenant) if target.may("SELECT") else ""


def _written(field: Field, target: Target, tenant: str, other: str, statement: str) -> Outcome:
    """Say whether a statement of a tenant, or of nobody, changed the other's rows."""
    effect = effect_of(field, target, tenant, other, statement)
    if effect.error is None:
        whom = "another tenant" if tenant else "who has no tenant"
        return leaked(f"{whom} writes a tenant's rows through it") if effect.is_change else HELD
    code = failure(effect.error)
    if code in (REFUSED, CHECK_OPTION):
        return HELD
    # The default of a tenant column is NULL where there is no tenant.
    if not tenant and (is_closed(code) or code == NOT_NULL_VIOLATION):
        return HELD
    return not_proven(explain(effect.error))


def _census(field: Field, target: Target, tenant: str) -> tuple[int, int]:
    """Return how many rows of a tenant there are behind a view, and how many are untouched."""
    counts = [0, 0]
    for oid in target.tables:
        placed = place(field.seeder.rows(oid, tenant)) or "false"
        table = field.seeder.ground.relations[oid].sql
        counted = field.session.run(
            f"SELECT count(*), count(*) FILTER (WHERE {placed}) FROM {table} "  # noqa: S608
            f"WHERE {_belongs(field, oid, tenant) or placed}"
        )
        counts = [sum(both) for both in zip(counts, counted.one(), strict=True)]
    return counts[0], counts[1]


def _belongs(field: Field, oid: int, tenant: str) -> str:
    """Return the SQL that is true for all rows of a tenant, or an empty string."""
    slots = field.seeder.ground.shapes[oid].slots
    owners = field.seeder.owners(oid, tenant)
    column = field.seeder.ground.owned[oid]
    values = owners if column is None else {column: tenant}
    return " AND ".join(
        f"{slots[name].sql} = {cast(one, slots[name].type)}" for name, one in values.items()
    )
