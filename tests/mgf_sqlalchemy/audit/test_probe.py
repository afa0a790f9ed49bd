"""The live probe as programs call it: what it returns, what it refuses, and what it leaves."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from mgf_sqlalchemy.audit.correct import Correct
from sqlalchemy.exc import DBAPIError

from harness.schemas import Database
from harness.servers import new_database
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import create_engine, tenant_connection
from mgf.sqlalchemy.audit import probe, probe_connection
from mgf.sqlalchemy.errors import sqlstate
from mgf.sqlalchemy.testing import TemporaryPostgres
from mgf.sqlalchemy.testing._binaries import URL_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy.ext.asyncio import AsyncEngine

ATTACKS = [
    "own-read",
    "own-write",
    "read",
    "unscoped",
    "empty",
    "nonsense",
    "insert",
    "insert-returning",
    "insert-unscoped",
    "upsert",
    "move",
    "blind-update",
    "blind-delete",
    "truncate",
    "copy",
    "other-settings",
    "prepared",
    "reused",
]
CATALOGS = [
    "pg_class",
    "pg_attribute",
    "pg_constraint",
    "pg_policy",
    "pg_proc",
    "pg_namespace",
    "pg_type",
    "pg_roles",
    "pg_auth_members",
    "pg_db_role_setting",
    "pg_trigger",
    "pg_rewrite",
    "pg_init_privs",
]
# Of pg_class; that is changed at any time.
VACUUM = ["relpages", "reltuples", "relallvisible", "relallfrozen", "relfrozenxid", "relminmxid"]


def test_nothing_leaks_where_nothing_is_wrong(correct: Correct) -> None:
    report = correct.probe(metadata=correct.metadata)

    assert (report.findings, report.not_proven, report.ok) == ((), (), True)
    assert report.probed["control"] == "caught"


def test_each_relation_has_an_outcome_for_each_attack(correct: Correct) -> None:
    relations = correct.probe().probed["relations"]

    assert [list(one) for one in relations.values()] == [ATTACKS] * len(relations)
    held = {"public.account", "public.event", "public.invoice", "public.line", "public.remark"}
    for name in ("own-write", "read", "insert", "move", "upsert", "blind-delete", "copy"):
        assert {key for key, one in relations.items() if one[name] == "held"} >= held, name
    assert relations["public.numbers"]["read"] == "held"
    assert set(relations["public.event_1"].values()) == {"not_applicable"}


@pytest.fixture(params=["asyncpg", "psycopg"])
def engine(request: pytest.FixtureRequest, correct: Correct) -> AsyncEngine:
    url = correct.database.url.set(drivername=f"postgresql+{request.param}")
    return create_engine(url)


async def test_an_engine_is_probed_and_nothing_is_left(
    engine: AsyncEngine, correct: Correct
) -> None:
    before = state(correct)
    seen = list[tuple[int, int, str]]()

    try:
        report = await probe(
            engine,
            role=correct.role,
            tenants=[uuid4()],
            progress=lambda *one: seen.append(one),
        )
        async with engine.connect() as connection:
            prepared = "SELECT count(*) FROM pg_prepared_statements WHERE name ~ 'mgf'"
            assert await connection.scalar(sa.text(prepared)) == 0
            setting = "SELECT COALESCE(current_setting('app.current_tenant', true), '')"
            assert await connection.scalar(sa.text(setting)) == ""
    finally:
        await engine.dispose()

    assert (report.findings, report.not_proven) == ((), ())
    assert report.probed["unscoped"] == "never set"
    labels = list(report.probed["relations"])
    assert seen == [(done, len(labels), label) for done, label in enumerate(labels)]
    assert state(correct) == before


def state(correct: Correct) -> dict[str, Any]:
    """Return catalogs and rows as they are."""
    owner = correct.database.owner
    kept = {
        name: owner.scalar(
            sa.text(
                "SELECT md5(string_agg(x::text, ',' ORDER BY x::text)) "
                f"FROM (SELECT to_jsonb(y) - CAST(:vacuum AS text[]) AS x FROM {name} AS y) AS z"
            ),
            {"vacuum": VACUUM},
        )
        for name in CATALOGS
    }
    for table in correct.metadata.tables:
        kept[table] = owner.scalar(sa.text(f"SELECT count(*) FROM {table}"))
    owner.rollback()
    return kept


def test_the_connection_is_given_back_as_it_was(correct: Correct) -> None:
    """In a transaction of its own user's, which goes on."""
    facts = sa.text(
        "SELECT current_user::text, current_setting('lock_timeout'), "
        "current_setting('statement_timeout'), current_setting('search_path'), "
        "COALESCE(current_setting('app.current_tenant', true), '')"
    )
    correct.change("SET LOCAL lock_timeout = 77", "CREATE TABLE mine (id int)")
    before = correct.database.owner.execute(facts).one()

    correct.probe()

    assert correct.database.owner.execute(facts).one() == before
    assert correct.database.owner.scalar(sa.text("SELECT count(*) FROM mine")) == 0


