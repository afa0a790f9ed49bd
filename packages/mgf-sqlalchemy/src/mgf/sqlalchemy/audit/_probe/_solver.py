"""Find values that fulfil conditions: PostgreSQL is asked, nobody here reads its SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgf.sqlalchemy.audit._probe._values import candidates, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mgf.sqlalchemy.audit._probe._session import Session
    from mgf.sqlalchemy.audit._probe._shapes import Condition, Shape

# Of columns that one condition ties together; what takes more is not found.
_MOST_COMBINATIONS = 200_000
# For a hash of the column: one of so many values meets one of a few hundred partitions.
_MOST_CANDIDATES = 2_000


def solve(
    session: Session,
    table: str,
    shape: Shape,
    conditions: Iterable[Condition],
    known: Mapping[str, str | None],
) -> dict[str, str | None] | None:
    """Return values of the columns that conditions are about, or None where none were found.

    Args:
        session: in a trial.
        table: name of the table as it stands in conditions, quoted.
        shape: of the table.
        conditions: to be fulfilled.
        known: values that are given.

    Raises:
        sqlalchemy.exc.DBAPIError: a condition could not be computed.
    """
    found: dict[str, str | None] = {}
    for columns, group in _groups(conditions):
        lists = {
            name: [known[name]] if name in known else _candidates(shape, name, group)
            for name in sorted(columns)
            if name in shape.slots
        }
        answer = _ask(session, table, shape, lists, group)
        if answer is None:
            return None
        found |= answer
    return found


def _groups(conditions: Iterable[Condition]) -> list[tuple[frozenset[str], list[Condition]]]:
    """Put conditions together that are about the same columns."""
    groups: list[tuple[frozenset[str], list[Condition]]] = []
    for one in conditions:
        joined = [group for group in groups if group[0] & one.columns]
        columns = one.columns.union(*(group[0] for group in joined))
        groups = [group for group in groups if group not in joined]
        groups.append((columns, [one, *(each for group in joined for each in group[1])]))
    return groups


def _candidates(shape: Shape, name: str, group: Sequence[Condition]) -> list[str | None]:
    slot = shape.slots[name]
    text = " ".join(one.sql for one in group)
    values = list(candidates(slot, text))
    if "satisfies_hash_partition" in text:
        more = (next(candidates(slot, "")) for _ in range(_MOST_CANDIDATES))
        values = (
            [*values, *more] if slot.base in ("uuid", "text") or slot.category == "N" else values
        )
    return values


def _ask(
    session: Session,
    table: str,
    shape: Shape,
    lists: Mapping[str, Sequence[str | None]],
    group: Sequence[Condition],
) -> dict[str, str | None] | None:
    combinations = 1
    for values in lists.values():
        combinations *= max(len(values), 1)
    if combinations > _MOST_COMBINATIONS or not lists:
        return None
    names = [shape.slots[name].sql for name in lists]
    sources = [
        f"(VALUES {', '.join(f'({cast(one, shape.slots[name].type)})' for one in values)}) "
        f"AS v{number} ({shape.slots[name].sql})"
        for number, (name, values) in enumerate(lists.items())
    ]
    where = " AND ".join(f"(({one.sql}) IS NOT FALSE)" for one in group)
    columns = ", ".join(f"CAST({name} AS text)" for name in names)
    sql = (
        f"SELECT {columns} FROM (SELECT * FROM {', '.join(sources)}) AS {table} "  # noqa: S608
        f"WHERE {where} LIMIT 1"
    )
    row = session.run(sql).first()
    return None if row is None else dict(zip(lists, row, strict=True))
