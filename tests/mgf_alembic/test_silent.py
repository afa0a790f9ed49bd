"""Who migrates as an owner that policies hold is told where a data migration finds nothing."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import NullPool, create_engine, event

from harness.held import ONE, as_app, as_migrator
from harness.migrations import Project, rows
from harness.servers import run_sql
from mgf.alembic import SilentDataMigrationWarning

if TYPE_CHECKING:
    from sqlalchemy import URL

DRIVERS = ["postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2"]
UPDATE = """op.execute("UPDATE invoice SET note = 'done'")"""
SELECT = """op.execute("SELECT count(*) FROM invoice")"""
SET_TENANT = f"""op.execute("SET LOCAL app.current_tenant = '{ONE}'")"""

OWN_TABLE = """
CREATE TABLE note (
    id int GENERATED ALWAYS AS IDENTITY,
    invoice_id int REFERENCES invoice ON DELETE CASCADE
)
"""
IN_SAVEPOINT = f"""
with op.get_bind().begin_nested() as savepoint:
    {SET_TENANT}
    {SELECT}
    savepoint.rollback()
"""
BY_FUNCTION = f"""
{SET_TENANT}
{SELECT}
op.execute("SELECT set_config('app.current_tenant', '', true)")
"""


def warnings_of(project: Project, url: URL, upgrade: str = "", **arguments: Any) -> list[str]:
    if upgrade:
        project.add(upgrade)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SilentDataMigrationWarning)
        project.upgrade(url, **arguments)
    return [str(one.message) for one in caught]


def execute(sql: str) -> str:
    return f"op.execute({sql!r})"


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_warning_names_table_and_cure_at_the_line(
    project: Project, held: URL, driver: str
) -> None:
    project.add(UPDATE)

    with pytest.warns(SilentDataMigrationWarning) as caught:
        project.upgrade(as_migrator(held, driver))

    (warning,) = caught
    assert "all rows of public.invoice" in str(warning.message)
    assert "rls_suspended()" in str(warning.message)
    assert warning.filename.endswith("r1.py")
    assert warning.lineno == 6


@pytest.mark.parametrize(
    ("statement", "tables"),
    [
        ("DELETE FROM public.invoice", "public.invoice"),
        ("SELECT count(*) FROM invoice", "public.invoice"),
        ("SELECT 1 FROM country, payment p, Invoice i", "public.invoice, public.payment"),
        ("INSERT INTO country SELECT note FROM invoice", "public.invoice"),
        ("UPDATE country SET invoice = (SELECT max(note) FROM payment)", "public.payment"),
        ("WITH a AS (SELECT * FROM invoice) SELECT * FROM a", "public.invoice"),
        ("(SELECT id FROM invoice)", "public.invoice"),
        ("/* why */ -- how\nDELETE FROM invoice", "public.invoice"),
        ('DELETE FROM "invoice"', "public.invoice"),
        ('DELETE FROM "Order"', "public.Order"),
        ("DELETE FROM unforced", ""),
        ("CREATE TABLE copy AS SELECT * FROM invoice", "public.invoice"),
        ("CREATE TABLE copy (); DELETE FROM invoice", "public.invoice"),
        ("UPDATE country SET code = code; DELETE FROM invoice", "public.invoice"),
        ("DELETE FROM event_1", "public.event_1"),
    ],
)
def test_every_statement_that_finds_nothing_is_told(
    project: Project, held: URL, statement: str, tables: str
) -> None:
    found = warnings_of(project, as_migrator(held), execute(statement))

    assert [one.split(" from the role")[0] for one in found] == (
        [f"policies hide all rows of {tables}"] if tables else []
    )


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE country SET code = 'invoice' WHERE false",
        "UPDATE country SET code = $it$ FROM invoice $it$ WHERE false",
        "UPDATE country SET code = 'XX' WHERE false -- not invoice\n",
        "UPDATE country SET invoice = 'x' WHERE country.invoice IS NOT NULL",
        "SELECT code AS invoice FROM country",
        "SELECT 'x' FROM country ORDER BY code",
        "DELETE FROM other.payment",
        "DELETE FROM invoices",
        "GRANT SELECT ON invoice TO app",
        "CREATE VIEW shown AS SELECT * FROM invoice",
        OWN_TABLE,
        "ALTER TABLE invoice ADD COLUMN more int",
        "COMMENT ON TABLE invoice IS 'UPDATE'",
    ],
)
async def test_no_other_statement_is(project: Project, held: URL, statement: str) -> None:
    await run_sql(
        held,
        "CREATE SCHEMA other AUTHORIZATION migrator",
        "SET ROLE migrator; CREATE TABLE invoices (); CREATE TABLE other.payment ()",
    )

    assert warnings_of(project, as_migrator(held), execute(statement)) == []


class TestNoFalseAlarm:
    def test_where_the_role_is_not_held(self, project: Project, held: URL) -> None:
        assert warnings_of(project, held, UPDATE) == []

    def test_where_force_is_suspended(self, project: Project, held: URL) -> None:
        block = f'with op.rls_suspended("invoice"):\n    {UPDATE}\n    {SELECT}'

        assert warnings_of(project, as_migrator(held), block) == []

    def test_where_a_tenant_is_set(self, project: Project, held: URL) -> None:
        assert warnings_of(project, as_migrator(held), f"{SET_TENANT}\n{UPDATE}\n{SELECT}") == []
        assert rows(held, "SELECT count(*) FROM invoice WHERE note = 'done'") == [1]

    async def test_where_rows_were_changed(self, project: Project, held: URL) -> None:
        """By a policy that shows them to the owner."""
        await run_sql(held, "CREATE POLICY every ON invoice TO migrator USING (true)")

        assert warnings_of(project, as_migrator(held), UPDATE) == []

    def test_in_a_table_that_is_made_on_the_way(self, project: Project, held: URL) -> None:
        assert (
            warnings_of(
                project,
                as_migrator(held),
                """
