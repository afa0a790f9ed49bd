"""A data migration reaches all rows where it says so, and protection is there again afterwards."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from alembic import op
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from harness.held import FORCED, as_app, as_migrator
from harness.migrations import PROBE, Project, rows, wait_for
from harness.servers import run_sql
from mgf.alembic import rls_suspended
from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from sqlalchemy import URL

DRIVERS = ["postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2"]
every_driver = pytest.mark.parametrize("driver", DRIVERS)

ALL_FORCED = ["Order", "event", "event_1", "invoice", "payment"]
IMPORT = "from mgf.alembic import rls_suspended\n"
UPDATE = """op.execute("UPDATE invoice SET note = 'done'")"""
DONE = "SELECT count(*) FROM invoice WHERE note = 'done'"
FAIL = 'op.execute("SELECT 1 / 0")'
PUT_BACK = "FORCE ROW LEVEL SECURITY may be missing"


def suspended(body: str = UPDATE, tables: str = '"invoice"') -> str:
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return f"{IMPORT}with rls_suspended({tables}):\n{lines}"


def autocommit(body: str) -> str:
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return f"with op.get_context().autocommit_block():\n{lines}"


class Probe:
    """Notes which tables are forced, as the migration itself sees it."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def __call__(self) -> None:
        self.seen.append(list(op.get_bind().exec_driver_sql(FORCED).scalars()))


