"""Where statements of the role write: also by views, rules, partitions and keys that cascade."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from mgf.sqlalchemy.audit._spread import spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mgf.sqlalchemy.audit._snapshot import Relation, Subject

    # A relation's oid, and the command that writes there.
    Place = tuple[int, str]

CHANGING: Final[tuple[str, ...]] = ("INSERT", "UPDATE", "DELETE")
WRITING: Final[tuple[str, ...]] = (*CHANGING, "TRUNCATE")


def written(subject: Subject) -> Mapping[Place, Relation]:
    """Return what the role writes, each with the relation whose privilege it needs for that."""
    found: dict[Place, Relation] = {
        (one.oid, command): one
        for one in subject.snapshot.relations.values()
        for command in WRITING
        if command in one.within_reach
    }
    ways: defaultdict[Place, list[Place]] = defaultdict(list)
    for start, end in _ways(subject):
        ways[start].append(end)
    spread(found, ways)
    return found


def _ways(subject: Subject) -> Iterator[tuple[Place, Place]]:
    """Yield where writing goes on without asking for the privileges of who began it."""
    snapshot = subject.snapshot
    for one in snapshot.relations.values():
        for parent in one.parents:
            yield from (((parent, command), (one.oid, command)) for command in WRITING)
    for key, view in snapshot.views.items():
        if key not in snapshot.by_key or view.materialized or view.security_invoker:
            continue
        for table in filter(None, map(snapshot.by_key.get, view.reads)):
            oid = snapshot.by_key[key].oid
            yield from (((oid, command), (table.oid, command)) for command in CHANGING)
    for rule in snapshot.rules:
        for name in rule.names:
            if name != rule.ev_class:
                yield from (((rule.ev_class, rule.event), (name, one)) for one in CHANGING)
    for row in snapshot.foreign_keys:
        for command, action in (("DELETE", row.confdeltype), ("UPDATE", row.confupdtype)):
            if action == "c":
                yield (row.confrelid, command), (row.conrelid, command)
