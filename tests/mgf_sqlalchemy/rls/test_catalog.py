"""What is declared and what is there are told in the same words, and every difference shows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Boolean, Column, Integer, MetaData, Sequence, Table, Text

from harness.schemas import key, refers_to, tenant_id
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls import (
    Difference,
    Grant,
    Policy,
    RevokePrivileges,
    ViewProtection,
    child_table,
    compare_protection,
    deparse,
    expected_protection,
    protect_metadata,
    read_protection,
    share_rows,
    shared_table,
    tenant_predicate,
    tenant_table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from harness.schemas import Database


def make_metadata(**options: Any) -> MetaData:
    metadata = MetaData()
    invoice = Table(
        "invoice",
        metadata,
        key(),
        tenant_id(),
        Column("is_public", Boolean, nullable=False, server_default=sa.false()),
        Column("note", Text),
    )
    invoice_id = refers_to("invoice.id", "invoice_id")
    tenant_table()(invoice)
    child_table(reason="x")(Table("line", metadata, key(), invoice_id))
    shared_table(reason="x")(Table("country", metadata, Column("code", Text, primary_key=True)))
    settings: dict[str, Any] = {"role": "app"} | options
    protect_metadata(metadata, **settings)
    return metadata


def differences(
    database: Database, metadata: MetaData, schemas: SequenceOf[str | None] = (None,)
) -> list[Difference]:
    expected = expected_protection(database.owner, metadata)
    there = read_protection(database.owner, schemas=schemas)
    database.owner.rollback()
    return list(compare_protection(expected, there))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subselect": False},
        {"policies": [share_rows("shared", "invoice", using="is_public OR note LIKE '%x:y%'")]},
        {"policies": [Policy("own", "line", using="line.id IN (SELECT 1)", restrictive=True)]},
        {"policies": [Policy("own", "line", using="line.id > 0", restrictive=True)]},
        {"grants": [Grant("SELECT", "invoice", to="pg_monitor")]},
    ],
    ids=[
        "plain",
        "without sub-select",
        "shared rows",
        "sub-select of its own",
        "name of its own",
        "more grants",
    ],
)
def test_what_was_created_is_what_is_expected(database: Database, options: Any) -> None:
    metadata = make_metadata(**options)
    database.create(metadata)

    expected = expected_protection(database.owner, metadata)
    there = read_protection(database.owner)
    for table in expected.tables:
        found = there.table(table.name)
        assert found is not None
        assert (found.policies, found.grants) == (table.policies, table.grants)
    assert list(compare_protection(expected, there)) == []


def test_names_that_need_quotes_are_compared_too(database: Database) -> None:
    metadata = MetaData(schema="Bi'l %ling")
    parent = Table('in"voice', metadata, Column("I%d", Integer, primary_key=True), tenant_id())
    tenant_table()(parent)
    reference = refers_to(parent.c["I%d"], "select", primary_key=True)
    child_table(reason="x")(Table("Order", metadata, reference))
    policies = [Policy('100% "x"', parent, using="\"I%d\" <> 5 OR 'a' LIKE '%:b'", to="app")]
    protect_metadata(metadata, role="app", policies=policies)
    database.owner.execute(sa.schema.CreateSchema("Bi'l %ling"))
    database.create(metadata)

    assert differences(database, metadata, ["Bi'l %ling"]) == []


def test_a_named_sequence_is_compared_too(database: Database) -> None:
    metadata = MetaData()
    number = Column("number", Integer, Sequence("numbers"), primary_key=True)
    tenant_table()(Table("invoice", metadata, number, tenant_id()))
    protect_metadata(metadata, role="app")
    database.create(metadata)
    assert differences(database, metadata) == []

    database.run("REVOKE USAGE ON SEQUENCE numbers FROM app")
    assert differences(database, metadata) == [
        Difference("grant", None, Grant("USAGE", "numbers", kind="SEQUENCE", to="app"), None)
    ]


def test_the_default_schema_may_be_named(database: Database) -> None:
    metadata = MetaData(schema="public")
    tenant_table()(Table("invoice", metadata, key(), tenant_id()))
    protect_metadata(metadata, role="app")
    database.create(metadata)

    assert differences(database, metadata) == []


ALTER = "ALTER TABLE invoice"
IN_FORCE = "NULLIF(current_setting('app.current_tenant', true), '')::uuid"


@pytest.mark.parametrize(
    ("statement", "aspects"),
    [
        (f"{ALTER} DISABLE ROW LEVEL SECURITY", ["row security"]),
        (f"{ALTER} NO FORCE ROW LEVEL SECURITY", ["row security"]),
        ("DROP POLICY tenant_floor ON invoice", ["policy"]),
        ("DROP POLICY tenant_isolation ON line", ["policy"]),
        ("CREATE POLICY open ON invoice USING (true)", ["policy"]),
        ("ALTER POLICY tenant_isolation ON invoice USING (true)", ["policy"]),
        ("ALTER POLICY tenant_isolation ON invoice WITH CHECK (true)", ["policy"]),
        ("ALTER POLICY tenant_isolation ON invoice TO PUBLIC", ["policy"]),
        (f"ALTER POLICY tenant_floor ON invoice USING (tenant_id = {IN_FORCE})", ["policy"]),
        ("ALTER POLICY tenant_floor ON invoice RENAME TO floor", ["policy", "policy"]),
        ("DROP INDEX ix_invoice_tenant_id", ["index"]),
        ("REVOKE UPDATE ON invoice FROM app", ["grant"]),
        ("GRANT TRUNCATE, TRIGGER ON invoice TO app", ["grant"]),
        ("GRANT SELECT ON invoice TO PUBLIC", ["grant"]),
        ("GRANT INSERT ON country TO app", ["grant"]),
        ("GRANT UPDATE (code) ON country TO app", ["grant"]),
        ("GRANT SELECT (id) ON invoice TO PUBLIC", ["grant"]),
        ("REVOKE USAGE ON SEQUENCE invoice_id_seq FROM app", ["grant"]),
        ("DROP TABLE country", ["table"]),
        ("ALTER TABLE country ENABLE ROW LEVEL SECURITY", ["row security"]),
        ("GRANT SELECT ON invoice TO pg_monitor", []),
        ("CREATE TABLE others (id int)", []),
        (f"{ALTER} RENAME tenant_id TO owner", ["policy", "policy", "index"]),
    ],
)
def test_a_change_by_hand_shows(database: Database, statement: str, aspects: list[str]) -> None:
    metadata = make_metadata()
    database.create(metadata)
    database.run(statement)

    found = [one.aspect for one in differences(database, metadata) if one.table != (None, "line")]
    if "line" in statement:
        found = [one.aspect for one in differences(database, metadata)]
    assert found == aspects


def test_a_policy_that_differs_only_in_kind_or_command_differs(database: Database) -> None:
    metadata = make_metadata()
    database.create(metadata)
    for kind, command in (("PERMISSIVE", "ALL"), ("RESTRICTIVE", "SELECT")):
        database.run(
            "DROP POLICY tenant_floor ON invoice",
            f"CREATE POLICY tenant_floor ON invoice AS {kind} FOR {command} "
            f"USING ({tenant_predicate()})",
        )
        assert [one.aspect for one in differences(database, metadata)] == ["policy"]


@pytest.mark.parametrize(
    ("index", "is_of_use"),
    [
        ("(tenant_id, id)", True),
        ("(id, tenant_id)", False),
        ("(tenant_id) WHERE id > 0", False),
        ("((tenant_id::text))", False),
        ("USING brin (tenant_id)", False),
    ],
)
def test_an_index_counts_where_the_tenant_leads_it(
    database: Database, index: str, is_of_use: bool
) -> None:
    metadata = make_metadata()
    database.create(metadata)
    database.run("DROP INDEX ix_invoice_tenant_id", f"CREATE INDEX ON invoice {index}")

    assert (differences(database, metadata) == []) is is_of_use


def test_a_missing_table_is_one_difference(database: Database) -> None:
    metadata = make_metadata()

    missing = differences(database, metadata)

    assert [one.table for one in missing] == [(None, "country"), (None, "invoice"), (None, "line")]
    assert {(one.aspect, one.there) for one in missing} == {("table", None)}


def test_what_a_role_may_give_to_others_is_told_beside_what_it_may(database: Database) -> None:
    granted = Grant("INSERT", "invoice", to="pg_monitor", grantable=True)
    metadata = make_metadata(grants=[granted])
    database.create(metadata)

    there = read_protection(database.owner).table("invoice")
    assert there is not None
    found = tuple(one for one in there.grants if one.to == "pg_monitor")
    assert found == (replace(granted, grantable=False), granted)
    assert differences(database, metadata) == []


@pytest.mark.parametrize("privilege", ["SELECT ON invoice", "USAGE ON SEQUENCE invoice_id_seq"])
def test_what_the_role_may_give_to_others_unasked_is_a_difference(
    database: Database, privilege: str
) -> None:
    metadata = make_metadata()
    database.create(metadata)
    database.run(f"GRANT {privilege} TO app WITH GRANT OPTION")

    (difference,) = differences(database, metadata)

    assert (difference.aspect, difference.expected) == ("grant", None)
    assert difference.there.grantable
    database.run(str(RevokePrivileges(difference.there)))
    assert differences(database, metadata) == []


def test_a_table_that_the_role_owns_is_a_difference(database: Database) -> None:
    metadata = make_metadata()
    database.create(metadata)
    database.run("ALTER TABLE invoice OWNER TO app")

    found = [one for one in differences(database, metadata) if one.aspect == "owner"]

    assert found == [Difference("owner", (None, "invoice"), None, "app")]


INHERIT = (
    "CREATE TABLE everything (id int NOT NULL, tenant_id uuid NOT NULL)",
    "ALTER TABLE invoice INHERIT everything",
)


def test_a_table_that_shows_the_rows_past_the_policies_is_a_difference(
    database: Database,
) -> None:
    metadata = make_metadata()
    database.create(metadata)
    database.run("CREATE TABLE first (id int)", "ALTER TABLE invoice INHERIT first", *INHERIT)

    assert [(one.aspect, one.there) for one in differences(database, metadata)] == [
        ("parent", (None, "everything")),
        ("parent", (None, "first")),
    ]


def test_usage_of_a_schema_is_a_difference_where_it_is_missing(database: Database) -> None:
    metadata = MetaData(schema="billing")
    tenant_table()(Table("invoice", metadata, key(), tenant_id()))
    protect_metadata(metadata, role="app")
    database.run("CREATE SCHEMA billing")
    database.create(metadata)
    assert differences(database, metadata, ["billing"]) == []

    database.run("REVOKE USAGE ON SCHEMA billing FROM app")
    assert differences(database, metadata, ["billing"]) == [
        Difference("grant", None, Grant("USAGE", "billing", kind="SCHEMA", to="app"), None)
    ]


def test_a_predicate_on_what_is_not_there_yet_stays_as_it_is_written(database: Database) -> None:
    database.create(make_metadata())
    metadata = make_metadata(policies=[Policy("own", "invoice", using="to_be_made(note)")])

    (difference,) = differences(database, metadata)

    assert difference.there is None
    assert difference.expected.using == "to_be_made(note)"


@pytest.mark.parametrize("path", ["public, pg_catalog", ""])
def test_comparing_leaves_nothing_behind(database: Database, path: str) -> None:
    metadata = make_metadata()
    database.create(metadata)
    count = "SELECT count(*) FROM pg_class"
    before = database.ask(count)
    database.owner.exec_driver_sql(f"SELECT set_config('search_path', '{path}', false)")

    expected_protection(database.owner, metadata)
    read_protection(database.owner)

    assert database.owner.exec_driver_sql("SHOW search_path").scalar() == path
    database.owner.commit()
    assert database.ask(count) == before


def test_an_open_transaction_stays_open(database: Database) -> None:
    metadata = make_metadata()
    metadata.create_all(database.owner)

    expected_protection(database.owner, metadata)
    read_protection(database.owner)

    database.owner.rollback()
    assert not sa.inspect(database.owner).has_table("invoice")


def test_a_table_of_a_predicate_is_not_taken_for_the_one_it_is_tried_on(
    database: Database,
) -> None:
    metadata = make_metadata(
        policies=[Policy("own", "invoice", using="id IN (SELECT id FROM invoice)")]
    )
    database.create(metadata)

    assert differences(database, metadata) == []


def test_a_role_that_may_not_make_temporary_tables_is_told_so(database: Database) -> None:
    metadata = make_metadata()
    database.create(metadata)
    name = sa.make_url(database.url).database
    database.run(f'REVOKE TEMPORARY ON DATABASE "{name}" FROM PUBLIC')
    database.owner.exec_driver_sql("SET ROLE app")

    with pytest.raises(AppConfigError, match="GRANT TEMPORARY ON DATABASE"):
        expected_protection(database.owner, metadata)
    assert read_protection(database.owner).table("invoice") is not None


def test_autocommit_is_refused(database: Database) -> None:
    engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
    with (
        engine.connect() as connection,
        pytest.raises(AppConfigError, match="in AUTOCOMMIT"),
    ):
        read_protection(connection)


def test_another_database_is_refused() -> None:
    engine = sa.create_engine("sqlite://")
    with (
        engine.connect() as connection,
        pytest.raises(AppConfigError, match="PostgreSQL's; this connection's database is 'sqlite'"),
    ):
        read_protection(connection)
    engine.dispose()


def test_views_are_read_with_what_they_read(database: Database) -> None:
    database.create(make_metadata())
    database.run(
        "CREATE VIEW open AS SELECT * FROM invoice",
        "CREATE VIEW held WITH (security_invoker = yes) AS SELECT line.id FROM open, line",
        "CREATE MATERIALIZED VIEW copy AS SELECT * FROM line",
        "GRANT SELECT ON held TO app",
    )

    assert read_protection(database.owner).views == (
        ViewProtection("copy", security_invoker=False, materialized=True, reads=((None, "line"),)),
        ViewProtection(
            "held",
            reads=((None, "line"), (None, "open")),
            grants=(Grant("SELECT", "held", to="app"),),
        ),
        ViewProtection("open", security_invoker=False, reads=((None, "invoice"),)),
    )


def test_the_number_of_tables_does_not_change_the_number_of_statements(
    database: Database,
) -> None:
    statements: list[str] = []
    sa.event.listen(
        database.owner, "before_cursor_execute", lambda *event: statements.append(event[2])
    )
    counts: list[int] = []
    for tables in (1, 40):
        metadata = MetaData()
        for number in range(tables):
            columns = key(), tenant_id()
            tenant_table()(Table(f"table_{tables}_{number}", metadata, *columns))
        protect_metadata(metadata, role="app")
        database.create(metadata)
        statements.clear()

        assert differences(database, metadata) == []
        counts.append(len(statements))

    assert counts[0] == counts[1] < 20


DEPARSED = "(NULLIF(current_setting('app.current_tenant'::text, true), ''::text))::uuid"


def test_predicates_are_deparsed_on_their_own(database: Database) -> None:
    predicates = [tenant_predicate(), "note LIKE 'a%'"]

    columns = {"tenant_id": "uuid", "note": "text"}
    assert deparse(database.owner, predicates, columns=columns) == [
        f'(tenant_id = ( SELECT {DEPARSED} AS "nullif"))',
        "(note ~~ 'a%'::text)",
    ]
