"""Views are made with the tables, and show what their reader may see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Integer, MetaData, Table, Text, select, text

from harness.schemas import key, tenant_id
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls import (
    CreateInvokerView,
    compare_protection,
    expected_protection,
    invoker_view,
    protect_metadata,
    read_protection,
    tenant_table,
)

if TYPE_CHECKING:
    from harness.schemas import Database

A, B = uuid4(), uuid4()


def make_metadata(schema: str | None = None) -> tuple[MetaData, Table, sa.TableClause]:
    metadata = MetaData(schema=schema)
    invoice = tenant_table()(Table("invoice", metadata, key(), tenant_id(), Column("note", Text)))
    # Reads the other view, so that the order counts.
    plain = invoker_view("a_note", metadata, select(invoice.c.id, invoice.c.note))
    shown = select(plain.c.note).where(plain.c.note.like("%a:%"))
    view = invoker_view("Note's %", metadata, shown)
    protect_metadata(metadata, role="app")
    return metadata, invoice, view


@pytest.mark.parametrize("schema", [None, "Bi'l %ling"])
async def test_one_shows_the_rows_of_the_tenant(database: Database, schema: str | None) -> None:
    metadata, invoice, view = make_metadata(schema)
    if schema is not None:
        database.owner.execute(sa.schema.CreateSchema(schema))
    database.create(metadata)
    for tenant, note in ((A, "a:1"), (A, "b:1"), (B, "a:2")):
        database.owner.execute(invoice.insert().values(tenant_id=tenant, note=note))
    database.owner.commit()

    async with database.scope(A) as session:
        assert list(await session.scalars(select(view.c.note))) == ["a:1"]


def test_the_role_may_read_one_and_no_more(database: Database) -> None:
    metadata, _, _ = make_metadata()
    database.run("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO app, PUBLIC")
    database.create(metadata)

    views = read_protection(database.owner).views
    assert [(view.security_invoker, [one.privileges for one in view.grants]) for view in views] == [
        (True, [("SELECT",)]),
        (True, [("SELECT",)]),
    ]


def test_what_is_there_is_what_is_expected(database: Database) -> None:
    metadata, _, _ = make_metadata()
    database.create(metadata)

    expected = expected_protection(database.owner, metadata)
    there = read_protection(database.owner)
    assert [one.reads for one in expected.views] == [one.reads for one in there.views]
    assert list(compare_protection(expected, there)) == []


@pytest.mark.parametrize(
    ("statement", "aspect"),
    [
        ("ALTER VIEW a_note RESET (security_invoker)", "view"),
        ("DROP VIEW a_note CASCADE", "view"),
        ("REVOKE SELECT ON a_note FROM app", "grant"),
        ("GRANT SELECT ON a_note TO PUBLIC", "grant"),
    ],
)
def test_a_change_by_hand_shows(database: Database, statement: str, aspect: str) -> None:
    metadata, _, _ = make_metadata()
    database.create(metadata)
    database.run(statement)

    expected = expected_protection(database.owner, metadata)
    found = compare_protection(expected, read_protection(database.owner))
    assert [one.aspect for one in found if one.table == (None, "a_note")] == [aspect]


def test_one_that_is_there_is_left_alone(database: Database) -> None:
    metadata, _, _ = make_metadata()
    database.create(metadata)
    database.create(metadata)


def test_one_is_made_when_its_tables_are_there(database: Database) -> None:
    metadata = MetaData()
    one, two = (
        tenant_table()(Table(name, metadata, key(), tenant_id())) for name in ("one", "two")
    )
    invoker_view("both", metadata, select(one.c.id, two.c.tenant_id))

    for tables, views in (([one], []), ([two], ["both"])):
        metadata.create_all(database.owner, tables=tables)
        assert sa.inspect(database.owner).get_view_names() == views


def test_dropping_the_tables_drops_it(database: Database) -> None:
    metadata, _, _ = make_metadata()
    database.create(metadata)

    metadata.drop_all(database.owner)

    assert read_protection(database.owner).views == ()


def test_dropping_other_tables_does_not(database: Database) -> None:
    metadata, _, _ = make_metadata()
    other = tenant_table()(Table("other", metadata, key(), tenant_id()))
    database.create(metadata)

    metadata.drop_all(database.owner, tables=[other])

    assert len(read_protection(database.owner).views) == 2


def test_one_may_be_written_as_sql(database: Database) -> None:
    metadata, _, _ = make_metadata()
    columns = text("SELECT count(*) AS rows FROM invoice").columns(Column("rows", Integer))
    view = invoker_view("counted", metadata, columns)
    database.create(metadata)

    assert database.owner.scalar(select(view.c.rows)) == 0
    metadata.drop_all(database.owner)


def test_elsewhere_it_is_a_plain_view() -> None:
    metadata, _, view = make_metadata()
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        metadata.create_all(connection)
        assert connection.execute(select(view.c.note)).all() == []
        metadata.drop_all(connection)
        assert sa.inspect(connection).get_view_names() == []
    engine.dispose()


def test_a_name_that_is_taken_is_refused() -> None:
    metadata, invoice, _ = make_metadata()

    for name in ("invoice", "a_note"):
        with pytest.raises(AppConfigError, match=f"view .*'{name}'.*give the view another name"):
            invoker_view(name, metadata, select(invoice))


def test_its_statement_can_be_printed() -> None:
    _, invoice, _ = make_metadata()
    statement = CreateInvokerView("note", select(invoice.c.note).where(invoice.c.id > 5))

    printed = statement.compile(dialect=sa.create_engine("postgresql+psycopg://").dialect)
    assert str(printed) == (
        "CREATE VIEW note WITH (security_invoker = true) AS\n"
        "SELECT invoice.note \nFROM invoice \nWHERE invoice.id > 5"
    )


@pytest.mark.skipif(not hasattr(sa, "CreateView"), reason="such views are new in SQLAlchemy 2.1")
def test_a_view_of_sqlalchemy_s_own_is_refused() -> None:
    metadata = MetaData()
    invoice = tenant_table()(Table("invoice", metadata, key(), tenant_id()))
    create: Any = sa.CreateView
    create(select(invoice), "shown", metadata=metadata)

    with pytest.raises(AppConfigError, match=r"'shown' is a view.* with invoker_view"):
        protect_metadata(metadata, role="app")
