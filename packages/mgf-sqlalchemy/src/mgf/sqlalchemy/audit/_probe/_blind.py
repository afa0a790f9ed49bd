"""UPDATE and DELETE without WHERE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgf.sqlalchemy.audit._probe._field import DIVISION_BY_ZERO, is_closed, is_impossible
from mgf.sqlalchemy.audit._probe._outcome import (
    NOT_APPLICABLE,
    NOT_REACHED,
    Outcome,
    leaked,
    not_proven,
)
from mgf.sqlalchemy.audit._probe._session import explain, failure
from mgf.sqlalchemy.audit._probe._views import does_more, effect_of, update_itself

if TYPE_CHECKING:
    from mgf.sqlalchemy.audit._probe._field import Field
    from mgf.sqlalchemy.audit._probe._target import Target

# Reads no column, so no policy for SELECT is added to a command, and takes more than ten operator
# calls: PostgreSQL asks a condition without columns that is cheaper before the policies.
COSTLY = " + ".join(["random()"] * 12)
# Is asked for every row that is within reach of a command, and fails at the first: so a command
# without WHERE is tried on a table of any size, and no row is touched.
TRAP = f"1 / CAST(floor(({COSTLY}) * 0.01) AS int) > 0"


def blind_update(field: Field, target: Target) -> Outcome:
    """An UPDATE without WHERE reaches rows that are not the tenant's."""
    slot = next((one for one in target.shape.slots.values() if one.updatable), None)
    if slot is None or not target.may("UPDATE"):
        return NOT_APPLICABLE
    plain = f"UPDATE {target.sql} SET {slot.sql} = DEFAULT"  # noqa: S608
    return _blind(field, target, (target.is_view and update_itself(field, target)) or plain)


def blind_delete(field: Field, target: Target) -> Outcome:
    """A DELETE without WHERE reaches rows that are not the tenant's."""
    if not target.may("DELETE"):
        return NOT_APPLICABLE
    return _blind(field, target, f"DELETE FROM {target.sql}")  # noqa: S608


def _blind(field: Field, target: Target, statement: str) -> Outcome:
    """Run a command with the trap in it, as one that has no rows, and as nobody."""
    command, trapped = statement.partition(" ")[0], f"{statement} WHERE {TRAP}"
    for tenant in (field.stranger, ""):
        error = field.refusal(tenant, trapped)
        code = None if error is None else failure(error)
        if code == DIVISION_BY_ZERO:
            if target.is_view and not _reaches(field, target, tenant, statement):
                return not_proven("a condition of the view may be asked after the probe's own")
            return leaked(f"{command} without WHERE reaches rows of other tenants")
        if error is not None and target.is_view and is_impossible(error):
            return NOT_APPLICABLE
        if code is not None and not (tenant == "" and is_closed(code)):
            return not_proven(code if error is None else explain(error))
    for tenant in field.tenants if field.has_own else ():
        error = field.refusal(tenant, trapped)
        if error is None or failure(error) != DIVISION_BY_ZERO:
            return not_proven(f"{command} {NOT_REACHED} either")
    return does_more(field, target, statement)


def _reaches(field: Field, target: Target, tenant: str, statement: str) -> bool:
    """Say whether a command changes rows that were put in, whichever condition is asked first."""
    where = target.rows_of(*field.tenants) if target.may("SELECT") else ""
    effects = (
        effect_of(field, target, tenant, whose, f"{statement} WHERE {where}")
        for whose in field.tenants
        if where
    )
    # Keys are looked at when a row was reached.
    return any(
        one.is_change or (one.error is not None and failure(one.error).startswith("23"))
        for one in effects
    )