op.execute("CREATE TABLE fresh AS SELECT 1 AS id")
op.execute("ALTER TABLE fresh ENABLE ROW LEVEL SECURITY")
op.execute("DELETE FROM fresh")
""",
            )
            == []
        )

    def test_in_what_alembic_does_itself(self, project: Project, held: URL) -> None:
        project.add("pass")
        project.add('op.add_column("invoice", sa.Column("more", sa.Integer))')

        assert warnings_of(project, as_migrator(held)) == []

    def test_on_other_databases(self, project: Project) -> None:
        project.add('op.execute("CREATE TABLE invoice (note text)")')

        project.upgrade("sqlite://")


class TestState:
    """What is hidden is asked for once, and again where it may have changed."""

    @pytest.mark.parametrize(
        "before",
        [
            f'with op.rls_suspended("invoice"):\n    {SELECT}',
            IN_SAVEPOINT,
            BY_FUNCTION,
            f"{SET_TENANT}\n{SELECT}\nop.execute('RESET app.current_tenant')",
            f"{SET_TENANT}\n{SELECT}\nwith op.get_context().autocommit_block():\n    pass",
        ],
    )
    def test_a_table_that_is_hidden_again_is_told(
        self, project: Project, held: URL, before: str
    ) -> None:
        upgrade = f"{before}\nop.execute('DELETE FROM invoice')"

        assert len(warnings_of(project, as_migrator(held), upgrade)) == 1

    def test_a_table_that_the_migration_protects_is_told(self, project: Project, held: URL) -> None:
        upgrade = """
op.execute("UPDATE country SET code = 'YY' WHERE code IN (SELECT 'no')")
op.execute("ALTER TABLE country ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
op.execute("DELETE FROM country")
"""

        assert len(warnings_of(project, as_migrator(held), upgrade)) == 1

    def test_the_tenant_of_one_migration_is_none_of_the_next(
        self, project: Project, held: URL
    ) -> None:
        project.add(f"{SET_TENANT}\n{SELECT}")
        project.add(SELECT)
        engine = create_engine(as_migrator(held), poolclass=NullPool)

        with engine.connect() as connection:
            assert len(warnings_of(project, held, connection=connection)) == 1

    def test_each_table_is_told_once(self, project: Project, held: URL) -> None:
        project.add(f"{UPDATE}\n{UPDATE}")
        project.add(f'{UPDATE}\nop.execute("DELETE FROM payment")')

        assert len(warnings_of(project, as_migrator(held))) == 2

    def test_one_question_serves_many_statements(self, project: Project, held: URL) -> None:
        project.add('for _ in range(50):\n    op.execute("DELETE FROM country WHERE false")')
        asked: list[str] = []
        engine = create_engine(as_migrator(held), poolclass=NullPool)
        event.listen(
            engine,
            "before_cursor_execute",
            lambda *arguments: asked.append(arguments[2]),
        )

        with engine.connect() as connection:
            project.upgrade(None, connection=connection)

        assert 0 < sum("row_security_active" in one for one in asked) < 5


def test_a_role_that_owns_nothing_is_told_as_well(project: Project, held: URL) -> None:
    project.add(UPDATE)
    engine = create_engine(as_app(held), poolclass=NullPool)

    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE alembic_version (version_num text)")
        assert len(warnings_of(project, held, connection=connection)) == 1


def test_it_can_be_made_an_error(project: Project, held: URL) -> None:
    project.add(f"op.create_table('lost', sa.Column('id', sa.Integer))\n{UPDATE}")

    with warnings.catch_warnings():
        warnings.simplefilter("error", SilentDataMigrationWarning)
        with pytest.raises(SilentDataMigrationWarning):
            project.upgrade(as_migrator(held))
    assert rows(held, "SELECT to_regclass('lost')") == [None]


def test_a_connection_that_was_handed_over_is_left_as_it_was(project: Project, held: URL) -> None:
    engine = create_engine(as_migrator(held), poolclass=NullPool)
    with engine.connect() as connection:
        warnings_of(project, held, "pass", connection=connection)

        connection.exec_driver_sql("DELETE FROM invoice")