async def test_a_cancelled_probe_is_cancelled(engine: AsyncEngine, correct: Correct) -> None:
    """What undoes a trial finds no connection any more, and must not hide why."""
    before = state(correct)

    def cancel(done: int, _total: int, _object: str) -> None:
        if done == 2:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    try:
        with pytest.raises(asyncio.CancelledError):
            await probe(engine, role=correct.role, progress=cancel)
    finally:
        await engine.dispose()

    assert state(correct) == before


@contextmanager
def app(correct: Correct) -> Generator[sa.Connection]:
    """A connection that logs in as the application's role, with what the owner did committed."""
    correct.change("ALTER ROLE {role} LOGIN PASSWORD 'app'")
    correct.database.owner.commit()
    url = correct.database.engine.url.set(username=correct.role, password="app")
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def test_the_role_itself_may_probe(correct: Correct) -> None:
    """Its rows are those that policies let it write."""
    with app(correct) as connection:
        report = probe_connection(connection, metadata=correct.metadata)

    assert report.role == correct.role
    assert (report.findings, report.not_proven) == ((), ())
    assert report.probed["control"] == "caught"


def test_what_the_role_may_not_write_is_not_proven(correct: Correct) -> None:
    with app(correct) as connection:
        correct.change("REVOKE INSERT ON account FROM {role}")
        correct.database.owner.commit()
        try:
            report = probe_connection(connection)
        finally:
            correct.change("GRANT INSERT ON account TO {role}")
            correct.database.owner.commit()

    assert report.findings == ()
    reasons = {(one.object, one.attack): one.reason for one in report.not_proven}
    assert "no INSERT" in reasons["public.account", "read"]
    assert "needs a row of public.account" in reasons["public.invoice", "read"]
    assert not report.ok


def test_in_a_session_that_never_set_a_tenant_rows_that_are_there_are_read(
    correct: Correct,
) -> None:
    """A setting that was never set is NULL, and once it was set it is empty for ever."""
    predicate = "current_setting('app.current_tenant', true) IS NULL"
    correct.change(
        f"INSERT INTO account VALUES ('{uuid4()}')",
        f"CREATE POLICY open ON account TO {{role}} USING ({predicate})",
        "DROP POLICY tenant_floor ON account",
    )
    correct.database.owner.commit()
    try:
        with app(correct) as connection:
            report = probe_connection(connection)
    finally:
        held = "(id = (SELECT NULLIF(current_setting('app.current_tenant', true), '')::uuid))"
        correct.change(
            "DELETE FROM account",
            "DROP POLICY open ON account",
            f"CREATE POLICY tenant_floor ON account AS RESTRICTIVE USING {held} WITH CHECK {held}",
        )
        correct.database.owner.commit()

    assert "probe-unscoped public.account" in {f"{one.id} {one.object}" for one in report.findings}


def test_without_temporary_tables_the_control_is_not_proven(correct: Correct) -> None:
    database = correct.database.url.database
    correct.change(f'REVOKE TEMPORARY ON DATABASE "{database}" FROM PUBLIC')
    correct.change("CREATE ROLE {role}_login", "GRANT {role} TO {role}_login")
    correct.change("SET LOCAL SESSION AUTHORIZATION {role}_login")

    report = correct.probe()

    assert report.findings == ()
    assert report.probed["control"] == "not_proven"
    assert [(one.object, one.attack) for one in report.not_proven] == [("control", "control")]
    assert "TEMPORARY" in report.not_proven[0].reason


def test_a_blind_attack_proves_nothing(correct: Correct, monkeypatch: Any) -> None:
    """An attack that the open table withstands, too, holds nowhere."""
    from mgf.sqlalchemy.audit._probe import _attacks
    from mgf.sqlalchemy.audit._probe._outcome import HELD

    monkeypatch.setitem(_attacks._ATTACKS, "read", lambda _field, _target: HELD)

    report = correct.probe()

    assert report.probed["control"] == "missed"
    unproven = {one.object for one in report.not_proven if one.attack == "read"}
    assert "public.invoice" in unproven
    assert "read" not in [
        name
        for one in report.probed["relations"].values()
        for name, out in one.items()
        if out == "held"
    ]


def test_a_locked_table_is_not_waited_for(correct: Correct) -> None:
    with correct.database.engine.connect() as other:
        other.exec_driver_sql("LOCK TABLE line IN EXCLUSIVE MODE")

        report = correct.probe()

    assert {one.object for one in report.not_proven} == {"public.line"}
    assert all("55P03" in one.reason for one in report.not_proven)


@pytest.mark.parametrize("way", ["probe", "audit"])
def test_no_statement_waits_longer_than_two_seconds_for_a_lock(correct: Correct, way: str) -> None:
    waits = set[str]()

    def ask(connection: sa.Connection, _cursor: object, statement: str, *_: object) -> None:
        if "lock_timeout" not in statement:
            cursor = connection.connection.cursor()
            cursor.execute("SHOW lock_timeout")
            waits.update(cursor.fetchone() or ())

    correct.change("SET LOCAL lock_timeout = '2s'")
    sa.event.listen(correct.database.owner, "after_cursor_execute", ask)
    try:
        getattr(correct, way)()
    finally:
        sa.event.remove(correct.database.owner, "after_cursor_execute", ask)

    assert waits == {"2s"}


