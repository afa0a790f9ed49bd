"""Of the seeded mistakes the probe finds those that leak, and names none that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from mgf_sqlalchemy.audit.test_mistakes import (
    CALLED,
    CANONICAL,
    DOORS,
    HIDDEN,
    ID,
    INSTEAD,
    KEYS,
    OTHER,
    PARENT,
    POLICIES,
    ROLES,
    TABLES,
    TENANT,
    TEXT,
    function,
    tenant_function,
    using,
)
from mgf_sqlalchemy.audit.test_probe_spills import filled
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy import create_engine
from mgf.sqlalchemy.audit import probe

if TYPE_CHECKING:
    from mgf_sqlalchemy.audit.correct import Correct

INVOICE, VIEW = "public.invoice", "public.numbers"
READING = ["read", "unscoped", "empty", "nonsense", "copy", "prepared", "reused"]
UNBOUND = ["unscoped", "empty", "reused"]
WRITING = ["insert", "insert-returning", "insert-unscoped", "upsert", "blind-update"]
EVERYTHING = [*READING, *WRITING, "blind-delete"]

REMOVING = next(one for one, _ in POLICIES if "FOR DELETE" in one)
TRUNCATABLE = next(one for one, _ in TABLES if "GRANT TRUNCATE ON line TO {role}_r" in one)
VIEWED = next(one for one, _ in DOORS if "GRANT SELECT ON v TO {role}_r" in one)

ALWAYS_SET = next(one for one, _ in ROLES if "'ALTER DATABASE %I SET app.current_tenant" in one)

LEAKS = [
    ("ALTER ROLE {role} SUPERUSER", INVOICE, [*EVERYTHING, "truncate"]),
    ("ALTER ROLE {role} BYPASSRLS", INVOICE, EVERYTHING),
    ("CREATE ROLE {role}_a SUPERUSER; GRANT {role}_a TO {role}", "role {role}_a", ["read"]),
    (f"ALTER ROLE {{role}} SET app.current_tenant = '{ID}'", "role {role}", ["unscoped"]),
    (ALWAYS_SET, "role {role}", ["unscoped"]),
    (TABLES[0][0], INVOICE, EVERYTHING),
    ("ALTER TABLE invoice DISABLE ROW LEVEL SECURITY", INVOICE, EVERYTHING),
    ("ALTER TABLE account DISABLE ROW LEVEL SECURITY", "public.account", [*EVERYTHING, "move"]),
    ("CREATE TABLE heir () INHERITS (invoice); GRANT SELECT ON heir TO {role}", "public.heir",
     READING),
    (using("true"), INVOICE, EVERYTHING),
    (using("tenant_id = tenant_id"), INVOICE, EVERYTHING),
    (using(f"{CANONICAL} OR true"), INVOICE, EVERYTHING),
    (using(f"{TENANT} IS NULL OR {CANONICAL}"), INVOICE, [*UNBOUND, "insert-unscoped"]),
    (using(f"tenant_id = COALESCE({TENANT}, tenant_id)"), INVOICE, UNBOUND),
    (using(f"{CANONICAL} OR number = 'public'"), INVOICE, ["read", "insert", "insert-unscoped"]),
    (using(CANONICAL.replace("app.current_tenant", "app.tenant")), INVOICE, ["other-settings"]),
    (using(f"{CANONICAL} OR current_setting('app.admin', true) = 'on'"), VIEW, ["other-settings"]),
    (using(f"tenant_id = '{ID}'"), INVOICE, ["read", "blind-update", "blind-delete"]),
    (using(f"tenant_id <> {TENANT}"), INVOICE, ["read", "insert", "copy", "blind-delete"]),
    (
        ("DROP POLICY tenant_floor ON invoice;"
        "CREATE POLICY more ON invoice FOR SELECT TO {role} USING (number = 'public')"),
        VIEW,
        ["read"],
    ),
    (tenant_function("IMMUTABLE"), INVOICE, ["prepared"]),
    ("ALTER TABLE remark DISABLE ROW LEVEL SECURITY", "public.remark", [*EVERYTHING, "move"]),
    ("ALTER VIEW numbers RESET (security_invoker)", VIEW, READING),
    ("ALTER VIEW numbers RESET (security_invoker)", "public.all_numbers", READING),
    (DOORS[2][0], "public.copy", ["read"]),
    (CALLED, "public.copy", ["read"]),
    (REMOVING, INVOICE, ["blind-delete"]),
    (PARENT, "public.parent", [*READING, "blind-delete"]),
    (HIDDEN, "public.v", READING),
    (TRUNCATABLE, "role {role}_r", ["truncate"]),
    (VIEWED, "role {role}_r", ["read", "unscoped"]),
    (INSTEAD, VIEW, ["blind-update"]),
]  # fmt: skip
OWN = "EXISTS (SELECT FROM invoice AS i WHERE i.id = invoice_id)"
ASKING = """
    CREATE FUNCTION f(i int) RETURNS bool LANGUAGE sql STABLE AS $$
        SELECT current_setting( 'app.admin', true) = 'yes'
            OR EXISTS (SELECT FROM public.invoice WHERE id = i) $$
