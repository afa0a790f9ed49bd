"""Rows of two tenants that nobody else has, put in as far as anyone here may."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.audit._probe._session import UNTOUCHED, explain, failure
from mgf.sqlalchemy.audit._probe._shapes import Condition
from mgf.sqlalchemy.audit._probe._solver import solve
from mgf.sqlalchemy.audit._probe._values import cast, invent, takes_uuid_text
from mgf.sqlalchemy.audit._sql import identifier, literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mgf.sqlalchemy.audit._probe._ground import ForeignKey, Ground
    from mgf.sqlalchemy.audit._probe._session import Session
    from mgf.sqlalchemy.audit._probe._shapes import Shape
    from mgf.sqlalchemy.audit._snapshot import Relation

Values = dict[str, "str | None"]

# Partitions that are tried until one takes a row.
_MOST_PARTITIONS = 5
_LOCKED = "55P03"
# Where a value is taken from in JSON, as PostgreSQL prints it.
_KEYS = re.compile(r"->>? '((?:[^']|'')*)'")


class Author(NamedTuple):
    """Who writes rows, and whether with the setting at the rows' tenant."""

    role: str
    is_bound: bool


@dataclass(frozen=True)
class Row:
    """A row that was put in.

    Args:
        oid: of the table or partition that it is in.
        ctid: its place there; None where the author may not read it.
        values: of its columns, as text.
    """

    oid: int
    ctid: str | None
    values: Mapping[str, str | None]


class CannotSeedError(Exception):
    """There is no row of a tenant in a table, and this is why."""


def insert(table: str, shape: Shape, values: Mapping[str, str | None], returning: str = "") -> str:
    """Return the statement that puts a row into a table."""
    tail = f" RETURNING {returning}" if returning else ""
    if not values:
        return f"INSERT INTO {table} DEFAULT VALUES{tail}"
    slots = [shape.slots[name] for name in values]
    columns = ", ".join(slot.sql for slot in slots)
    literals = ", ".join(cast(values[slot.name], slot.type) for slot in slots)
    over = " OVERRIDING SYSTEM VALUE" if any(slot.identity == "a" for slot in slots) else ""
    return f"INSERT INTO {table} ({columns}){over} VALUES ({literals}){tail}"  # noqa: S608


