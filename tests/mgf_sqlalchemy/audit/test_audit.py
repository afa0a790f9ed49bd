"""The audit changes nothing, runs as any role, and says what it could not tell."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from mgf_sqlalchemy.audit.correct import Correct

from harness.schemas import Database
from harness.servers import new_database
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import create_engine
from mgf.sqlalchemy.audit import Finding, NotProven, Report, audit, audit_connection
from mgf.sqlalchemy.rls import Policy, protect_metadata, tenant_table

if TYPE_CHECKING:
    from sqlalchemy import URL

OBJECTS = "SELECT count(*) FROM pg_class"


async def test_an_engine_is_audited_and_nothing_is_left_behind(correct: Correct) -> None:
    owner = correct.database.owner
    before = owner.scalar(sa.text(OBJECTS))
    owner.rollback()
    engine = create_engine(correct.database.url)

    try:
        report = await audit(engine, role=correct.role, metadata=correct.metadata)
    finally:
        await engine.dispose()

    assert {one.id for one in report.findings} <= {"login-resets-role", "server-cve-floor"}
    assert owner.scalar(sa.text(OBJECTS)) == before


async def test_asyncpg_finds_what_psycopg_finds(any_postgres_url: URL) -> None:
    """Drivers differ in the types they have for catalogs' columns."""
    correct = Correct(Database(await new_database(any_postgres_url)))
    correct.change(
        "CREATE FUNCTION f() RETURNS uuid LANGUAGE sql IMMUTABLE AS 'SELECT NULL::uuid'",
        "ALTER POLICY tenant_isolation ON invoice USING (tenant_id = f())",
        "ALTER TABLE line ADD FOREIGN KEY (invoice_id) REFERENCES invoice (id) ON DELETE CASCADE",
        "ALTER TABLE invoice ADD UNIQUE (number)",
        "CREATE FUNCTION g() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
        "CREATE PUBLICATION p FOR TABLE invoice",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
    )
    correct.database.owner.commit()
    engine = create_engine(correct.database.url)
    try:
        report = await audit(engine, role=correct.role)
        expected = correct.audit()
    finally:
        await engine.dispose()
        await correct.database.dispose()

    assert report == expected
    assert len({one.id for one in report.findings}) >= 8


def test_a_floor_of_ones_own_is_none(correct: Correct) -> None:
    """A restrictive policy that is declared, but says nothing of tenants, makes nothing milder."""
    metadata = sa.MetaData()
    table = sa.Table("own", metadata, sa.Column("tenant_id", sa.Uuid, primary_key=True))
    policy = Policy("floor", table, using="tenant_id <> gen_random_uuid()", restrictive=True)
    tenant_table(policies=[policy])(table)
    protect_metadata(metadata, role=correct.role)
    metadata.create_all(correct.database.owner)
    correct.change(
        "DROP POLICY tenant_floor ON own", "ALTER POLICY tenant_isolation ON own USING (true)"
    )

    severities = {one.id: one.severity for one in correct.audit(metadata=metadata).findings}
    assert severities["policy-always-true"] == "critical"


def test_the_role_itself_may_ask(correct: Correct) -> None:
    correct.change("SET LOCAL ROLE {role}")

    report = correct.audit(role=None)

    assert report.role == correct.role
    # A superuser's connection that took the role is what the finding is about.
    assert "login-resets-role" in {one.id for one in report.findings if one.severity == "error"}


def test_without_temporary_tables_recorded_predicates_are_used(correct: Correct) -> None:
    database = correct.database.url.database
    correct.change(f'REVOKE TEMPORARY ON DATABASE "{database}" FROM PUBLIC')
    correct.change("SET LOCAL ROLE {role}")

    report = correct.audit(metadata=correct.metadata)

    counted = {one.id for one in report.findings if one.severity != "info"}
    assert counted - {"server-cve-floor"} == {"login-resets-role"}
    assert "server-recorded-deparse" in {one.id for one in report.findings}
    assert [one.object for one in report.not_proven] == ["public.remark"] * 2


def test_recorded_predicates_name_mistakes_too(correct: Correct) -> None:
    correct.change("ALTER POLICY tenant_isolation ON invoice USING (true)")
    correct.change("SET LOCAL transaction_read_only = on")

    assert "policy-always-true" in correct.ids(metadata=correct.metadata)


