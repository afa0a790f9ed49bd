"""What no policy can reach: copies in materialized views, and tables of other servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.audit._probe._attacks import ATTACKS
from mgf.sqlalchemy.audit._probe._outcome import NOT_APPLICABLE, Outcome, leaked, not_proven
from mgf.sqlalchemy.audit._probe._session import explain

if TYPE_CHECKING:
    from mgf.sqlalchemy.audit._probe._field import Field
    from mgf.sqlalchemy.audit._probe._target import Target

_HOW = "a tenant that has no rows reads those of others, which no policy keeps from it"


def attack_unprotected(field: Field, target: Target) -> dict[str, Outcome]:
    """Read what no policy can protect.

    A materialized view is read as it is and after a REFRESH. A foreign table is only read: what
    is written elsewhere may not be undone.
    """
    found = dict.fromkeys(ATTACKS, NOT_APPLICABLE)
    if target.may("SELECT"):
        try:
            found["read"] = _read(field, target)
        except DBAPIError as error:
            found["read"] = not_proven(explain(error))
    if target.relation.kind == "f":
        for name, privilege in _WRITING.items():
            if target.may(privilege):
                found[name] = not_proven("what is written elsewhere may not be undone")
    return found


_WRITING = {"insert": "INSERT", "blind-update": "UPDATE", "blind-delete": "DELETE"}


def _read(field: Field, target: Target) -> Outcome:
    column = None if target.column is None else target.shape.slots[target.column]
    if column is not None and column.readable:
        with field.session.trial(field.stranger):
            anyone = f"SELECT EXISTS (SELECT FROM {target.sql} WHERE {column.sql} IS NOT NULL)"  # noqa: S608
            if field.session.scalar(anyone):
                return leaked(_HOW)
    if target.relation.kind == "f":
        return not_proven(
            "no row of a tenant was read in this foreign table, which no policy holds"
        )
    if not target.rows_of(*field.tenants):
        return not_proven(target.reason or "no tenant's row could be told from others here")
    with field.session.trial("", role=field.session.login):
        field.session.run(f"REFRESH MATERIALIZED VIEW {target.sql}")
        field.session.become(field.stranger)
        if field.sees(target, *field.tenants):
            return leaked(_HOW)
    return not_proven("the rows that were put in did not come into this copy")
