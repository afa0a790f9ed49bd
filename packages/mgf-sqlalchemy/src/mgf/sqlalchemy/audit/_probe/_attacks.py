"""The attacks, each on one relation, and the two controls that show they could succeed.

A transaction of the role is bound to one tenant or to none, and asks for rows of the other one.
Nothing is taken for held that was not shown to work for the tenant's own rows.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.audit._probe import _views as views
from mgf.sqlalchemy.audit._probe._blind import COSTLY, blind_delete, blind_update
from mgf.sqlalchemy.audit._probe._copy import CopyUnsupportedError, copy_out
from mgf.sqlalchemy.audit._probe._field import (
    DIVISION_BY_ZERO,
    KEY_TAKEN,
    NOT_SUPPORTED,
    REFUSED,
    is_closed,
    verdict,
)
from mgf.sqlalchemy.audit._probe._outcome import (
    HELD,
    NOT_APPLICABLE,
    NOT_REACHED,
    Outcome,
    leaked,
    not_proven,
)
from mgf.sqlalchemy.audit._probe._refused import judge
from mgf.sqlalchemy.audit._probe._seeding import CannotSeedError, insert, place
from mgf.sqlalchemy.audit._probe._session import UNTOUCHED, explain, failure
from mgf.sqlalchemy.audit._probe._values import cast
from mgf.sqlalchemy.audit._sql import identifier, literal
from mgf.sqlalchemy.errors import sqlstate

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgf.sqlalchemy.audit._probe._field import Field
    from mgf.sqlalchemy.audit._probe._seeding import Values
    from mgf.sqlalchemy.audit._probe._shapes import Slot
    from mgf.sqlalchemy.audit._probe._target import Target

# lock_not_available, query_canceled: what comes after would wait as long.
_HOPELESS = ("55P03", "57014")

# No UUID, nor anything else that a setting is cast to.
_NONSENSE = "no tenant; 100 %"
_STATEMENT = "mgf_probe"
_IS_PREPARED = f"SELECT EXISTS (SELECT FROM pg_prepared_statements WHERE name = '{_STATEMENT}')"  # noqa: S608


def own_read(field: Field, target: Target) -> Outcome:
    """A tenant reads its own rows."""
    if not target.may("SELECT"):
        return NOT_APPLICABLE
    for tenant in field.tenants:
        try:
            with field.session.trial(tenant):
                if not field.sees(target, tenant):
                    reason = target.reasons.get(tenant)
                    return not_proven(reason or "a tenant does not see its own rows")
        except DBAPIError as error:
            # A view reads what its reader, or its owner, may not.
            if target.is_view and failure(error) == REFUSED:
                return NOT_APPLICABLE
            raise
    return HELD


def own_write(field: Field, target: Target) -> Outcome:
    """A tenant writes a row of its own."""
    if not target.may("INSERT"):
        return NOT_APPLICABLE
    for tenant in field.tenants:
        error = field.refusal(tenant, _insert(field, target, tenant))
        if error is not None and sqlstate(error) not in KEY_TAKEN:
            return not_proven(f"a tenant cannot write a row of its own ({explain(error)})")
    return HELD


def read(field: Field, target: Target) -> Outcome:
    """A tenant reads the other's rows."""
    for tenant, other in field.pairs:
        with field.session.trial(tenant):
            if field.sees(target, other):
                return leaked("a tenant reads another one's rows")
    with field.session.trial(field.stranger):
        if target.named and field.sees(target, *target.named):
            return leaked("any tenant reads the rows of one that a policy names")
    return HELD


def unscoped(field: Field, target: Target) -> Outcome:
    """Rows are read after RESET of the setting, and where it can be, before it was ever set."""
    before = field.never_set.get(target.relation.oid, HELD)
    if before != HELD:
        return before
    setting = ".".join(identifier(part) for part in field.session.setting.split("."))
    return _unbound(field, target, UNTOUCHED, f"RESET {setting}", "no tenant is set")


def empty(field: Field, target: Target) -> Outcome:
    """Rows are read while the setting is empty, as it is after its first use."""
    return _unbound(field, target, "", "", "the setting is empty")


def nonsense(field: Field, target: Target) -> Outcome:
    """Rows are read while the setting is no tenant."""
    return _unbound(field, target, _NONSENSE, "", "the setting is no tenant at all")


