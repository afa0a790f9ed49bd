"""Room for tenants that are made up, in tables whose partitions are for those that are there."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.audit._probe._ground import Room
from mgf.sqlalchemy.audit._probe._session import UNTOUCHED, explain
from mgf.sqlalchemy.audit._probe._values import cast
from mgf.sqlalchemy.audit._sql import identifier, literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mgf.sqlalchemy.audit._probe._ground import Ground
    from mgf.sqlalchemy.audit._probe._session import Session

_LISTED = text(
    """
    SELECT p.partrelid AS oid, a.attname, CAST(p.partdefid AS bigint) AS default_oid
    FROM pg_partitioned_table AS p
    JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
    WHERE p.partstrat = 'l' AND p.partnatts = 1 AND p.partrelid = ANY(CAST(:oids AS oid[]))
    """
)
_CLOSED = (
    "it takes the rows of tenants that are there, and those of the probe are made up; by the table "
    "that it is a partition of no privilege on it is needed: REVOKE the role's"
)


def make_room(session: Session, ground: Ground, tenants: Sequence[str]) -> Room:
    """Attach, as the login, a partition for tenants to each table that has none for them.

    Who reads or writes there goes on meanwhile, as with CREATE TABLE ... PARTITION OF nobody would;
    who writes to tables that foreign keys tie it to waits. Where the table is the one that is
    named, its policies hold rows of that partition as those of all others.
    """
    attached: dict[int, int] = {}
    reasons: dict[int, str] = {}
    for row in session.connection.execute(_LISTED, {"oids": sorted(ground.owned)}).all():
        if row.attname != ground.owned[row.oid]:
            continue
        reasons.update((one, _CLOSED) for one in _below(ground, row.oid) if one != row.default_oid)
        if not row.default_oid:
            try:
                attached[_attach(session, ground, row.oid, tenants)] = row.oid
            except DBAPIError as error:
                reasons[row.oid] = (
                    f"no partition of it takes a tenant that is made up, and {session.login!r} may "
                    f"not attach one ({explain(error)}): connect as the table's owner and name the "
                    "role, or give the table a DEFAULT partition where it is probed"
                )
    return Room(attached, reasons, tenants)


def _below(ground: Ground, oid: int) -> Iterator[int]:
    for one in ground.children.get(oid, ()):
        yield one
        yield from _below(ground, one)


def _attach(session: Session, ground: Ground, oid: int, tenants: Sequence[str]) -> int:
    """Return the oid of a new partition; identities and indexes come with its attachment."""
    relation, column = ground.relations[oid], ground.owned[oid] or ""
    name = f"{identifier(relation.schema)}.{identifier(f'mgf_probe_{uuid4().hex}')}"
    values = ", ".join(cast(one, ground.shapes[oid].slots[column].type) for one in tenants)
    with session.trial(UNTOUCHED, role=session.login, keep=True):
        session.run(
            f"CREATE TABLE {name} (LIKE {relation.sql} "
            "INCLUDING CONSTRAINTS INCLUDING DEFAULTS INCLUDING GENERATED)"
        )
        session.run(f"ALTER TABLE {relation.sql} ATTACH PARTITION {name} FOR VALUES IN ({values})")
        found: int = session.scalar(f"SELECT CAST({literal(name)}::regclass AS oid)")
    return found
