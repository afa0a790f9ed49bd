"""Every driver reaches its database, by the way that it needs, and lets go of it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from alembic import op
from sqlalchemy import URL, Dialect, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from harness.migrations import ACCOUNT, PROBE, Project, open_connections, rows, text_of
from harness.servers import run_sql

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Pool

DRIVERS = ["postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2"]
SQLITE = ["sqlite", "sqlite+pysqlite", "sqlite+aiosqlite"]
every_driver = pytest.mark.parametrize("driver", DRIVERS)
every_sqlite = pytest.mark.parametrize("driver", SQLITE)

# As autogenerate writes it for SQLite: the table is made anew, and the old one dropped.
ALTER = """
with op.batch_alter_table("account") as batch:
    batch.alter_column("name", type_=sa.String(50), nullable=False)
"""
FAMILY = """
op.create_table(
    "account", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(9))
)
op.create_table(
    "note",
    sa.Column("account_id", sa.Integer, sa.ForeignKey("account.id", ondelete="CASCADE")),
)
op.execute("INSERT INTO account VALUES (1, 'one')")
op.execute("INSERT INTO note VALUES (1)")
"""


def dialect_of(project: Project, database_url: str | URL) -> Dialect:
    """The dialect that a migration finds itself on."""
    found: list[Dialect] = []
    project.add(PROBE)
    project.upgrade(database_url, probe=lambda: found.append(op.get_bind().dialect))
    (dialect,) = found
    return dialect


@every_driver
def test_it_migrates_and_leaves_no_connection(project: Project, database: URL, driver: str) -> None:
    project.add(ACCOUNT)

    project.upgrade(database.set(drivername=driver))

    assert rows(database, "SELECT version_num FROM alembic_version") == ["r1"]
    assert open_connections(database) == []


@every_driver
def test_a_failed_migration_leaves_no_connection(
    project: Project, database: URL, driver: str
) -> None:
    project.add('op.execute("SELECT 1/0")')

    with pytest.raises(DBAPIError, match="division by zero"):
        project.upgrade(database.set(drivername=driver))
    assert open_connections(database) == []


@every_driver
def test_a_failed_migration_is_rolled_back(project: Project, database: URL, driver: str) -> None:
    project.add(f'{ACCOUNT}\nop.execute("SELECT 1/0")')

    with pytest.raises(DBAPIError):
        project.upgrade(database.set(drivername=driver))
    assert rows(database, "SELECT to_regclass('account')") == [None]


@every_driver
@pytest.mark.parametrize("migration", [ACCOUNT, "raise LookupError"])
def test_the_engine_is_disposed(
    project: Project, database: URL, driver: str, migration: str
) -> None:
    project.add(migration)
    disposed: list[str] = []

    def note(engine: Engine) -> None:
        disposed.append(engine.url.drivername)

    event.listen(Engine, "engine_disposed", note)
    try:
        with suppress(LookupError):
            project.upgrade(database.set(drivername=driver))
    finally:
        event.remove(Engine, "engine_disposed", note)
    assert disposed == [driver]


@every_driver
def test_an_error_shows_no_bound_value(project: Project, database: URL, driver: str) -> None:
    project.add("""op.execute(sa.text("SELECT length(:s)/0").bindparams(s="a secret"))""")

    with pytest.raises(DBAPIError, match="SQL parameters hidden") as caught:
        project.upgrade(database.set(drivername=driver))
    assert "secret" not in str(caught.value)


@every_driver
def test_the_driver_that_is_named_runs(project: Project, database: URL, driver: str) -> None:
    dialect = dialect_of(project, database.set(drivername=driver))

    assert dialect.driver == driver.partition("+")[2]
    assert dialect.is_async is (driver != "postgresql+psycopg2")


@every_driver
def test_nothing_is_pooled(project: Project, database: URL, driver: str) -> None:
    pools: list[Pool] = []
    project.add(PROBE)

    project.upgrade(
        database.set(drivername=driver), probe=lambda: pools.append(op.get_bind().engine.pool)
    )

    assert isinstance(pools[0], NullPool)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_without_a_driver_the_async_one_runs(project: Project, database: URL, scheme: str) -> None:
    """As for `mgf.sqlalchemy.create_engine`, whichever driver SQLAlchemy itself would take."""
    assert dialect_of(project, text_of(database.set(drivername=scheme))).driver == "asyncpg"


@pytest.mark.parametrize("scheme", ["postgres+psycopg2", "postgresql+psycopg2"])
def test_a_sync_url_is_read_as_platforms_write_it(
    project: Project, database: URL, scheme: str
) -> None:
    url = f' "{text_of(database.set(drivername=scheme))}"\n'

    assert dialect_of(project, url).driver == "psycopg2"


@every_sqlite
def test_sqlite_migrates_a_file(project: Project, tmp_path: Path, driver: str) -> None:
    project.add(ACCOUNT)
    url = URL.create(driver, database=str(tmp_path / "a.db"))

    project.upgrade(url)

    assert rows(url.set(drivername="sqlite"), "SELECT version_num FROM alembic_version") == ["r1"]


def test_sqlite_without_a_driver_is_synchronous(project: Project, tmp_path: Path) -> None:
    assert dialect_of(project, f"sqlite:///{tmp_path}/a.db").driver == "pysqlite"


@every_sqlite
def test_a_batch_operation_keeps_the_rows_that_refer_to_the_table(
    project: Project, tmp_path: Path, driver: str
) -> None:
    """With foreign keys on, dropping the old table would cascade to them."""
    url = URL.create(driver, database=str(tmp_path / "a.db"))
    project.add(FAMILY)
    project.add(ALTER)

    project.upgrade(url)

    assert rows(url.set(drivername="sqlite"), "SELECT account_id FROM note") == [1]


@every_driver
async def test_a_password_may_hold_any_character(
    project: Project, database: URL, driver: str
) -> None:
    """A percent sign would be a reference for the parser of alembic.ini."""
    password = "50%s:@/?#%(here)s"
    role = f"role_{database.database}"
    await run_sql(
        database,
        f"CREATE ROLE {role} LOGIN PASSWORD '{password}'",
        f"GRANT ALL ON SCHEMA public TO {role}",
    )
    found: list[Any] = []
    project.add(PROBE)

    project.upgrade(
        text_of(database.set(drivername=driver, username=role, password=password)),
        probe=lambda: found.append(op.get_bind().exec_driver_sql("SELECT current_user").scalar()),
    )

    assert found == [role]


@every_driver
def test_the_url_carries_settings_of_the_server(
    project: Project, database: URL, driver: str
) -> None:
    found: list[Any] = []
    project.add(PROBE)

    project.upgrade(
        f"{text_of(database.set(drivername=driver))}?options=-c%20work_mem%3D5MB",
        probe=lambda: found.append(op.get_bind().exec_driver_sql("SHOW work_mem").scalar()),
    )

    assert found == ["5MB"]


@every_driver
def test_an_autocommit_block_commits(project: Project, database: URL, driver: str) -> None:
    """CREATE INDEX CONCURRENTLY refuses to run in any transaction."""
    project.add(ACCOUNT)
    project.add(
        """
        with op.get_context().autocommit_block():
            op.create_index("ix_account", "account", ["id"], postgresql_concurrently=True)
        """
    )

    project.upgrade(database.set(drivername=driver), transaction_per_migration=True)

    assert rows(
        database, "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('ix_account')"
    ) == [True]


@pytest.mark.parametrize("one_by_one", [True, False])
@every_driver
def test_what_follows_a_commit_of_a_migration_is_not_lost(
    project: Project, database: URL, driver: str, one_by_one: bool
) -> None:
    project.add(ACCOUNT)
    project.add('op.get_bind().commit()\nop.create_table("late", sa.Column("id", sa.Integer))')

    project.upgrade(database.set(drivername=driver), transaction_per_migration=one_by_one)

    assert rows(database, "SELECT version_num FROM alembic_version") == ["r2"]
    assert rows(database, "SELECT to_regclass('late')::text") == ["late"]


@pytest.mark.parametrize("is_open", [False, True])
def test_a_commit_of_a_migration_on_a_connection_that_is_handed_over(
    project: Project, database: URL, is_open: bool
) -> None:
    """What follows is committed as everything is: by who began."""
    project.add('op.get_bind().commit()\nop.create_table("late", sa.Column("id", sa.Integer))')
    engine = create_engine(database.set(drivername="postgresql+psycopg2"), poolclass=NullPool)

    with engine.connect() as connection:
        if is_open:
            connection.begin()
        project.upgrade(None, connection=connection)
        assert connection.in_transaction() is is_open

    late = None if is_open else "late"
    assert rows(database, "SELECT to_regclass('late')::text") == [late]
