"""Materialized views: copies, in which rows that were just put in are only after a REFRESH."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.audit._probe._attacks import ATTACKS
from mgf.sqlalchemy.audit._probe._outcome import NOT_APPLICABLE, Outcome, leaked, not_proven
from mgf.sqlalchemy.audit._probe._session import explain

if TYPE_CHECKING:
    from mgf.sqlalchemy.audit._probe._attacks import Field
    from mgf.sqlalchemy.audit._probe._target import Target


def attack_copy(field: Field, target: Target) -> dict[str, Outcome]:
    """Read a copy, as it is and after a REFRESH; nothing else can be done to it."""
    found = dict.fromkeys(ATTACKS, NOT_APPLICABLE)
    if target.may("SELECT"):
        try:
            found["read"] = _read(field, target)
        except DBAPIError as error:
            found["read"] = not_proven(explain(error))
    return found


def _read(field: Field, target: Target) -> Outcome:
    column = None if target.column is None else target.shape.slots[target.column]
    if column is not None and column.readable:
        with field.session.trial(field.stranger):
            anyone = f"SELECT EXISTS (SELECT FROM {target.sql} WHERE {column.sql} IS NOT NULL)"  # noqa: S608
            if field.session.scalar(anyone):
                return leaked("a tenant that has no rows reads others' in this copy")
    where = target.rows_of(*field.tenants)
    if not where:
        return not_proven(target.reason or "no tenant's row could be told from others here")
    with field.session.trial("", role=field.session.login):
        field.session.run(f"REFRESH MATERIALIZED VIEW {target.sql}")
        field.session.become(field.stranger)
        if field.sees(target, *field.tenants):
            return leaked("a tenant that has no rows reads others' in this copy")
    return not_proven("the rows that were put in did not come into this copy")