def test_a_declared_policy_of_ones_own_is_not_proven(correct: Correct) -> None:
    metadata = sa.MetaData()
    table = sa.Table("own", metadata, sa.Column("tenant_id", sa.Uuid, primary_key=True))
    policy = Policy("more", table, using="tenant_id IS NOT NULL", to=correct.role)
    tenant_table(policies=[policy])(table)
    protect_metadata(metadata, role=correct.role)
    metadata.create_all(correct.database.owner)

    report = correct.audit(metadata=metadata)

    assert "public.own" not in {one.object for one in report.findings}
    assert [(one.object, one.attack) for one in report.not_proven] == [
        ("public.own", "policy more")
    ]


@pytest.mark.parametrize("name", ["grant-truncate", "grant-truncate public.invoice"])
def test_what_is_ignored_is_left_out_and_said(correct: Correct, name: str) -> None:
    correct.change("GRANT TRUNCATE ON invoice TO {role}")

    report = correct.audit(ignore={name: "a night job"})

    assert "grant-truncate" not in {one.id for one in report.findings}
    assert report.ignored == {name: "a night job"}
    assert "a night job" in report.render()


def test_ignoring_takes_a_reason(correct: Correct) -> None:
    with pytest.raises(AppConfigError, match="without a reason"):
        correct.audit(ignore={"rls-off": " "})


def test_an_unknown_role_is_refused(correct: Correct) -> None:
    with pytest.raises(AppConfigError, match="no role 'nobody at all'"):
        correct.audit(role="nobody at all")


def test_another_database_is_refused() -> None:
    engine = sa.create_engine("sqlite://")

    with engine.connect() as connection, pytest.raises(AppConfigError, match="PostgreSQL"):
        audit_connection(connection)
    engine.dispose()


def test_other_names_and_types_are_audited(correct: Correct) -> None:
    """The database was made by others: text tenants, another setting, names that need quotes."""
    predicate = """"Org %:x" = NULLIF(current_setting('my.org', true), '')"""
    correct.change(
        'CREATE SCHEMA "We ird"',
        'CREATE TABLE "We ird"."T ""x" ("Org %:x" varchar(20) PRIMARY KEY)',
        'ALTER TABLE "We ird"."T ""x" ENABLE ROW LEVEL SECURITY',
        'ALTER TABLE "We ird"."T ""x" FORCE ROW LEVEL SECURITY',
        f'CREATE POLICY p ON "We ird"."T ""x" TO {{role}} USING ({predicate})',
    )
    report = correct.audit(tenant_column="Org %:x", setting="my.org")
    assert [one.id for one in report.findings if one.object.startswith("We")] == ["policy-no-floor"]

    correct.change('ALTER TABLE "We ird"."T ""x" NO FORCE ROW LEVEL SECURITY')
    finding = next(
        one for one in correct.audit(tenant_column="Org %:x").findings if one.id == "rls-not-forced"
    )
    correct.change(finding.remedy)
    assert "rls-not-forced" not in correct.ids(tenant_column="Org %:x", setting="my.org")


def test_the_json_has_its_stable_keys() -> None:
    finding = Finding("rls-off", "critical", "public.t", "opens", "ALTER TABLE t;")
    report = Report("db", "app", (finding,), (NotProven("public.t", "read", "empty"),))

    assert json.loads(report.to_json()) == {
        "version": 1,
        "database": "db",
        "role": "app",
        "findings": [
            {
                "id": "rls-off",
                "severity": "critical",
                "object": "public.t",
                "message": "opens",
                "remedy": "ALTER TABLE t;",
            }
        ],
        "not_proven": [{"object": "public.t", "attack": "read", "reason": "empty"}],
        "probed": {},
        "ignored": {},
        "ok": False,
    }


def test_only_info_is_ok_and_under_a_probe_all_has_to_be_proven() -> None:
    info = Finding("policy-no-floor", "info", "public.t", "may open", "CREATE POLICY ...;")
    unproven = (NotProven("public.t", "read", "empty"),)

    assert Report("db", "app", (info,), unproven).ok
    assert not Report("db", "app", (info,), unproven, probed={"public.t": {}}).ok


def test_names_from_the_database_cannot_steer_a_terminal() -> None:
    finding = Finding("rls-off", "critical", "public.\x1b[2J", "opens", "ALTER TABLE t;")
    report = Report("db", "app", (finding,))

    assert "\x1b" not in report.render()
    assert "\x1b[2J" not in report.render(colour=True)
    assert "\x1b[1;31mcritical" in report.render(colour=True)