class Seeder:
    """Puts rows of tenants into tables, their parents' first.

    Args:
        session: to try in.
        ground: the tables.
        donors: tenants whose rows may be copied.
    """

    def __init__(self, session: Session, ground: Ground, donors: Sequence[str] = ()) -> None:
        self._session = session
        self.ground = ground
        self._donors = donors
        self._rows: defaultdict[tuple[int, str], list[Row]] = defaultdict(list)
        self._shared: dict[ForeignKey, Values | None] = {}
        self._busy: set[tuple[int, str]] = set()
        self._failed: set[tuple[int, str]] = set()
        self._scanty: set[int] = set()
        self._author = Author(session.role, is_bound=True)
        self._sources = {oid: (name, keys) for oid, name, keys in self._computed()}
        self.reasons: dict[tuple[int, str], str] = {}
        self.variants: defaultdict[int, list[Values]] = defaultdict(list)

    def rows(self, oid: int, tenant: str) -> Sequence[Row]:
        """Return a tenant's rows in a table, those in its partitions among them."""
        return self._rows[oid, tenant]

    def written(self, tenant: str) -> set[str]:
        """Return all values of the rows that were put in for a tenant."""
        rows = (row for (_, owner), one in self._rows.items() if owner == tenant for row in one)
        return {value for row in rows for value in row.values.values() if value is not None}

    def write_as(self, author: Author) -> None:
        """Put in as somebody else from now on, also what could not be put in before."""
        self._author = author
        self._failed.clear()
        self._shared = {key: one for key, one in self._shared.items() if one is not None}

    def seed(self, oid: int, tenant: str) -> Row | None:
        """Return a row of a tenant, one that was put in before or a new one.

        Args:
            oid: of the table.
            tenant: whose row; empty for a row of a table that all tenants share.
        """
        key = (oid, tenant)
        if not self._rows[key] and key not in self._failed and key not in self._busy:
            self._busy.add(key)
            try:
                self._seed(self.ground.relations[oid], tenant)
                self.reasons.pop(key, None)
            except CannotSeedError as error:
                self.reasons[key] = str(error)
                self._failed.add(key)
            finally:
                self._busy.remove(key)
        return next(iter(self._rows[key]), None)

    def add(self, oid: int, tenant: str, given: Values) -> bool:
        """Put in one more row with some given values, and say whether that could be done."""
        try:
            values = self.values(oid, tenant, given=given)
            self._put(self.ground.relations[oid], tenant, values)
        except (CannotSeedError, DBAPIError) as error:
            if isinstance(error, DBAPIError):
                failure(error)
            return False
        return True

    def owners(self, oid: int, tenant: str) -> Values:
        """Return the columns that say whose a row is, as they are for a tenant."""
        found = self.tenant_values(oid, tenant)
        for key in self.ground.foreign_keys(oid):
            rows = self._rows[key.parent, tenant]
            if rows and key.parent in self.ground.owned and key.parent != oid:
                for name, other in zip(key.columns, key.parent_columns, strict=True):
                    found.setdefault(name, rows[0].values.get(other))
        return self._stored(oid, found)

    def tenant_values(self, oid: int, tenant: str) -> Values:
        """Return the tenant column, and the one that it is computed from, as for a tenant."""
        column = self.ground.owned.get(oid)
        if column is None:
            return {}
        source, keys = self._sources.get(oid, (column, ()))
        return {column: tenant, source: _within(keys, tenant)}

    def _stored(self, oid: int, values: Values) -> Values:
        """Leave out what is computed."""
        slots = self.ground.shapes[oid].slots
        return {name: one for name, one in values.items() if not slots[name].generated}

    def _computed(self) -> Iterator[tuple[int, str, Sequence[str]]]:
        """Yield the tables whose tenant column is computed from one other that takes a tenant.

        With the column's name, and the keys that lead to the tenant, if it is JSON.
        """
        tenant = str(uuid4())
        for oid, column in self.ground.owned.items():
            shape = self.ground.shapes[oid]
            formula = None if column is None else shape.slots[column].formula
            names = frozenset[str]() if formula is None else shape.named_in(formula)
            if column is None or len(names) != 1:
                continue
            condition = Condition(f"({formula}) = {cast(tenant, shape.slots[column].type)}", names)
            name = next(iter(names))
            is_json = shape.slots[name].base in ("json", "jsonb")
            keys = [one.replace("''", "'") for one in _KEYS.findall(formula or "")] * is_json
            if self._solve(oid, [condition], {name: _within(keys, tenant)}):
                yield oid, name, keys

    def values_like(self, oid: int, tenant: str, *, given: Values | None = None) -> Values:
        """Return values for a new row; of a partitioned table, for a partition that took one."""
        rows = self.rows(oid, tenant) if self.ground.relations[oid].kind == "p" else ()
        leaf = rows[0].oid if rows else oid
        return self.values(self.ground.room.attached.get(leaf, leaf), tenant, given=given)

    def values(
        self,
        oid: int,
        tenant: str,
        *,
        given: Values | None = None,
        copied: Values | None = None,
    ) -> Values:
        """Return values for a new row of a tenant.

        Args:
            oid: of the table.
            tenant: whose row.
            given: values that it has to have.
            copied: values of another row, for what need not differ.

        Raises:
            CannotSeedError: there are none.
        """
        shape = self.ground.shapes[oid]
        values: Values = dict(given or {})
        column = self.ground.owned.get(oid)
        if column is not None:
            slot = shape.slots[column]
            if slot.base != "uuid" and not takes_uuid_text(slot):
                raise CannotSeedError(
                    f"the tenant column {column!r} is of type {slot.type!r}, and the tenants that "
                    "are made up here are UUIDs"
                )
            if slot.generated and oid not in self._sources:
                raise CannotSeedError(
                    f"the tenant column {column!r} is computed, as {slot.formula}, and not from "
                    "one column that takes the tenant as it is; keep the tenant in a plain column"
                )
            values |= self.tenant_values(oid, tenant)
        for key in self.ground.foreign_keys(oid):
            values |= self._referring(oid, tenant, key, values)
        distinct = {
            name for one in shape.keys if column is None or column not in one for name in one
        }
        for name, slot in shape.slots.items():
            if name in values or slot.generated or slot.identity:
                continue
            if copied is not None and name in copied and name not in distinct:
                values[name] = copied[name]
            elif not slot.has_default and (slot.not_null or oid not in self._scanty):
                values[name] = invent(slot)
                if values[name] is None and slot.not_null:
                    raise CannotSeedError(
                        f"nothing is known of the type {slot.type!r} of column {name!r}"
                    )
        if copied is None and shape.conditions:
            values |= self._fulfil(oid, shape.conditions, values, given or {})
        return self._stored(oid, values)

    def _seed(self, relation: Relation, tenant: str) -> None:
        room = self.ground.room
        reason = room.reasons.get(relation.oid, "") if tenant in room.tenants else ""
        if reason:
            raise CannotSeedError(reason)
        for values in self._attempts(relation, tenant):
            try:
                return self._put(relation, tenant, values)
            except DBAPIError as error:
                reason = explain(error)
                if failure(error) == _LOCKED:
                    break
        for oid in islice(self.ground.leaves(relation.oid), _MOST_PARTITIONS):
            if relation.kind == "p" and self.seed(oid, tenant) is not None:
                return None
        raise CannotSeedError(reason)

    def _attempts(self, relation: Relation, tenant: str) -> Iterator[Values]:
        if relation.kind == "f":
            raise CannotSeedError("a foreign table: what is written elsewhere may not be undone")
        if self._author.role == self._session.role and not self._may_insert(relation):
            raise CannotSeedError(
                f"{self._session.role!r} has no INSERT on it; connect as who has, and name the role"
            )
        if any(self.ground.relations[one].kind == "f" for one in self.ground.leaves(relation.oid)):
            return  # only into partitions that are here
        for copied in self._copies(relation, tenant):
            yield self.values(relation.oid, tenant, copied=copied)
        self._scanty.discard(relation.oid)
        yield self.values(relation.oid, tenant)
        self._scanty.add(relation.oid)
        yield self.values(relation.oid, tenant)

    def _may_insert(self, relation: Relation) -> bool:
        root = self.ground.relations[self.ground.root(relation.oid)]
        return "INSERT" in root.privileges

    def _put(self, relation: Relation, tenant: str, values: Values) -> None:
        root = self.ground.relations[self.ground.root(relation.oid)]
        shape = self.ground.shapes[root.oid]
        is_app = self._author.role == self._session.role
        shown = {
            name: slot.sql for name, slot in shape.slots.items() if slot.readable or not is_app
        }
        columns = ", ".join(f"CAST({one} AS text)" for one in ("ctid", *shown.values()))
        bound = tenant if self._author.is_bound else UNTOUCHED
        statement = insert(root.sql, shape, values)
        try:
            with self._session.trial(bound, role=self._author.role, keep=True):
                result = self._session.run(f"{statement} RETURNING tableoid, {columns}")
                returned: list[Any] = [value for row in result for value in row]
                _check_written(bool(returned))
        except DBAPIError as error:
            # Who may not read what it wrote, or writes through a rule.
            if failure(error) not in ("42501", "0A000"):
                raise
            with self._session.trial(bound, role=self._author.role, keep=True):
                _check_written(self._session.run(statement).rowcount > 0)
            row = Row(relation.oid, None, values)
        else:
            values = dict(zip(shown, returned[2:], strict=True))
            row = Row(returned[0], returned[1], values)
        for oid in dict.fromkeys([row.oid, *self.ground.routed_by(row.oid)]):
            self._rows[oid, tenant].append(row)

    def _referring(self, oid: int, tenant: str, key: ForeignKey, values: Values) -> Values:
        """Return values for the columns of a foreign key that have none yet."""
        slots = self.ground.shapes[oid].slots
        missing = [name for name in key.columns if name not in values]
        is_itself = key.parent in (oid, self.ground.root(oid))
        found = None if is_itself else self._parent(key, tenant)
        if found is not None:
            return {
                name: found.get(other)
                for name, other in zip(key.columns, key.parent_columns, strict=True)
                if name in missing
            }
        nullable = [name for name in missing if not slots[name].not_null]
        if nullable:
            return dict.fromkeys(nullable)
        if key.parent == oid and len(missing) == 1:
            return self._itself(oid, key, missing[0])
        parent = self.ground.relations[key.parent]
        reason = self.reasons.get((key.parent, tenant)) or self.reasons.get((key.parent, ""), "")
        raise CannotSeedError(
            f"needs a row of {parent.label}" + (f" ({reason})" if reason else ", which needs this")
        )

    def _itself(self, oid: int, key: ForeignKey, name: str) -> Values:
        other = key.parent_columns[key.columns.index(name)]
        value = invent(self.ground.shapes[oid].slots[other])
        return {name: value, other: value}

    def _parent(self, key: ForeignKey, tenant: str) -> Mapping[str, str | None] | None:
        if key.parent in self.ground.owned:
            row = self.seed(key.parent, tenant)
            return None if row is None else row.values
        if key not in self._shared:
            self._shared[key] = self._existing(key)
        if self._shared[key] is None and (row := self.seed(key.parent, "")) is not None:
            self._shared[key] = dict(row.values)
        return self._shared[key]

    def _existing(self, key: ForeignKey) -> Values | None:
        """Return a row that is there already, of a table that all tenants share."""
        relation = self.ground.relations[key.parent]
        slots = self.ground.shapes[key.parent].slots
        columns = ", ".join(f"CAST({slots[name].sql} AS text)" for name in key.parent_columns)
        sql = f"SELECT {columns} FROM {relation.sql} LIMIT 1"  # noqa: S608
        return next(self._read(sql, key.parent_columns, UNTOUCHED), None)

    def _copies(self, relation: Relation, tenant: str) -> Iterator[Values]:
        """Yield rows of donors, without what is computed."""
        column = self.ground.owned.get(relation.oid)
        is_app = self._author.role == self._session.role
        slots = [
            one
            for one in self.ground.shapes[relation.oid].slots.values()
            if not one.generated and (one.readable or not is_app)
        ]
        if not tenant or (column is None and not is_app):
            return
        columns = ", ".join(f"CAST({one.sql} AS text)" for one in slots)
        for donor in self._donors:
            where = ""
            if column is not None:
                slot = self.ground.shapes[relation.oid].slots[column]
                where = f" WHERE {slot.sql} = {cast(donor, slot.type)}"
            sql = f"SELECT {columns} FROM {relation.sql}{where} LIMIT 1"  # noqa: S608
            bound = donor if self._author.is_bound else UNTOUCHED
            yield from self._read(sql, [one.name for one in slots], bound)

    def _read(self, sql: str, names: Iterable[str], tenant: str | None) -> Iterator[Values]:
        try:
            with self._session.trial(tenant, role=self._author.role):
                row = self._session.run(sql).first()
        except DBAPIError as error:
            failure(error)
            return
        if row is not None:
            yield dict(zip(names, row, strict=True))

    def _fulfil(
        self, oid: int, conditions: Iterable[Condition], values: Values, given: Values
    ) -> Values:
        settled = {*self.tenant_values(oid, ""), *given}
        settled.update(name for key in self.ground.foreign_keys(oid) for name in key.columns)
        known = {name: value for name, value in values.items() if name in settled}
        return self._solve(oid, conditions, known)

    def _solve(self, oid: int, conditions: Iterable[Condition], known: Values) -> Values:
        shape = self.ground.shapes[oid]
        table = identifier(self.ground.relations[oid].name)
        try:
            with self._session.trial(UNTOUCHED, role=self._author.role):
                return solve(self._session, table, shape, conditions, known) or {}
        except DBAPIError as error:
            failure(error)
            return {}


def _within(keys: Sequence[str], tenant: str) -> str:
    """Return a tenant, or JSON in which keys lead to it."""
    value: Any = tenant
    for key in reversed(keys):
        value = {key: value}
    return json.dumps(value) if keys else tenant


def _check_written(is_written: bool) -> None:
    if not is_written:
        raise CannotSeedError("an INSERT made no row: a trigger or rule saw to it")


def place(rows: Iterable[Row]) -> str:
    """Return the SQL that is true for rows by their places, or an empty string."""
    known = [row for row in rows if row.ctid is not None]
    return " OR ".join(
        f"(tableoid = {row.oid} AND ctid = {literal(row.ctid or '')})" for row in known
    )
