"""A relation under attack, and how rows of a tenant are told there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mgf.sqlalchemy.audit._probe._seeding import place
from mgf.sqlalchemy.audit._probe._values import cast
from mgf.sqlalchemy.audit._sql import literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mgf.sqlalchemy.audit._probe._seeding import Row
    from mgf.sqlalchemy.audit._probe._shapes import Shape
    from mgf.sqlalchemy.audit._snapshot import Relation

# Shorter values are in other rows, too.
_SHORTEST_TOKEN = 8


@dataclass(frozen=True)
class Target:
    """A relation under attack.

    Args:
        relation: a table, partition, foreign table or view.
        shape: its columns.
        column: its tenant column, if it has one.
        rows: of each tenant, in the relation or in the tables that it reads.
        tables: that those rows are in: itself, or what a view reads.
        reasons: why a tenant has none.
        named: other tenants that policies name, and that have rows.
        settings: other settings that policies ask for, each with values to try.
    """

    relation: Relation
    shape: Shape
    column: str | None
    rows: Mapping[str, Sequence[Row]]
    tables: Sequence[int] = ()
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])
    named: tuple[str, ...] = ()
    settings: Mapping[str, Sequence[str]] = field(default_factory=dict[str, "Sequence[str]"])

    @property
    def sql(self) -> str:
        """Schema and name as they stand in SQL."""
        return self.relation.sql

    @property
    def is_view(self) -> bool:
        """Whether it has no rows of its own."""
        return self.relation.kind in "vm"

    @property
    def reason(self) -> str:
        """Why a tenant has no row here; empty where both have."""
        return next(iter(self.reasons.values()), "")

    def may(self, *privileges: str) -> bool:
        """Say whether the role has privileges, at least on one column."""
        return self.relation.privileges.issuperset(privileges)

    def rows_of(self, *tenants: str) -> str:
        """Return the SQL that is true for rows of tenants, or an empty string if none is known."""
        column = None if self.column is None else self.shape.slots.get(self.column)
        if column is not None and column.readable:
            values = ", ".join(cast(one, column.type) for one in tenants)
            return f"{column.sql} IN ({values})"
        found = [row for tenant in tenants for row in self.rows[tenant]]
        if self.is_view or not all(one.readable for one in self.shape.slots.values()):
            others = [row for key, rows in self.rows.items() if key not in tenants for row in rows]
            return self._alike(found, others)
        return place(found)

    def tokens(self, tenant: str) -> set[str]:
        """Return values that only a tenant's rows have, or the tenant itself."""
        others = [row for key, rows in self.rows.items() if key != tenant for row in rows]
        return {tenant}.union(*(_tokens(row, others) for row in self.rows[tenant]))

    @property
    def copied(self) -> list[str]:
        """The columns that COPY takes: of a table none that is computed."""
        return [
            name
            for name, slot in self.shape.slots.items()
            if slot.readable and not (slot.generated and self.relation.kind == "r")
        ]

    def copies(self, tenant: str) -> set[str]:
        """Return a tenant's rows as lines of what COPY TO gives, where they are known whole."""
        shown = self.copied
        return {
            "\t".join(_escape(row.values[name]) for name in shown)
            for row in self.rows[tenant]
            if not self.is_view and row.values.keys() >= set(shown)
        }

    def _alike(self, rows: Iterable[Row], others: Sequence[Row]) -> str:
        """Return the SQL that is true for rows with values that only some have.

        By values that are nowhere else, whatever the column is called here, and by all columns of
        the same name together.
        """
        shown = {name: slot.sql for name, slot in self.shape.slots.items() if slot.readable}
        whole = f"CAST(ROW({', '.join(shown.values())}) AS text)"
        found = list[str]()
        for one in rows:
            tokens = sorted(_tokens(one, others))
            found += [f"strpos({whole}, {literal(token)}) > 0" for token in tokens]
            same = {
                name: value
                for name, value in one.values.items()
                if value is not None and name in shown
            }
            if same and not any(_could_be(other, same) for other in others):
                each = (f"CAST({shown[name]} AS text) = {literal(same[name])}" for name in same)
                found.append(f"({' AND '.join(each)})")
        return " OR ".join(found)


def _escape(value: str | None) -> str:
    """Return a value as COPY writes it (PostgreSQL, COPY, text format)."""
    if value is None:
        return r"\N"
    value = value.replace("\\", r"\\")
    for one, name in zip("\b\f\n\r\t\v", "bfnrtv", strict=True):
        value = value.replace(one, f"\\{name}")
    return value


def _tokens(row: Row, others: Iterable[Row]) -> set[str]:
    """Return values of a row that others have not, and that are too long to be part of theirs."""
    theirs = {value for other in others for value in other.values.values()}
    return {
        value
        for value in set(row.values.values()) - theirs
        if value is not None and len(value) >= _SHORTEST_TOKEN
    }


def _could_be(row: Row, values: Mapping[str, str]) -> bool:
    """Say whether a row may look as these values do."""
    common = values.keys() & row.values.keys()
    return bool(common) and all(row.values[name] == values[name] for name in common)
