"""Of several processes that migrate one database, one does, and the others find it done."""

from __future__ import annotations

import hashlib
import math
import socket
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command, op
from sqlalchemy import MetaData, NullPool, Pool, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from harness.migrations import (
    ACCOUNT,
    MIGRATORS,
    PROBE,
    SLEEP,
    SLEEPING,
    Project,
    open_connections,
    rows,
    wait_for,
)
from harness.pgbouncer import PROGRAM, pgbouncer
from harness.servers import run_sql
from mgf.alembic.errors import MigrationLockError
from mgf.common.exceptions import AppConfigError, OperationError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from sqlalchemy import URL

DRIVERS = ["postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2"]

HOLDERS = (
    "SELECT pid FROM pg_locks JOIN pg_database AS d ON d.oid = database "
    "WHERE datname = current_database() AND locktype = 'advisory' AND granted"
)
# Has asked at least once, and rests.
WAITING = f"{MIGRATORS} AND query LIKE 'ROLLBACK%' AND state = 'idle' AND pid NOT IN ({HOLDERS})"
IN_THE_WAY = f"{MIGRATORS} AND state <> 'active' AND backend_xmin IS NOT NULL"
VERSION = "SELECT version_num FROM alembic_version"
# A sequence counts what no rollback takes back.
COUNTED = f"""
op.execute("SELECT nextval('runs')")
op.execute("SELECT pg_sleep(1)")
{ACCOUNT}
"""
CONCURRENTLY = """
with op.get_context().autocommit_block():
    op.create_index("ix_account", "account", ["id"], postgresql_concurrently=True)
"""
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('ix_account')"
LOSE_THE_LOCK = f'op.execute("SELECT pg_terminate_backend(pid) FROM ({HOLDERS}) AS holder")'
LOSE_EVERYTHING = """
op.execute(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() ORDER BY pid = pg_backend_pid()"
)
"""
LOGGED = """
import logging, os
from mgf.alembic import configure_env

logging.basicConfig(level=logging.INFO)
configure_env(database_url=os.environ["DATABASE_URL"], target_metadata=None)
"""


@pytest.fixture(params=DRIVERS)
def url(request: pytest.FixtureRequest, database: URL) -> URL:
    return database.set(drivername=request.param)


def seen_in_a_step(project: Project, sql: str, **arguments: Any) -> list[Any]:
    """What a query returns while a migration runs."""
    found: list[Any] = []
    project.add(PROBE)
    project.upgrade(
        probe=lambda: found.extend(op.get_bind().exec_driver_sql(sql).scalars()), **arguments
    )
    return found