def _unbound(field: Field, target: Target, tenant: str | None, first: str, when: str) -> Outcome:
    try:
        with field.session.trial(tenant):
            if first:
                field.session.run(first)
            if field.sees(target, *field.tenants):
                return leaked(f"rows of tenants are read while {when}")
    except DBAPIError as error:
        if not is_closed(failure(error)):
            raise
    return HELD


def insert_other(field: Field, target: Target) -> Outcome:
    """A tenant writes a row for the other."""
    return _inserts(field, target, "")


def insert_returning(field: Field, target: Target) -> Outcome:
    """A tenant writes a row for the other, and has it returned."""
    shown = [slot.sql for slot in target.shape.slots.values() if slot.readable]
    return _inserts(field, target, shown[0]) if shown else NOT_APPLICABLE


def insert_unscoped(field: Field, target: Target) -> Outcome:
    """A row is written for a tenant while none is set."""
    if not target.may("INSERT"):
        return NOT_APPLICABLE
    for given in _variants(field, target):
        error = field.refusal("", _insert(field, target, field.tenants[0], given=given))
        if error is None or not is_closed(failure(error)):
            return verdict(error, "a row is written for a tenant while none is set")
    return HELD


def _inserts(field: Field, target: Target, returning: str) -> Outcome:
    if not target.may("INSERT"):
        return NOT_APPLICABLE
    if not field.seeder.owners(target.relation.oid, field.tenants[0]):
        return not_proven("no column of it says whose row it is")
    for (tenant, other), given in product(field.pairs, _variants(field, target)):
        statement = _insert(field, target, other, returning, given)
        error = field.refusal(tenant, statement)
        outcome = verdict(error, "a tenant writes a row for another one")
        if error is None and target.column is not None:
            outcome = _landed(field, target, (tenant, other), statement) or outcome
        if outcome != HELD:
            return outcome
    return HELD


def _variants(field: Field, target: Target) -> list[Values | None]:
    """Return the values that rows are tried with: any, and those that a policy lets through."""
    return [None, *field.seeder.variants[target.relation.oid]]


def _landed(field: Field, target: Target, pair: tuple[str, str], statement: str) -> Outcome | None:
    """Return that an INSERT made no row for the other: a trigger or rule saw to it."""
    ground, oid = field.seeder.ground, target.relation.oid
    snapshot = ground.subject.snapshot
    ways = {one.tgrelid for one in snapshot.triggers} | {one.ev_class for one in snapshot.rules}
    if ways.isdisjoint((oid, *ground.routed_by(oid))):
        return None
    tenant, other = pair
    count = f"SELECT count(*) FROM {target.sql} WHERE {target.rows_of(other)}"  # noqa: S608
    counts = list[int]()
    for one in ("SELECT", statement):
        with field.session.trial(tenant):
            field.session.run(one)
            field.session.become(other, role=field.session.login)
            counts.append(field.session.scalar(count))
    return HELD if counts[0] == counts[1] else None


def _insert(
    field: Field, target: Target, tenant: str, returning: str = "", given: Values | None = None
) -> str:
    values = field.seeder.values_like(target.relation.oid, tenant, given=given)
    return insert(target.sql, target.shape, values, returning)


def upsert(field: Field, target: Target) -> Outcome:
    """A tenant writes over the other's row that has the same key."""
    if not target.may("INSERT", "UPDATE", "SELECT") or not target.shape.keys:
        return NOT_APPLICABLE
    # A key without the tenant is the way in, where there is one.
    key = min(target.shape.keys, key=lambda one: target.column in one)
    for tenant, other in field.pairs:
        row = next(iter(target.rows[other]), None)
        if row is None or any(row.values.get(name) is None for name in key):
            return not_proven("the keys of the other's row are not known")
        values: Values = {
            name: value for name, value in row.values.items() if _is_written(target, name, key)
        }
        if target.column is not None and target.column not in key:
            values |= {
                name: value
                for name, value in field.seeder.tenant_values(target.relation.oid, tenant).items()
                if name not in key and _is_written(target, name, key)
            }
        # A column that is in no key, as far as there is one: the others' keys say nothing here.
        names = sorted(values, key=lambda one: one in key or one == target.column)
        updated = next((one for one in names if _is_updated(target.shape.slots[one])), None)
        if updated is None:
            return NOT_APPLICABLE
        columns = ", ".join(target.shape.slots[name].sql for name in key)
        name = target.shape.slots[updated].sql
        statement = (
            f"{insert(target.sql, target.shape, values)} ON CONFLICT ({columns}) "
            f"DO UPDATE SET {name} = EXCLUDED.{name}"
        )
        outcome = _touches(field, target, (tenant, other), statement)
        if outcome != HELD:
            return outcome
    return HELD