@pytest.mark.skipif(URL_VARIABLE in os.environ, reason="the server is one of its own")
def test_an_autovacuum_at_work_gives_way() -> None:
    with TemporaryPostgres(settings={"autovacuum_naptime": "1s"}) as server:
        correct = Correct(Database(asyncio.run(new_database(server.url))))
        correct.database.run(
            f"GRANT TRUNCATE ON event_1 TO {correct.role}",
            "INSERT INTO event SELECT gen_random_uuid(), 1 FROM generate_series(1, 9999)",
            "DELETE FROM event",
            # Slow enough to be met at it: some 60 pages, with 0.4 s of sleep at each.
            "ALTER TABLE event_1 SET (autovacuum_vacuum_cost_delay = 100,"
            " autovacuum_vacuum_cost_limit = 1)",
        )
        for _ in range(600):
            if correct.database.ask(
                "SELECT EXISTS (SELECT FROM pg_stat_progress_vacuum"
                " WHERE relid = 'event_1'::regclass)"
            ):
                break
            time.sleep(0.1)

        report = correct.probe()

        asyncio.run(correct.database.dispose())
    assert report.not_proven == ()
    assert report.probed["relations"]["public.event_1"]["truncate"] == "leaked"


@pytest.mark.parametrize("way", ["probe", "audit"])
def test_a_table_that_nobody_may_read_now_is_an_error(correct: Correct, way: str) -> None:
    """PostgreSQL locks a table to print its policies."""
    with correct.database.engine.connect() as other:
        other.exec_driver_sql("LOCK TABLE line")

        with pytest.raises(DBAPIError) as caught:
            getattr(correct, way)()

    assert sqlstate(caught.value) == "55P03"


def test_under_another_columns_name_nothing_is_said_to_leak_or_to_hold(correct: Correct) -> None:
    report = correct.probe(tenant_column="org_id")

    assert report.findings == ()
    assert not report.ok
    assert ("public.invoice", "insert") in {(one.object, one.attack) for one in report.not_proven}
    assert "nothing-protected" in correct.ids(tenant_column="org_id")


def test_what_is_ignored_is_left_out_and_said(correct: Correct) -> None:
    correct.change(
        "ALTER VIEW numbers RESET (security_invoker)", "REVOKE SELECT ON all_numbers FROM {role}"
    )
    every = {f"probe-{name}": "staff alone" for name in ATTACKS}

    report = correct.probe(ignore={**every, "probe-read public.other": "nothing"})

    assert report.findings == ()
    assert report.ok
    assert report.ignored["probe-read"] == "staff alone"
    assert "probe-read public.other" not in report.ignored


def test_ignoring_takes_a_reason(correct: Correct) -> None:
    with pytest.raises(AppConfigError, match="without a reason"):
        correct.probe(ignore={"probe-read": ""})


def test_an_unknown_role_is_refused(correct: Correct) -> None:
    with pytest.raises(AppConfigError, match="no role 'nobody at all'"):
        correct.probe(role="nobody at all")


def test_a_role_that_the_login_cannot_become_is_refused(correct: Correct) -> None:
    correct.change("CREATE ROLE {role}_other", "SET LOCAL SESSION AUTHORIZATION {role}")

    with pytest.raises(AppConfigError, match=r"may not become .*GRANT"):
        correct.probe(role=f"{correct.role}_other")


def test_another_database_is_refused() -> None:
    engine = sa.create_engine("sqlite://")

    with engine.connect() as connection, pytest.raises(AppConfigError, match="PostgreSQL"):
        probe_connection(connection)
    engine.dispose()


def test_autocommit_is_refused(correct: Correct) -> None:
    engine = correct.database.engine.execution_options(isolation_level="AUTOCOMMIT")

    with engine.connect() as connection, pytest.raises(AppConfigError, match="AUTOCOMMIT"):
        probe_connection(connection)


async def test_a_scoped_connection_is_refused(correct: Correct) -> None:
    engine = create_engine(correct.database.url)
    try:
        async with engine.connect() as connection, tenant_connection(connection, uuid4()):
            with pytest.raises(AppConfigError, match="in a tenant's scope"):
                await probe(connection, role=correct.role)
    finally:
        await engine.dispose()


def test_reports_tell_no_values(correct: Correct) -> None:
    """Of a trigger that raises with a row's values, and rows that were copied."""
    donor = UUID(int=7)
    correct.change(
        f"INSERT INTO account VALUES ('{donor}')",
        f"INSERT INTO invoice (tenant_id, number) VALUES ('{donor}', 'secret-4711')",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE 'no %', NEW; END $$",
        "CREATE TRIGGER t BEFORE INSERT ON invoice FOR EACH ROW EXECUTE FUNCTION f()",
    )

    report = correct.probe(tenants=[donor])

    assert "public.invoice" in {one.object for one in report.not_proven}
    assert "P0001" in report.to_json()
    assert "secret-4711" not in report.to_json()
