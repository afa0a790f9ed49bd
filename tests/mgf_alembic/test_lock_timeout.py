"""A migration waits for a lock shortly, and is tried again where that leaves nothing behind."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command, op
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from harness.migrations import ACCOUNT, PROBE, Project, open_connections, rows
from harness.servers import run_sql
from mgf.alembic._retry import backoff
from mgf.sqlalchemy.errors import sqlstate

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy import URL

DRIVERS = ["postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2"]
VERSION = "SELECT version_num FROM alembic_version"
ALTER = 'op.add_column("account", sa.Column("name", sa.String))'
CONCURRENTLY = """
with op.get_context().autocommit_block():
    op.create_index("ix_account", "account", ["id"], postgresql_concurrently=True)
"""
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('ix_account')"
# Fails in the server, as a lock or a deadlock does, until it was tried so often. A sequence counts
# what no rollback takes back.
FAIL = """
op.execute('''DO $$ BEGIN
    IF nextval('tries') < {tries} THEN RAISE 'as asked' USING ERRCODE = '{code}'; END IF;
END $$''')
"""
TRIES = "SELECT last_value FROM tries"
COMMITS = ["op.get_bind().commit()", 'op.execute("COMMIT")']


@pytest.fixture(params=DRIVERS)
def url(request: pytest.FixtureRequest, database: URL) -> URL:
    return database.set(drivername=request.param)


@pytest.fixture
async def tries(database: URL) -> None:
    await run_sql(database, "CREATE SEQUENCE tries")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgf.alembic._retry._FIRST_PAUSE", 0.05)


@contextmanager
def in_use(database: URL, seconds: float) -> Generator[None]:
    """Have somebody write to the table, who commits after so many seconds."""
    engine = create_engine(database.set(drivername="postgresql+psycopg2"), poolclass=NullPool)
    wrote, leave = threading.Event(), threading.Event()

    def write() -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO account VALUES (1)"))
            wrote.set()
            leave.wait(seconds)

    with ThreadPoolExecutor(1) as executor:
        done = executor.submit(write)
        wrote.wait(10)
        try:
            yield
        finally:
            leave.set()
            done.result()


def setting_in_a_step(project: Project, **arguments: Any) -> list[Any]:
    found: list[Any] = []
    project.add(PROBE)
    project.upgrade(
        probe=lambda: found.append(op.get_bind().exec_driver_sql("SHOW lock_timeout").scalar()),
        **arguments,
    )
    return found


class TestSetting:
    def test_it_is_five_seconds_in_each_transaction(self, project: Project, url: URL) -> None:
        project.add(PROBE)

        assert setting_in_a_step(project, database_url=url) == ["5s", "5s"]

    @pytest.mark.parametrize("value", [None, 0])
    def test_it_can_be_turned_off(self, project: Project, url: URL, value: int | None) -> None:
        assert setting_in_a_step(project, database_url=url, lock_timeout=value) == ["0"]

    def test_it_is_in_seconds(self, project: Project, url: URL) -> None:
        assert setting_in_a_step(project, database_url=url, lock_timeout=0.25) == ["250ms"]

    def test_that_of_the_url_stays(self, project: Project, url: URL) -> None:
        url = url.update_query_dict({"options": "-c lock_timeout=7s"})

        assert setting_in_a_step(project, database_url=url, lock_timeout=2) == ["7s"]

    async def test_that_of_the_database_stays(
        self, project: Project, database: URL, url: URL
    ) -> None:
        await run_sql(database, f'ALTER DATABASE "{database.database}" SET lock_timeout = "7s"')

        assert setting_in_a_step(project, database_url=url) == ["7s"]

    def test_a_migration_may_set_its_own(self, project: Project, url: URL) -> None:
        project.add(f"""op.execute("SET LOCAL lock_timeout = '1s'")\n{PROBE}""")

        assert setting_in_a_step(project, database_url=url) == ["1s", "5s"]

    def test_an_autocommit_block_waits_as_long_as_it_takes(
        self, project: Project, database: URL, url: URL
    ) -> None:
        """CREATE INDEX CONCURRENTLY waits for older transactions, and would leave a broken one."""
        project.add(ACCOUNT)
        project.upgrade(url)
        project.add(CONCURRENTLY)

        with in_use(database, 1.5):
            project.upgrade(url, lock_timeout=0.2)

        assert rows(database, VALID) == [True]


class TestRetries:
    def test_a_migration_gives_up_waiting(self, project: Project, database: URL, url: URL) -> None:
        project.add(ACCOUNT)
        project.upgrade(url)
        project.add(f'op.create_table("lost", sa.Column("id", sa.Integer))\n{ALTER}')

        with in_use(database, 60), pytest.raises(DBAPIError) as caught:
            project.upgrade(url, lock_timeout=0.2, lock_retries=1)

        assert sqlstate(caught.value) == "55P03"
        assert rows(database, VERSION) == ["r1"]
        assert rows(database, "SELECT to_regclass('lost')") == [None]
        assert open_connections(database) == []

    def test_it_is_tried_again_until_the_lock_is_free(
        self, project: Project, database: URL, url: URL
    ) -> None:
        project.add(ACCOUNT)
        project.upgrade(url)
        project.add(ALTER)

        with in_use(database, 1.0):
            project.upgrade(url, lock_timeout=0.2)

        assert rows(database, VERSION) == ["r2"]
        assert rows(database, "SELECT name FROM account") == [None]

    @pytest.mark.usefixtures("tries")
    @pytest.mark.parametrize("code", ["55P03", "40P01"])
    def test_it_resumes_where_it_failed(
        self, project: Project, database: URL, url: URL, code: str
    ) -> None:
        project.add(ACCOUNT)
        project.add(FAIL.format(tries=3, code=code))
        project.add(ALTER)

        project.upgrade(url)

        assert rows(database, VERSION) == ["r3"]
        assert rows(database, TRIES) == [3]

    @pytest.mark.usefixtures("tries")
    @pytest.mark.parametrize("code", ["40001", "57014", "23505", "57P01"])
    def test_what_is_neither_lock_nor_deadlock_is_not_tried_again(
        self, project: Project, database: URL, url: URL, code: str
    ) -> None:
        project.add(FAIL.format(tries=2, code=code))

        with pytest.raises(DBAPIError):
            project.upgrade(url)

        assert rows(database, TRIES) == [1]

    @pytest.mark.usefixtures("tries")
    @pytest.mark.parametrize(("retries", "tried"), [(None, 1), (0, 1), (1, 2), (3, 4)])
    def test_it_is_tried_so_often(
        self, project: Project, database: URL, retries: int | None, tried: int
    ) -> None:
        project.add(FAIL.format(tries=9, code="55P03"))

        with pytest.raises(DBAPIError, match="as asked"):
            project.upgrade(database, lock_retries=retries)

        assert rows(database, TRIES) == [tried]

    @pytest.mark.usefixtures("tries")
    @pytest.mark.parametrize("timeout", [None, 600])
    def test_retries_need_no_migrator_lock(
        self, project: Project, database: URL, timeout: float | None
    ) -> None:
        project.add(FAIL.format(tries=2, code="55P03"))

        project.upgrade(database, migrator_timeout=timeout)

        assert rows(database, VERSION) == ["r1"]

    @pytest.mark.usefixtures("tries")
    def test_in_one_transaction_all_is_tried_again(
        self, project: Project, database: URL, url: URL
    ) -> None:
        project.add(ACCOUNT)
        project.add(FAIL.format(tries=2, code="55P03"))

        project.upgrade(url, transaction_per_migration=False)

        assert rows(database, VERSION) == ["r2"]

    async def test_it_waits_for_the_version_table_too(
        self, project: Project, database: URL
    ) -> None:
        project.add(ACCOUNT)
        project.upgrade(database)
        project.add(ALTER)
        engine = create_engine(database.set(drivername="postgresql+psycopg2"), poolclass=NullPool)

        with engine.connect() as connection:
            connection.execute(text("LOCK TABLE alembic_version"))
            release = threading.Timer(1.0, connection.rollback)
            release.start()
            project.upgrade(database, lock_timeout=0.2)
            release.join()

        assert rows(database, VERSION) == ["r2"]

    @pytest.mark.usefixtures("tries")
    def test_the_log_says_so(
        self, project: Project, database: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        project.add(FAIL.format(tries=2, code="40P01"))

        project.upgrade(database)

        (warning,) = [one for one in caplog.records if one.levelno == logging.WARNING]
        assert warning.name == "mgf.alembic"
        assert "got no lock in time (40P01), the next try follows in 0.0 s" in warning.message

    @pytest.mark.parametrize("several", [False, True])
    def test_callbacks_of_the_caller_are_called(
        self, project: Project, database: URL, several: bool
    ) -> None:
        project.add(ACCOUNT)
        called: list[str] = []

        def note(step: Any, **_: Any) -> None:
            called.append(step.up_revision_id)

        project.upgrade(database, on_version_apply=[note] if several else note)

        assert called == ["r1"]


@pytest.mark.usefixtures("tries")
class TestNoRetry:
    """What cannot begin again where it failed, or would end elsewhere, is left as it is."""

    def test_a_step_with_an_autocommit_block(
        self, project: Project, database: URL, url: URL
    ) -> None:
        project.add(f"{ACCOUNT}\n{CONCURRENTLY}\n{FAIL.format(tries=2, code='55P03')}")

        with pytest.raises(DBAPIError, match="as asked"):
            project.upgrade(url)

        assert rows(database, TRIES) == [1]

    @pytest.mark.parametrize("one_by_one", [True, False])
    @pytest.mark.parametrize("commit", COMMITS)
    def test_a_step_that_committed_by_itself(
        self, project: Project, database: URL, url: URL, commit: str, one_by_one: bool
    ) -> None:
        project.add("pass")
        project.add(f"{ACCOUNT}\n{commit}\n{FAIL.format(tries=2, code='55P03')}")

        with pytest.raises(DBAPIError, match="as asked"):
            project.upgrade(url, transaction_per_migration=one_by_one)

        assert rows(database, TRIES) == [1]
        assert rows(database, VERSION) == ["r1"]

    def test_but_one_that_committed_what_was_before_it(
        self, project: Project, database: URL, url: URL
    ) -> None:
        project.add(ACCOUNT)
        project.add(f"op.get_bind().commit()\n{FAIL.format(tries=2, code='55P03')}")

        project.upgrade(url, transaction_per_migration=False)

        assert rows(database, VERSION) == ["r2"]

    def test_but_a_step_behind_one_that_had_one(
        self, project: Project, database: URL, url: URL
    ) -> None:
        project.add(ACCOUNT)
        project.add(CONCURRENTLY)
        project.add(FAIL.format(tries=2, code="55P03"))

        project.upgrade(url)

        assert rows(database, VERSION) == ["r3"]

    def test_a_number_of_steps_of_which_one_is_done(
        self, project: Project, database: URL, url: URL
    ) -> None:
        """Two steps up from there would be one too many."""
        project.add(ACCOUNT)
        project.add(FAIL.format(tries=2, code="55P03"))
        project.add(ALTER)

        with pytest.raises(DBAPIError, match="as asked"):
            project.run(command.upgrade, "+2", database_url=url)
        assert rows(database, VERSION) == ["r1"]

    def test_a_number_of_steps_that_reaches_beyond_the_last(
        self, project: Project, database: URL
    ) -> None:
        project.add(ACCOUNT)
        project.add(FAIL.format(tries=2, code="55P03"))

        with pytest.raises(DBAPIError, match="as asked"):
            project.run(command.upgrade, "+2", database_url=database)
        assert rows(database, TRIES) == [1]

    def test_but_a_number_of_steps_of_which_none_is_done(
        self, project: Project, database: URL
    ) -> None:
        project.add(FAIL.format(tries=2, code="55P03"))
        project.add(ACCOUNT)

        project.run(command.upgrade, "+2", database_url=database)

        assert rows(database, VERSION) == ["r2"]

    def test_steps_down_of_which_one_is_done(self, project: Project, database: URL) -> None:
        project.add("pass")
        project.add("pass", FAIL.format(tries=2, code="55P03"))
        project.add("pass")
        project.upgrade(database)

        with pytest.raises(DBAPIError, match="as asked"):
            project.run(command.downgrade, "-2", database_url=database)
        assert rows(database, VERSION) == ["r2"]

    def test_a_connection_that_is_handed_over(self, project: Project, database: URL) -> None:
        project.add(FAIL.format(tries=2, code="55P03"))
        engine = create_engine(database.set(drivername="postgresql+psycopg2"), poolclass=NullPool)

        with engine.connect() as connection, pytest.raises(DBAPIError, match="as asked"):
            project.upgrade(None, connection=connection)
        assert rows(database, TRIES) == [1]


def test_steps_that_were_done_stay_when_one_fails(
    project: Project, database: URL, url: URL
) -> None:
    project.add(ACCOUNT)
    project.add("raise LookupError")

    with pytest.raises(LookupError):
        project.upgrade(url)
    assert rows(database, VERSION) == ["r1"]


def test_pauses_grow_to_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    longest = [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]

    for pauses in (list(backoff(10)) for _ in range(100)):
        assert all(most / 2 <= one <= most for one, most in zip(pauses, longest, strict=True))