@contextmanager
def lock_held(database: URL, table: str = "alembic_version") -> Generator[None]:
    """Hold the lock by its number, which no release may change: old and new ones meet."""
    name = f"{database.database}\0{table}".encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), signed=True)
    engine = create_engine(database.set(drivername="postgresql+psycopg2"), poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        connection.commit()
        yield


class TestSeveralProcesses:
    async def test_one_of_four_migrates_and_all_succeed(
        self, project: Project, database: URL, url: URL
    ) -> None:
        await run_sql(database, "CREATE SEQUENCE runs")
        project.add(COUNTED)
        project.add(CONCURRENTLY)

        with ExitStack() as stack:
            started = [project.started("upgrade", "head", database_url=url) for _ in range(4)]
            processes = [stack.enter_context(one) for one in started]
            errors = [process.communicate(timeout=120)[1] for process in processes]

        assert ([process.returncode for process in processes], errors) == ([0] * 4, [""] * 4)
        assert rows(database, "SELECT last_value FROM runs") == [1]
        assert rows(database, VERSION) == ["r2"]
        assert rows(database, VALID) == [True]
        assert open_connections(database) == []

    def test_who_waits_or_holds_the_lock_has_no_snapshot(
        self, project: Project, database: URL, url: URL
    ) -> None:
        """CREATE INDEX CONCURRENTLY would wait for it, and it for the index."""
        project.add(SLEEP)
        options = {"options": "-c default_transaction_isolation=serializable"}
        url = url.update_query_dict(options)

        with project.started("upgrade", "head", database_url=url):
            wait_for(database, SLEEPING)
            with project.started("upgrade", "head", database_url=url):
                wait_for(database, WAITING)
                looks = [set(rows(database, IN_THE_WAY)) for _ in range(20)]

        # One that asks has a snapshot for the moment, as any query.
        assert set.intersection(*looks) == set()

    @pytest.mark.skipif(PROGRAM is None, reason="needs the program pgbouncer")
    async def test_through_a_pooler_all_succeed_and_none_leaves_the_lock_there(
        self, project: Project, database: URL, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        await run_sql(database, "CREATE SEQUENCE runs")
        project.add(COUNTED)
        project.add(CONCURRENTLY)
        project.add(SLEEP)

        async with pgbouncer(database, tmp_path_factory.mktemp("pooler")) as url:
            with ExitStack() as stack:
                started = [project.started("upgrade", "r2", database_url=url) for _ in range(3)]
                processes = [stack.enter_context(one) for one in started]
                errors = [process.communicate(timeout=120)[1] for process in processes]
            assert ([process.returncode for process in processes], errors) == ([0] * 3, [""] * 3)
            assert rows(database, HOLDERS) == []
            with project.started("upgrade", "head", database_url=url) as process:
                wait_for(database, SLEEPING)
                assert rows(database, HOLDERS) != []
                process.kill()
            wait_for(database, f"SELECT 1 WHERE NOT EXISTS ({HOLDERS})")

        assert rows(database, "SELECT last_value FROM runs") == [1]
        assert rows(database, VALID) == [True]

    @pytest.mark.skipif(PROGRAM is None, reason="needs the program pgbouncer")
    async def test_a_pooler_with_a_single_connection_is_named(
        self,
        project: Project,
        database: URL,
        url: URL,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("mgf.alembic._lock._REMIND", 0.1)
        project.add(ACCOUNT)

        folder = tmp_path_factory.mktemp("pooler")
        async with pgbouncer(database, folder, connections=1, patience=5) as pooler:
            query = pooler.query if "asyncpg" in url.drivername else {}
            pooled = url.set(port=pooler.port, database=pooler.database, query=query)
            with pytest.raises(
                MigrationLockError, match=r"got no connection beside .* two at once"
            ):
                project.upgrade(pooled)
            assert "waits for a connection beside" in caplog.text
            project.upgrade(pooled, migrator_timeout=None)

        assert rows(database, VERSION) == ["r1"]

    def test_the_log_says_who_migrates(self, project: Project, database: URL) -> None:
        project.write("migrations/env.py", LOGGED)
        project.add(SLEEP)

        with project.started("upgrade", "head", database_url=database):
            wait_for(database, SLEEPING)
            (holder,) = rows(database, HOLDERS)
            with project.started("upgrade", "head", database_url=database) as waiting:
                wait_for(database, WAITING)
                waiting.terminate()
                _, log = waiting.communicate()

        who = f"server process {holder} (mgf-alembic on {socket.gethostname()} from"
        assert f"INFO:mgf.alembic:waiting for {who}" in log

    def test_a_killed_migrator_leaves_neither_lock_nor_statement(
        self, project: Project, database: URL, url: URL
    ) -> None:
        project.add(SLEEP)
        with project.started("upgrade", "head", database_url=url) as process:
            wait_for(database, SLEEPING)
            process.kill()
            process.communicate()
            began = time.monotonic()

            project.run(command.stamp, "head", database_url=url, migrator_timeout=20)

        assert open_connections(database) == []
        assert time.monotonic() - began < 20


class TestTimeout:
    @pytest.mark.parametrize("timeout", [0, 0.7])
    def test_who_waited_long_enough_is_told_who_migrates(
        self, project: Project, database: URL, url: URL, timeout: float
    ) -> None:
        project.add(ACCOUNT)

        with lock_held(database):
            (holder,) = rows(database, HOLDERS)
            began = time.monotonic()
            with pytest.raises(MigrationLockError, match=f"process {holder} .*still migrates"):
                project.upgrade(url, migrator_timeout=timeout)

        assert timeout <= time.monotonic() - began < timeout + 5
        assert open_connections(database) == []

    def test_it_is_an_operation_error(self) -> None:
        assert issubclass(MigrationLockError, OperationError)

    def test_none_takes_no_lock(self, project: Project, database: URL, url: URL) -> None:
        with lock_held(database):
            assert (
                len(seen_in_a_step(project, HOLDERS, database_url=url, migrator_timeout=None)) == 1
            )

    def test_it_may_be_for_ever(self, project: Project, database: URL) -> None:
        assert seen_in_a_step(project, HOLDERS, database_url=database, migrator_timeout=math.inf)

    @pytest.mark.parametrize("name", ["migrator_timeout", "lock_timeout", "lock_retries"])
    @pytest.mark.parametrize("value", [-1, math.nan])
    def test_a_negative_one_is_refused(self, project: Project, name: str, value: float) -> None:
        with pytest.raises(AppConfigError, match=f"configure_env.. got {name}={value}; give 0"):
            project.upgrade("sqlite://", **{name: value})


class TestScope:
    """The lock is about one version table, and about what changes its revisions."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda config: command.upgrade(config, "head"),
            lambda config: command.upgrade(config, "+1"),
            lambda config: command.downgrade(config, "-1"),
            lambda config: command.downgrade(config, "base"),
            lambda config: command.stamp(config, "r1"),
        ],
        ids=["upgrade head", "upgrade +1", "downgrade -1", "downgrade base", "stamp"],
    )
    def test_what_changes_revisions_waits(
        self, project: Project, database: URL, change: Callable[..., Any]
    ) -> None:
        project.add("pass")

        with lock_held(database), pytest.raises(MigrationLockError):
            project.run(change, database_url=database, migrator_timeout=0)

    @pytest.mark.parametrize(
        "look",
        [
            command.current,
            command.check,
            command.history,
            lambda config: command.revision(config, autogenerate=True),
        ],
        ids=["current", "check", "history", "revision"],
    )
    def test_what_only_looks_does_not_wait(
        self, project: Project, database: URL, look: Callable[..., Any]
    ) -> None:
        arguments = {"database_url": database, "migrator_timeout": 0, "target_metadata": MetaData()}

        with lock_held(database):
            project.run(look, **arguments)

    def test_another_version_table_is_another_lock(self, project: Project, database: URL) -> None:
        project.add(ACCOUNT)

        with lock_held(database, "others"):
            project.upgrade(database, migrator_timeout=0)
        with lock_held(database, "others"), pytest.raises(MigrationLockError):
            project.upgrade(database, version_table="others", migrator_timeout=0)

    async def test_its_schema_is_part_of_the_name(self, project: Project, database: URL) -> None:
        await run_sql(database, "CREATE SCHEMA own")
        project.add(ACCOUNT)

        with lock_held(database, "own.alembic_version"), pytest.raises(MigrationLockError):
            project.upgrade(database, version_table_schema="own", migrator_timeout=0)

    def test_a_connection_that_is_handed_over_takes_none(
        self, project: Project, database: URL
    ) -> None:
        engine = create_engine(database.set(drivername="postgresql+psycopg2"), poolclass=NullPool)
        with engine.connect() as connection:
            assert seen_in_a_step(project, HOLDERS, database_url=None, connection=connection) == []

    def test_other_databases_take_none(self, project: Project, tmp_path: Path) -> None:
        project.add(ACCOUNT)

        project.upgrade(f"sqlite:///{tmp_path}/a.db", migrator_timeout=0)


class TestLoss:
    @pytest.mark.parametrize(
        "migration", [ACCOUNT, 'op.execute("SELECT 1/0")', "raise LookupError"]
    )
    def test_the_lock_is_free_after_a_run(
        self, project: Project, database: URL, url: URL, migration: str
    ) -> None:
        project.add(migration)

        with suppress(LookupError, DBAPIError):
            project.upgrade(url)

        assert open_connections(database) == []
        assert rows(database, HOLDERS) == []

    def test_it_is_free_before_its_connection_is_closed(
        self, project: Project, database: URL, url: URL
    ) -> None:
        """A pooler may keep it, and a server process ends a moment after its client."""
        project.add(ACCOUNT)
        found: list[Any] = []
        looking = False

        def look(*_: Any) -> None:
            nonlocal looking
            if not looking:  # its own connection is closed as well
                looking = True
                found.append(rows(database, HOLDERS))
                looking = False

        event.listen(Pool, "close", look)
        try:
            project.upgrade(url)
        finally:
            event.remove(Pool, "close", look)

        assert len(found) == 2
        assert found[1] == []

    def test_without_the_lock_no_step_commits(
        self, project: Project, database: URL, url: URL
    ) -> None:
        """Another migrator may have begun when the connection that held it is gone."""
        project.add(ACCOUNT)
        project.add(f'op.create_table("lost", sa.Column("id", sa.Integer))\n{LOSE_THE_LOCK}')

        with pytest.raises(MigrationLockError, match="was lost, so this step was rolled back"):
            project.upgrade(url)

        assert rows(database, VERSION) == ["r1"]
        assert rows(database, "SELECT to_regclass('lost')") == [None]
        assert open_connections(database) == []

    def test_a_server_that_ends_both_connections_fails_the_migration(
        self, project: Project, database: URL, url: URL
    ) -> None:
        project.add(f"{ACCOUNT}\n{LOSE_EVERYTHING}")

        with pytest.raises(DBAPIError):
            project.upgrade(url)

        assert rows(database, "SELECT to_regclass('account')") == [None]
        assert open_connections(database) == []

    @pytest.mark.parametrize(
        "setting", ["idle_session_timeout", "idle_in_transaction_session_timeout"]
    )
    def test_a_server_that_ends_idle_sessions_leaves_it(
        self, project: Project, database: URL, url: URL, setting: str
    ) -> None:
        project.add(f'op.execute("SET LOCAL {setting} = 0")\nimport time\ntime.sleep(3)')

        project.upgrade(url.update_query_dict({"options": f"-c {setting}=2000"}))

        assert rows(database, VERSION) == ["r1"]

    def test_the_application_name_of_the_url_stays(self, project: Project, database: URL) -> None:
        names = f"SELECT application_name FROM pg_stat_activity WHERE pid IN ({HOLDERS})"
        url = database.update_query_dict({"application_name": "shop"})

        assert seen_in_a_step(project, names, database_url=url) == ["shop"]
