"""What is attacked, and how its rows hang together."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from mgf.sqlalchemy.audit._probe._shapes import Shape
    from mgf.sqlalchemy.audit._snapshot import Relation, Subject
    from mgf.sqlalchemy.rls._names import RelationName


class ForeignKey(NamedTuple):
    """Columns of a table, and those of its parent that they have to meet."""

    columns: tuple[str, ...]
    parent: int
    parent_columns: tuple[str, ...]


@dataclass(frozen=True)
class Room:
    """What was done for tables that are partitioned by lists of tenants.

    Args:
        attached: a partition that was made, with the table that it was attached to.
        reasons: why there is no row of a made-up tenant in a table or partition.
        tenants: those that are made up.
    """

    attached: Mapping[int, int] = field(default_factory=dict[int, int])
    reasons: Mapping[int, str] = field(default_factory=dict[int, str])
    tenants: Sequence[str] = ()


@dataclass(frozen=True)
class Ground:
    """The relations of a database that tenants' rows are in.

    Args:
        subject: of the audit.
        owned: the tenant column of each table that has tenants' rows, None for a child table.
        shapes: of all tables that a row may have to be written to, and of the views.
        relations: all that there are.
        room: that was made for tenants in partitioned tables.
    """

    subject: Subject
    owned: Mapping[int, str | None]
    shapes: Mapping[int, Shape]
    relations: Mapping[int, Relation]
    room: Room = field(default_factory=Room)

    @cached_property
    def children(self) -> Mapping[int, list[int]]:
        """Partitions and children by what they are of."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for relation in self.relations.values():
            for parent in relation.parents:
                found[parent].append(relation.oid)
        return found

    def leaves(self, oid: int) -> Iterator[int]:
        """Yield the partitions that have rows themselves."""
        for child in self.children.get(oid, ()):
            if self.relations[child].kind == "p":
                yield from self.leaves(child)
            else:
                yield child

    def routed_by(self, oid: int) -> Iterator[int]:
        """Yield the partitioned tables that route rows to a partition, nearest first."""
        if oid in self.room.attached:
            oid = self.room.attached[oid]
            yield oid
        while self.shapes[oid].is_partition:
            oid = self.relations[oid].parents[0]
            yield oid

    def root(self, oid: int) -> int:
        """Return the partitioned table that routes rows to a partition, or the table itself."""
        return next(reversed([oid, *self.routed_by(oid)]))

    @cached_property
    def _foreign_keys(self) -> Mapping[int, list[ForeignKey]]:
        found: defaultdict[int, list[ForeignKey]] = defaultdict(list)
        for row in self.subject.snapshot.foreign_keys:
            if row.conrelid in self.relations and row.confrelid in self.relations:
                child, parent = self.relations[row.conrelid], self.relations[row.confrelid]
                found[row.conrelid].append(
                    ForeignKey(
                        tuple(child.columns[one].name for one in row.conkey),
                        row.confrelid,
                        tuple(parent.columns[one].name for one in row.confkey),
                    )
                )
        return found

    def foreign_keys(self, oid: int) -> Iterator[ForeignKey]:
        """Yield the foreign keys of a table, with those of what it is a partition of."""
        yield from self._foreign_keys[oid]
        if self.shapes[oid].is_partition:
            yield from self.foreign_keys(self.relations[oid].parents[0])

    def below(self, view: RelationName, tables: Container[int] | None = None) -> set[int]:
        """Return the tables that a view reads, also through other views.

        Args:
            view: schema and name.
            tables: that count; those with tenants' rows unless given.
        """
        tables = self.owned if tables is None else tables
        views, found = self.subject.snapshot.views, set[int]()
        todo, seen = [view], {view}
        while todo:
            key = todo.pop()
            relation = self.subject.snapshot.by_key.get(key)
            if relation is None:
                continue
            if key in views:
                todo += [one for one in views[key].reads if one not in seen]
                seen.update(views[key].reads)
            elif relation.oid in tables:
                found.add(relation.oid)
        return found