def _is_written(target: Target, name: str, key: tuple[str, ...]) -> bool:
    slot = target.shape.slots.get(name)
    return slot is not None and not slot.generated and (slot.insertable or name in key)


def _is_updated(slot: Slot) -> bool:
    return slot.updatable and not slot.generated and slot.identity != "a"


def _touches(field: Field, target: Target, pair: tuple[str, str], statement: str) -> Outcome:
    """Run a statement of a tenant, and see whether the other's rows are where they were."""
    tenant, other = pair
    where = place(target.rows[other])
    try:
        with field.session.trial(tenant):
            field.session.run(statement)
            field.session.become(other, role=field.session.login)
            left = field.session.scalar(f"SELECT count(*) FROM {target.sql} WHERE {where}")  # noqa: S608
    except DBAPIError as error:
        if failure(error) == NOT_SUPPORTED:
            return NOT_APPLICABLE  # a table with rules takes no ON CONFLICT
        return HELD if failure(error) == REFUSED else not_proven(explain(error))
    if left == len(target.rows[other]):
        return HELD
    return leaked("a tenant writes over another one's row")


def move(field: Field, target: Target) -> Outcome:
    """A tenant gives a row of its own to the other."""
    if not target.may("UPDATE"):
        return NOT_APPLICABLE
    for tenant, other in field.pairs:
        given = _given(field, target, other)
        if not given:
            return NOT_APPLICABLE
        own = target.rows_of(tenant) if target.may("SELECT") else ""
        # Rules repeat the conditions of a statement.
        most = len(target.rows[tenant]) * (1 + _rules(field, target))
        # Without WHERE no policy for SELECT has a say.
        for where in dict.fromkeys([own, _counted(most)]):
            statement = f"UPDATE {target.sql} SET {given} WHERE {where}"  # noqa: S608
            outcome = _moves(field, target, (tenant, other), statement) if where else HELD
            if outcome != HELD:
                return outcome
    return HELD


def _moves(field: Field, target: Target, pair: tuple[str, str], statement: str) -> Outcome:
    tenant, other = pair
    count = f"SELECT count(*) FROM {target.sql} WHERE {target.rows_of(other)}"  # noqa: S608
    session = field.session
    try:
        with session.trial(tenant):
            session.run(f"SELECT set_config({literal(_COUNTER)}, '0', true)")
            if session.run(statement).rowcount == 0:
                return not_proven(f"UPDATE {NOT_REACHED}")
            session.become(other, role=session.login)
            # What a trigger put back is where it was.
            if target.column is not None and session.scalar(count) == len(target.rows[other]):
                return HELD
    except DBAPIError as error:
        # A trigger that divides by zero would have done so on an own row before.
        if failure(error) == DIVISION_BY_ZERO and _COUNTER in statement:
            if _rules(field, target):
                return not_proven("rules of the table ask the probe's own condition, too")
            return leaked("an UPDATE without WHERE reaches other tenants' rows")
        return verdict(error, "a tenant gives its row to another one")
    return leaked("a tenant gives its row to another one")


_COUNTER = "mgf_probe.counted"


def _counted(most: int) -> str:
    """Return the SQL that fails when more rows than these are within reach."""
    name = literal(_COUNTER)
    count = f"set_config({name}, CAST(CAST(current_setting({name}) AS int) + 1 AS text), true)"
    return f"1 / greatest({most + 1} - CAST({count} AS int), 0) + {COSTLY} >= 0"


def _rules(field: Field, target: Target) -> int:
    rules = field.seeder.ground.subject.snapshot.rules
    return sum(one.ev_class == target.relation.oid for one in rules)


def _given(field: Field, target: Target, other: str) -> str:
    """Return the assignments that make a row another tenant's."""
    owners = field.seeder.owners(target.relation.oid, other)
    return ", ".join(
        f"{slot.sql} = {cast(value, slot.type)}"
        for name, value in owners.items()
        if (slot := target.shape.slots[name]).updatable
    )