class TestBlock:
    @every_driver
    def test_rows_of_all_tenants_are_reached(
        self, project: Project, held: URL, driver: str
    ) -> None:
        project.add(suspended())

        project.upgrade(as_migrator(held, driver))

        assert rows(held, DONE) == [2]
        assert rows(held, FORCED) == ALL_FORCED

    def test_it_is_a_method_of_op_too(self, project: Project, held: URL) -> None:
        project.add(f'with op.rls_suspended("invoice", schema="public"):\n    {UPDATE}')

        project.upgrade(as_migrator(held))

        assert rows(held, DONE) == [2]
        assert rows(held, FORCED) == ALL_FORCED

    def test_tables_that_are_not_named_stay_forced(self, project: Project, held: URL) -> None:
        probe = Probe()
        project.add(suspended(PROBE, '"invoice", "Order", "invoice"'))

        project.upgrade(as_migrator(held), probe=probe)

        assert probe.seen == [["event", "event_1", "payment"]]

    def test_blocks_are_nested(self, project: Project, held: URL) -> None:
        probe = Probe()
        inner = suspended(PROBE, '"invoice", "payment"').removeprefix(IMPORT)
        project.add(suspended(inner + PROBE) + PROBE)

        project.upgrade(as_migrator(held), probe=probe)

        in_inner, in_outer, after = probe.seen
        assert in_inner == ["Order", "event", "event_1"]
        assert in_outer == ["Order", "event", "event_1", "payment"]
        assert after == ALL_FORCED

    def test_a_table_that_was_not_forced_stays_so(self, project: Project, held: URL) -> None:
        project.add(suspended("pass", '"unforced", "country"'))

        project.upgrade(as_migrator(held))

        assert rows(held, FORCED) == ALL_FORCED

    def test_a_partitioned_table_gives_the_rows_of_its_partitions(
        self, project: Project, held: URL
    ) -> None:
        probe = Probe()
        project.add(
            suspended(f"""op.execute("UPDATE event SET note = 'done'")\n{PROBE}""", '"event"')
        )

        project.upgrade(as_migrator(held), probe=probe)

        assert rows(held, "SELECT count(*) FROM event WHERE note = 'done'") == [2]
        assert "event_1" in probe.seen[0]

    def test_a_partition_can_be_named_itself(self, project: Project, held: URL) -> None:
        project.add(suspended("""op.execute("UPDATE event_1 SET note = 'done'")""", '"event_1"'))

        project.upgrade(as_migrator(held))

        assert rows(held, "SELECT count(*) FROM event WHERE note = 'done'") == [2]
        assert rows(held, FORCED) == ALL_FORCED

    def test_deferred_constraints_are_checked_while_all_rows_are_seen(
        self, project: Project, held: URL
    ) -> None:
        project.add(
            suspended('op.execute("UPDATE payment SET invoice_id = id")', '"payment", "invoice"')
        )

        project.upgrade(as_migrator(held))

        assert rows(held, "SELECT invoice_id FROM payment ORDER BY id") == [1, 2]
        assert rows(held, FORCED) == ALL_FORCED

    @pytest.mark.parametrize(
        "change",
        ["ALTER TABLE invoice RENAME TO bill", "ALTER TABLE invoice SET SCHEMA other"],
    )
    async def test_a_table_that_moves_meanwhile_is_forced_where_it_is(
        self, project: Project, held: URL, change: str
    ) -> None:
        await run_sql(held, "CREATE SCHEMA other AUTHORIZATION migrator")
        project.add(suspended(f'op.execute("{change}")'))

        project.upgrade(as_migrator(held))

        forced = "SELECT count(*) FROM pg_class WHERE relforcerowsecurity"
        assert rows(held, forced) == [len(ALL_FORCED)]

    def test_a_table_that_is_dropped_meanwhile_is_no_error(
        self, project: Project, held: URL
    ) -> None:
        project.add(suspended("""op.drop_table("Order")""", '"Order"'))

        project.upgrade(as_migrator(held))

        assert rows(held, FORCED) == ALL_FORCED[1:]

    def test_a_superuser_is_not_held_and_takes_no_lock(self, project: Project, held: URL) -> None:
        probe = Probe()
        project.add(suspended(f"{UPDATE}\n{PROBE}"))

        project.upgrade(held, probe=probe)

        assert probe.seen == [ALL_FORCED]
        assert rows(held, DONE) == [2]

    def test_other_databases_have_nothing_to_suspend(self, project: Project) -> None:
        project.add(suspended('op.execute("SELECT 1")', '"nosuch"'))

        project.upgrade("sqlite://")

    def test_the_log_names_the_tables(
        self, project: Project, held: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        project.add(suspended(tables='"invoice", "payment"'))

        project.upgrade(as_migrator(held))

        (record,) = [one for one in caplog.records if one.levelno == logging.WARNING]
        assert record.name == "mgf.alembic"
        assert "suspended for the owner of public.invoice, public.payment" in record.message


class TestOtherSessions:
    def test_nobody_else_sees_a_table_without_force(self, project: Project, held: URL) -> None:
        """Another member of the owner waits, and is held by the policies when it gets in."""
        entered, leave = threading.Event(), threading.Event()

        def wait() -> None:
            entered.set()
            leave.wait(30)

        project.add(suspended(PROBE))
        with ThreadPoolExecutor(2) as executor:
            migration = executor.submit(project.upgrade, as_migrator(held), probe=wait)
            entered.wait(30)
            asked = executor.submit(rows, as_migrator(held), "SELECT count(*) FROM invoice")
            wait_for(
                held,
                "SELECT 1 FROM pg_locks WHERE relation = 'invoice'::regclass AND NOT granted",
            )
            leave.set()
            migration.result()
            assert asked.result() == [0]

    def test_other_roles_stay_held_where_no_force_is_committed(
        self, project: Project, held: URL
    ) -> None:
        seen: list[Any] = []
        project.add(autocommit(suspended(f"{UPDATE}\n{PROBE}")))

        project.upgrade(
            as_migrator(held),
            probe=lambda: seen.extend(rows(as_app(held), "SELECT count(*) FROM invoice")),
        )

        assert seen == [0]
        assert rows(held, FORCED) == ALL_FORCED


class TestErrors:
    @every_driver
    @pytest.mark.parametrize("error", ["raise LookupError", FAIL])
    def test_nothing_is_left_of_a_migration_that_fails(
        self, project: Project, held: URL, driver: str, error: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        project.add(suspended(f"{UPDATE}\n{error}"))

        with pytest.raises((LookupError, DBAPIError)):
            project.upgrade(as_migrator(held, driver))

        assert rows(held, FORCED) == ALL_FORCED
        assert rows(held, DONE) == [0]
        assert PUT_BACK not in caplog.text

    def test_a_migration_that_goes_on_after_an_error_is_held_again(
        self, project: Project, held: URL
    ) -> None:
        probe = Probe()
        block = suspended("raise LookupError")
        lines = "".join(f"    {line}\n" for line in block.splitlines())
        project.add(f"try:\n{lines}except LookupError:\n    pass\n{PROBE}")

        project.upgrade(as_migrator(held), probe=probe)

        assert probe.seen == [ALL_FORCED]

    def test_a_savepoint_around_the_block_restores(self, project: Project, held: URL) -> None:
        probe = Probe()
        block = suspended(FAIL)
        lines = "".join(f"        {line}\n" for line in block.splitlines())
        project.add(
            f"try:\n    with op.get_bind().begin_nested():\n{lines}"
            f"except sa.exc.DBAPIError:\n    pass\n{PROBE}"
        )

        project.upgrade(as_migrator(held), probe=probe)

        assert probe.seen == [ALL_FORCED]

    def test_a_savepoint_in_the_block_leaves_it_suspended(
        self, project: Project, held: URL
    ) -> None:
        body = f"""
try:
    with op.get_bind().begin_nested():
        {FAIL}
except sa.exc.DBAPIError:
    pass
{UPDATE}
"""
        project.add(suspended(body))

        project.upgrade(as_migrator(held))

        assert rows(held, DONE) == [2]
        assert rows(held, FORCED) == ALL_FORCED

    def test_an_error_that_the_block_hid_fails_the_migration(
        self, project: Project, held: URL
    ) -> None:
        project.add(suspended(f"try:\n    {FAIL}\nexcept sa.exc.DBAPIError:\n    pass"))

        with pytest.raises(DBAPIError, match="transaction is aborted"):
            project.upgrade(as_migrator(held))
        assert rows(held, FORCED) == ALL_FORCED


class TestAutocommit:
    """No transaction undoes it there."""

    @every_driver
    @pytest.mark.parametrize("error", ["raise LookupError", FAIL])
    def test_force_is_put_back(self, project: Project, held: URL, driver: str, error: str) -> None:
        project.add(autocommit(suspended(f"{UPDATE}\n{error}")))

        with pytest.raises((LookupError, DBAPIError)):
            project.upgrade(as_migrator(held, driver))

        assert rows(held, FORCED) == ALL_FORCED
        assert rows(held, DONE) == [2]

    @every_driver
    def test_also_when_the_connection_is_lost(
        self, project: Project, held: URL, driver: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        kill = 'op.execute("SELECT pg_terminate_backend(pg_backend_pid())")'
        project.add(autocommit(suspended(kill)))

        # Alembic's own end of the block finds no connection.
        with pytest.raises(SQLAlchemyError):
            project.upgrade(as_migrator(held, driver))

        assert rows(held, FORCED) == ALL_FORCED
        assert PUT_BACK not in caplog.text

    def test_also_when_it_was_committed_within_a_block(self, project: Project, held: URL) -> None:
        """The transaction that fails afterwards has nothing to undo."""
        project.add(suspended(autocommit(UPDATE) + FAIL))

        with pytest.raises(DBAPIError):
            project.upgrade(as_migrator(held))

        assert rows(held, FORCED) == ALL_FORCED

    def test_what_cannot_be_put_back_is_logged(
        self, project: Project, held: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        def take_the_table() -> None:
            engine = create_engine(held.set(drivername="postgresql+psycopg2"), poolclass=NullPool)
            with engine.begin() as connection:
                connection.exec_driver_sql("ALTER TABLE invoice OWNER TO app")

        project.add(autocommit(suspended(PROBE)))

        with pytest.raises(DBAPIError, match="must be owner"):
            project.upgrade(as_migrator(held), probe=take_the_table)

        assert f"{PUT_BACK} on public.invoice" in caplog.text


class TestOffline:
    def test_the_script_has_the_statements(self, project: Project) -> None:
        project.add(suspended(tables='"invoice", "Order", schema="Mine"'))

        script = project.sql("postgresql://")

        lines = [
            line for line in script.splitlines() if "FORCE" in line or "UPDATE invoice" in line
        ]
        assert lines == [
            'ALTER TABLE "Mine".invoice NO FORCE ROW LEVEL SECURITY;',
            'ALTER TABLE "Mine"."Order" NO FORCE ROW LEVEL SECURITY;',
            "UPDATE invoice SET note = 'done';",
            'ALTER TABLE "Mine".invoice FORCE ROW LEVEL SECURITY;',
            'ALTER TABLE "Mine"."Order" FORCE ROW LEVEL SECURITY;',
        ]

    async def test_the_script_runs(self, project: Project, held: URL) -> None:
        project.add(suspended('op.execute("UPDATE payment SET invoice_id = id")', '"payment"'))

        await run_sql(held, f"SET ROLE migrator; {project.sql('postgresql://')}")

        assert rows(held, "SELECT count(*) FROM payment WHERE invoice_id = id") == [2]
        assert rows(held, FORCED) == ALL_FORCED

    def test_other_dialects_write_nothing(self, project: Project) -> None:
        project.add(suspended())

        assert "FORCE" not in project.sql("mysql+pymysql://")


class TestRefusals:
    @pytest.mark.parametrize(
        ("tables", "message"),
        [
            ('"invoice", "invioce"', "no table 'invioce' in the search path"),
            ('"invoice", schema="nosuch"', "no table 'invoice' in schema 'nosuch'"),
            ('"invoice_pkey"', "no table 'invoice_pkey'"),
            ('"Invoice"', "no table 'Invoice'"),
            ("", r"got \(\); give it the name of at least one table"),
            ("sa.table", "as a str"),
        ],
    )
    def test_what_is_no_table_is_named(
        self, project: Project, held: URL, tables: str, message: str
    ) -> None:
        project.add(suspended(tables=tables))

        with pytest.raises(AppConfigError, match=message):
            project.upgrade(as_migrator(held))
        assert rows(held, FORCED) == ALL_FORCED

    async def test_a_role_that_does_not_own_the_table_is_told_who_does(
        self, project: Project, held: URL
    ) -> None:
        await run_sql(held, "GRANT CREATE ON SCHEMA public TO app")
        project.add(suspended(tables='"payment", "invoice"'))

        with pytest.raises(AppConfigError, match="migrate as 'migrator' or as a member of it"):
            project.upgrade(as_app(held))
        assert rows(held, FORCED) == ALL_FORCED

    def test_outside_of_a_migration_it_is_refused(self) -> None:
        with (
            pytest.raises(AppConfigError, match="outside of a migration"),
            rls_suspended("invoice"),
        ):
            pass