"""


def on_remark(predicate: str) -> str:
    return (
        "DROP POLICY IF EXISTS tenant_floor ON remark; ALTER TABLE remark ADD note text;"
        f"ALTER POLICY tenant_isolation ON remark USING ({predicate}) WITH CHECK ({predicate})"
    )


def planned(body: str) -> str:
    """A policy that holds, but for what is computed once, when a statement is planned."""
    lying = f"""
        CREATE FUNCTION f() RETURNS bool LANGUAGE plpgsql IMMUTABLE SECURITY DEFINER AS
            $$ BEGIN RETURN {body}; END $$
    """
    return f"{lying}; {using(f'{CANONICAL} OR f()')}"


# The probe puts the second tenant's rows in after the first one's.
SECOND = f"{TENANT} = (SELECT tenant_id FROM public.invoice ORDER BY id DESC LIMIT 1)"

# No mistakes of that list, since the role is granted nothing there.
MORE = [
    (f"{OTHER}; GRANT SELECT, INSERT, DELETE ON other TO {{role}}", "public.other", READING),
    ("GRANT TRUNCATE ON line TO {role}", "public.line", ["truncate"]),
    (f"{ASKING}; {on_remark('f(invoice_id)')}", "public.remark", ["other-settings"]),
    (planned(SECOND), INVOICE, ["prepared"]),
    (planned(f"{TENANT} IS NOT NULL").replace("OR f()", f"OR {TENANT} IS NULL AND f()"), INVOICE,
     ["prepared"]),
    (
        "ALTER TABLE event_1 DISABLE ROW LEVEL SECURITY; GRANT SELECT, DELETE ON event_1 TO {role}",
        "public.event_1",
        [*READING, "blind-delete"],
    ),
    (
        f"{using(CANONICAL)}; ALTER POLICY tenant_isolation ON invoice WITH CHECK (true)",
        INVOICE,
        ["insert"],  # RETURNING shows the row, so the policies for SELECT have their say
    ),
    (
        (
            "ALTER TABLE line NO FORCE ROW LEVEL SECURITY; CREATE ROLE {role}_a;"
            "GRANT {role}_a TO {role}; ALTER TABLE line OWNER TO {role}_a"
        ),
        "role {role}_a",
        ["read", "unscoped", "blind-update", "blind-delete", "truncate"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("mistake", "where", "attacks"), [*LEAKS, *MORE])
def test_a_leak_is_found(correct: Correct, mistake: str, where: str, attacks: list[str]) -> None:
    correct.change(mistake)

    report = correct.probe()

    found = report.probed["relations"][where.replace("{role}", correct.role)]
    leaked = {name: found[name] for name in attacks}
    assert leaked == dict.fromkeys(attacks, "leaked"), report.not_proven
    ids = {one.id for one in report.findings}
    assert ids >= {f"probe-{name}" for name in attacks}
    assert {one.severity for one in report.findings} == {"critical"}


# One of each kind: tables, plans, views that are read and written, and logs.
CENTRAL = [
    ("ALTER TABLE invoice DISABLE ROW LEVEL SECURITY", INVOICE, EVERYTHING),
    ("GRANT TRUNCATE ON line TO {role}", "public.line", ["truncate"]),
    (planned(SECOND), INVOICE, ["prepared"]),
    ("ALTER VIEW numbers RESET (security_invoker); GRANT UPDATE, DELETE ON numbers TO {role}", VIEW,
     [*READING, "blind-update", "blind-delete"]),
    ("REVOKE INSERT ON invoice FROM {role}; GRANT INSERT ON numbers TO {role}", VIEW, []),
    (f"{filled()}; GRANT SELECT ON log TO {{role}}", "public.log", ["read"]),
]  # fmt: skip


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize(("mistake", "where", "attacks"), CENTRAL)
async def test_every_driver_finds_it(
    correct: Correct, mistake: str, where: str, attacks: list[str], driver: str
) -> None:
    """In the transaction that the mistake is made in; psycopg without async has all other tests."""
    engine = create_engine(correct.database.url.set(drivername=f"postgresql+{driver}"))
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            raw: Any = (await connection.get_raw_connection()).driver_connection
            await raw.execute(mistake.replace("{role}", correct.role))
            report = await probe(connection, role=correct.role)
            await connection.rollback()
    finally:
        await engine.dispose()

    found = report.probed["relations"][where]
    leaked = {name: found[name] for name in attacks}
    assert leaked == dict.fromkeys(attacks, "leaked"), report.not_proven
    assert {one.object for one in report.findings} >= ({where} if attacks else set())
    assert report.probed["control"] == "caught"
    assert [one for one in report.not_proven if "COPY" in one.reason] == []
    if not attacks:
        assert report.ok


LEAKING = {mistake for mistake, _, _ in LEAKS}


@pytest.mark.parametrize("mistake", [one for one, _ in POLICIES if one not in LEAKING])
def test_a_policy_that_holds_is_not_named(correct: Correct, mistake: str) -> None:
    correct.change(mistake)

    assert correct.probe().findings == ()


SHARE = "CREATE TABLE share (invoice_id int); GRANT INSERT, SELECT ON share TO {role}"


@pytest.mark.parametrize(
    "mistake",
    [
        on_remark(f"CASE WHEN length(note) > 50 THEN true ELSE {OWN} END"),
        on_remark(f"CASE WHEN now() > '2101-01-01' THEN true ELSE {OWN} END"),
        f"{SHARE}; {on_remark(f'invoice_id IN (SELECT i.invoice_id FROM share AS i) AND {OWN}')}",
        f"{function('', 'SELECT true', 'bool').replace('f()', 'f(int)')}; "
        + on_remark(f"f(id) AND {OWN}"),
        using(f"CASE WHEN length(number) > 50 THEN true ELSE {CANONICAL} END"),
        using(f"left(tenant_id::text, 8) = left({TEXT}, 8)"),
        using(f"tenant_id::varchar(8) = {TEXT}::varchar(8)"),
        using(f'tenant_id::text::"char" = {TEXT}::"char"'),
    ],
)
def test_what_made_up_rows_cannot_show_is_not_proven(correct: Correct, mistake: str) -> None:
    correct.change(mistake)

    report = correct.probe()

    assert not report.ok
    # Two tenants that are made up may begin alike, and then show what a part of them lets pass.
    relations = report.probed["relations"].values()
    for attack in ("read", "insert", "blind-update"):
        assert {one[attack] for one in relations} & {"not_proven", "leaked"}


@pytest.mark.parametrize(
    "predicate",
    [
        OWN,
        f"{OWN} AND {OWN}",
        "invoice_id IN (SELECT i.id FROM invoice AS i)",
        "EXISTS (SELECT FROM line AS n JOIN invoice AS i ON i.id = n.invoice_id"
        " WHERE i.id = remark.invoice_id) AND " + OWN,
    ],
)
def test_equality_of_keys_is_shown_by_made_up_rows(correct: Correct, predicate: str) -> None:
    correct.change(on_remark(predicate))

    assert [one for one in correct.probe().not_proven if "made-up" in one.reason] == []


@pytest.mark.parametrize("type_", ["text", "varchar", "varchar(36)"])
def test_a_cast_that_cuts_nothing_off_is_proven(correct: Correct, type_: str) -> None:
    correct.change(using(f"tenant_id::{type_} = {TEXT}::{type_}"))

    assert correct.probe().ok


def test_a_comparison_beside_a_floor_is_proven(correct: Correct) -> None:
    correct.change("CREATE POLICY more ON invoice TO {role} USING (length(number) > 50)")

    assert correct.probe().ok


def test_a_trigger_that_divides_by_zero_is_no_leak(correct: Correct) -> None:
    """That error is what the trap gives, too."""
    correct.change(
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.number := 1 / (NEW.id - NEW.id); RETURN NEW; END'",
        "CREATE TRIGGER t BEFORE UPDATE ON invoice FOR EACH ROW EXECUTE FUNCTION f()",
    )

    report = correct.probe()

    assert report.findings == ()
    assert ("public.invoice", "move") in {(one.object, one.attack) for one in report.not_proven}


# What default privileges give on the tables that other mistakes make is a leak.
DEFAULTS = [one for one in TABLES if one[1] == "default-privileges"]
OTHERS = [one for one in TABLES if one not in DEFAULTS]


@pytest.mark.parametrize("mistakes", [ROLES, OTHERS, DEFAULTS, [*KEYS, *DOORS]])
def test_what_does_not_leak_is_not_named(correct: Correct, mistakes: list[tuple[str, str]]) -> None:
    """As many mistakes at once as go together, and the others after them."""
    todo = [one for one, _ in mistakes if one not in LEAKING]
    while todo:
        left = list[str]()
        for mistake in todo:
            savepoint = correct.database.owner.begin_nested()
            try:
                correct.change(mistake)
            except DBAPIError:
                savepoint.rollback()
                left.append(mistake)
        assert len(left) < len(todo)
        todo = left

        assert correct.probe().findings == ()
        correct.database.owner.rollback()