def truncate(field: Field, target: Target) -> Outcome:
    """All rows are removed at once."""
    if not target.may("TRUNCATE"):
        return NOT_APPLICABLE
    for cascade in ("", " CASCADE"):
        error = field.refusal(field.stranger, f"TRUNCATE {target.sql}{cascade}")
        # Refused because of the tables that refer to it; with them, it takes privileges on all.
        if error is None or failure(error) != NOT_SUPPORTED:
            break
    return verdict(error, "TRUNCATE removes the rows of all tenants: no policy applies to it")


def copy(field: Field, target: Target) -> Outcome:
    """COPY TO gives the other's rows."""
    columns = target.copied
    for tenant, other in field.pairs:
        own, others = target.copies(tenant), target.copies(other)
        with field.session.trial(tenant):
            try:
                output = copy_out(field.session.connection, target.relation, columns)
            except CopyUnsupportedError as error:
                return not_proven(str(error))
            except Exception as error:
                # The driver's own, which SQLAlchemy knows nothing of.
                if (code := sqlstate(error)) is None:
                    raise
                return not_proven(code)
        if others & _lines(output) or any(one in output for one in target.tokens(other)):
            return leaked("COPY TO gives another tenant's rows")
        if not (own & _lines(output) or any(one in output for one in target.tokens(tenant))):
            return not_proven("a tenant's own rows could not be told in what COPY TO gave")
    return HELD


def _lines(output: str) -> set[str]:
    return set(output.split("\n"))


def other_settings(field: Field, target: Target) -> Outcome:
    """Rows are read after other settings were set that policies ask for."""
    if not target.settings:
        return NOT_APPLICABLE
    for (tenant, other), name in product(field.pairs, target.settings):
        for value in (*target.settings[name], other):
            try:
                with field.session.trial(tenant):
                    field.session.run(f"SELECT set_config({literal(name)}, {literal(value)}, true)")
                    if field.sees(target, other):
                        return leaked(f"{name} = {value!r}, which anyone may set, opens it")
            except DBAPIError as error:
                if not is_closed(failure(error)):
                    raise
    return HELD


def prepared(field: Field, target: Target) -> Outcome:
    """A statement that was planned for one tenant gives its rows to the other, or to nobody.

    It has no parameters and is planned once; that plan is what a driver's cache keeps, too.
    """
    session = field.session
    for tenant, other in field.pairs:
        try:
            outcome = _planned(field, target, tenant, other)
        finally:
            # It outlives the rollback, unless a driver forgot all of them at it, as psycopg does.
            if not session.connection.invalidated and session.scalar(_IS_PREPARED):
                session.run(f"DEALLOCATE {_STATEMENT}")
        if outcome != HELD:
            return outcome
    return HELD


def _planned(field: Field, target: Target, tenant: str, other: str) -> Outcome:
    session, later = field.session, tenant
    query = f"SELECT EXISTS (SELECT FROM {target.sql} WHERE {target.rows_of(tenant)})"  # noqa: S608
    try:
        with session.trial(tenant):
            session.run("SELECT set_config('plan_cache_mode', 'force_generic_plan', true)")
            session.run(f"PREPARE {_STATEMENT} AS {query}")
            if not session.scalar(f"EXECUTE {_STATEMENT}"):
                return not_proven("the statement shows a tenant nothing")
            for later, whom in ((other, "another one"), ("", "who has none")):
                session.become(later)
                if session.scalar(f"EXECUTE {_STATEMENT}"):
                    return leaked(f"a prepared statement gives one tenant's rows to {whom}")
    except DBAPIError as error:
        if later or not is_closed(failure(error)):
            raise
    return HELD


def reused(field: Field, target: Target) -> Outcome:
    """Rows are read on a connection after a tenant's work on it has ended.

    Its end is a rollback to a savepoint, which gives settings back as the end of a transaction
    does: another transaction would not see the rows.
    """
    tenant = field.tenants[0]
    with field.session.trial(tenant):
        field.sees(target, tenant)
    try:
        with field.session.trial(UNTOUCHED):
            if field.sees(target, *field.tenants):
                return leaked("rows of tenants are read on a connection that was given back")
    except DBAPIError as error:
        if not is_closed(failure(error)):
            raise
    return HELD


_READING: Final[dict[str, Callable[[Field, Target], Outcome]]] = {
    "read": read,
    "unscoped": unscoped,
    "empty": empty,
    "nonsense": nonsense,
    "copy": copy,
    "other-settings": other_settings,
    "prepared": prepared,
    "reused": reused,
}
_CONTROLS: Final = {
    **dict.fromkeys(_READING, "own-read"),
    **dict.fromkeys(("insert", "insert-returning", "insert-unscoped", "upsert"), "own-write"),
}
_ATTACKS: Final[dict[str, Callable[[Field, Target], Outcome]]] = {
    "own-read": own_read,
    "own-write": own_write,
    "read": read,
    "unscoped": unscoped,
    "empty": empty,
    "nonsense": nonsense,
    "insert": insert_other,
    "insert-returning": insert_returning,
    "insert-unscoped": insert_unscoped,
    "upsert": upsert,
    "move": move,
    "blind-update": blind_update,
    "blind-delete": blind_delete,
    "truncate": truncate,
    "copy": copy,
    "other-settings": other_settings,
    "prepared": prepared,
    "reused": reused,
}
# Those that are made on views.
_ON_VIEWS: Final[dict[str, Callable[[Field, Target], Outcome]]] = {
    **_READING,
    "own-read": own_read,
    "own-write": views.own_write,
    "insert": views.insert_other,
    "insert-unscoped": views.insert_unscoped,
    "upsert": views.upsert,
    "move": views.move,
    "blind-update": blind_update,
    "blind-delete": blind_delete,
}

# Those that need no rows of a role's own.
BY_ROLE: Final[dict[str, Callable[[Field, Target], Outcome]]] = {
    "read": read,
    "unscoped": unscoped,
    "blind-update": blind_update,
    "blind-delete": blind_delete,
    "truncate": truncate,
}
# In the order in which they are made.
ATTACKS: Final = tuple(_ATTACKS)


def attack(field: Field, target: Target) -> dict[str, Outcome]:
    """Make all attacks on a relation, and return how each went."""
    found: dict[str, Outcome] = {}
    for name, usual in _ATTACKS.items():
        one = _ON_VIEWS.get(name, _not_on_views) if target.is_view else usual
        if any(each.reason.startswith(_HOPELESS) for each in found.values()):
            found[name] = next(each for each in found.values() if each.result == "not_proven")
            continue
        control = found.get(_CONTROLS.get(name, ""), HELD)
        if control == NOT_APPLICABLE:
            found[name] = NOT_APPLICABLE
            continue
        found[name] = attempt(field, target, one)
        if not target.is_view:
            again = partial(attempt, field, target, one)
            found[name] = judge(field, target, name, found[name], again)
        if found[name].result != "leaked" and control.result == "not_proven":
            found[name] = control
    return found


def _not_on_views(_field: Field, _target: Target) -> Outcome:
    return NOT_APPLICABLE


def attempt(field: Field, target: Target, one: Callable[[Field, Target], Outcome]) -> Outcome:
    """Make an attack on a relation; an error that it does not expect proves nothing."""
    if one is own_read or one in _READING.values():
        if not target.may("SELECT"):
            return NOT_APPLICABLE
        if not all(target.rows_of(tenant) for tenant in field.tenants):
            return not_proven(target.reason or "no tenant's row could be told from others here")
    try:
        outcome = one(field, target)
        # Own rows are no control there.
        is_shown = field.has_own and not target.is_view
        if outcome == HELD and not is_shown and not all(map(target.rows.get, field.tenants)):
            return not_proven(target.reason or "no tenant has a row here")
    except DBAPIError as error:
        reason = explain(error)
        return not_proven(target.reason or reason)
    except CannotSeedError as error:
        return not_proven(str(error))
    return outcome


def look_unset(field: Field, target: Target, where: str) -> Outcome:
    """Read rows while the setting was never set."""
    try:
        with field.session.trial(UNTOUCHED):
            if field.session.scalar(f"SELECT EXISTS (SELECT FROM {target.sql} WHERE {where})"):  # noqa: S608
                return leaked("rows of tenants are read in a session that never set a tenant")
    except DBAPIError as error:
        if not is_closed(failure(error)):
            return not_proven(explain(error))
    return HELD
