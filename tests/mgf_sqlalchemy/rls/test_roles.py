"""The role that an application connects as is made so that policies hold it."""

from __future__ import annotations

import asyncio
import logging
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy import MetaData, Table

from harness.schemas import key, tenant_id
from harness.servers import dsn
from mgf.common.exceptions import AppConfigError, AppError
from mgf.sqlalchemy.rls import (
    Grant,
    compare_protection,
    ensure_app_role,
    expected_protection,
    protect_metadata,
    read_protection,
    tenant_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.schemas import Database

PASSWORD = 'it\'s a "secret" \\ %s $$ :x'
ATTRIBUTES = (
    "SELECT concat_ws(' ', rolcanlogin, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, "
    "rolreplication) FROM pg_roles WHERE rolname = :name"
)


@pytest.fixture
def name(database: Database) -> Iterator[str]:
    """A name that no role has; a role of it is dropped afterwards."""
    name = f'Ro"le % {uuid4().hex}'
    yield name
    database.owner.rollback()
    database.run("RESET ROLE")
    if database.ask("SELECT 1 FROM pg_roles WHERE rolname = :name", name=name):
        database.run(f"DROP OWNED BY {quoted(name)}", f"DROP ROLE {quoted(name)}")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def ensure(database: Database, name: str, **options: object) -> None:
    ensure_app_role(database.owner, name, **options)  # type: ignore[arg-type]  # passed on
    database.owner.commit()


def attributes(database: Database, name: str) -> str:
    return str(database.ask(ATTRIBUTES, name=name))


def test_it_may_log_in_and_nothing_else(database: Database, name: str) -> None:
    ensure(database, name)

    assert attributes(database, name) == "t f f f f f"


def test_a_role_to_be_a_member_of_may_not_log_in(database: Database, name: str) -> None:
    ensure(database, name, login=False)

    assert attributes(database, name) == "f f f f f f"


def test_a_second_time_nothing_is_sent(database: Database, name: str) -> None:
    ensure(database, name)
    seen: list[str] = []
    sa.event.listen(database.owner, "before_cursor_execute", lambda *event: seen.append(event[2]))

    ensure(database, name)

    assert [one for one in seen if "ROLE" in one or "GRANT" in one] == []


@pytest.mark.parametrize(
    "attribute", ["BYPASSRLS", "CREATEROLE", "CREATEDB", "REPLICATION", "NOLOGIN"]
)
def test_what_is_wrong_is_put_right(database: Database, name: str, attribute: str) -> None:
    ensure(database, name)
    database.run(f"ALTER ROLE {quoted(name)} {attribute}")

    ensure(database, name)

    assert attributes(database, name) == "t f f f f f"


async def test_it_logs_in_with_its_password(database: Database, name: str) -> None:
    ensure(database, name, password="another")
    ensure(database, name, password=PASSWORD)

    url = dsn(database.url)
    connection = await asyncpg.connect(url, user=name, password=PASSWORD)
    assert await connection.fetchval("SELECT current_user") == name
    await connection.close()


def test_a_password_that_is_there_stays(database: Database, name: str) -> None:
    stored = "SELECT rolpassword FROM pg_authid WHERE rolname = :name"
    ensure(database, name, password=PASSWORD)
    before = database.ask(stored, name=name)

    ensure(database, name)

    assert before.startswith("SCRAM-SHA-256$4096:")
    assert database.ask(stored, name=name) == before


@pytest.mark.parametrize("password", ["", "pässword", "pass\nword", "pass\0word"])
def test_a_password_that_could_be_read_in_two_ways_is_refused(
    database: Database, name: str, password: str
) -> None:
    with pytest.raises(AppConfigError, match="other than printable ASCII") as error:
        ensure_app_role(database.owner, name, password=password)
    assert "word" not in str(error.value).replace("password", "")


def test_the_password_is_in_no_statement(
    database: Database, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        engine = sa.create_engine(database.engine.url, echo="debug")
        with engine.begin() as connection:
            ensure_app_role(connection, name, password=PASSWORD)
        engine.dispose()

    assert "CREATE ROLE" in caplog.text
    assert "secret" not in caplog.text


def test_an_error_shows_neither_password_nor_verifier(database: Database, name: str) -> None:
    database.owner.exec_driver_sql("SET ROLE app")

    with pytest.raises(AppConfigError, match="may not make or change role") as error:
        ensure_app_role(database.owner, name, password=PASSWORD)
    text = "".join(traceback.format_exception(error.value))
    assert "secret" not in text
    assert "SCRAM" not in text
    assert error.value.__context__ is None  # SQLAlchemy's error, which shows the statement


def test_a_role_that_may_not_repair_says_so(database: Database, name: str) -> None:
    ensure(database, name)
    database.run(f"ALTER ROLE {quoted(name)} BYPASSRLS", "SET ROLE app")

    with pytest.raises(AppConfigError, match="may not make or change role"):
        ensure_app_role(database.owner, name)


def test_a_refusal_leaves_the_transaction_usable(database: Database, name: str) -> None:
    database.owner.exec_driver_sql("SET ROLE app")
    with suppress(AppConfigError):
        ensure_app_role(database.owner, name)

    assert database.owner.exec_driver_sql("SELECT current_user").scalar() == "app"


def test_a_superuser_is_left_alone(database: Database, name: str) -> None:
    database.run(f"CREATE ROLE {quoted(name)} SUPERUSER")

    with pytest.raises(AppConfigError, match="is a superuser, whom no policy holds"):
        ensure_app_role(database.owner, name)
    assert attributes(database, name) == "f t f f f f"


def test_the_connection_s_own_role_is_refused(database: Database) -> None:
    with pytest.raises(AppConfigError, match="'postgres' is the one that this connection has"):
        ensure_app_role(database.owner, "postgres")


@pytest.mark.parametrize("name", ["", "public", "x" * 64])
def test_a_name_that_is_none_is_refused(database: Database, name: str) -> None:
    with pytest.raises(AppConfigError, match="name"):
        ensure_app_role(database.owner, name)


def test_a_member_of_a_role_that_no_policy_holds_is_refused(database: Database, name: str) -> None:
    database.run(f"CREATE ROLE {quoted(name)} IN ROLE postgres")

    with pytest.raises(AppConfigError, match="is a member of 'postgres'"):
        ensure_app_role(database.owner, name)


def test_it_may_connect(database: Database, name: str) -> None:
    database.run(f'REVOKE CONNECT ON DATABASE "{database.url.database}" FROM PUBLIC')
    ensure(database, name)

    may = "SELECT has_database_privilege(:name, current_database(), 'CONNECT')"
    assert database.ask(may, name=name) is True


def test_in_autocommit_it_is_made_as_well(database: Database, name: str) -> None:
    engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        ensure_app_role(connection, name, password=PASSWORD)

    assert attributes(database, name) == "t f f f f f"


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "AUTOCOMMIT"])
async def test_several_processes_may_make_it_at_once(
    database: Database, name: str, isolation: str
) -> None:
    def make() -> None:
        engine = sa.create_engine(database.engine.url, isolation_level=isolation)
        for _ in range(5):
            with engine.begin() as connection:
                ensure_app_role(connection, name, password=PASSWORD)
        engine.dispose()

    await asyncio.gather(*(asyncio.to_thread(make) for _ in range(4)))

    assert attributes(database, name) == "t f f f f f"


class TestGrants:
    @pytest.fixture
    def metadata(self) -> MetaData:
        metadata = MetaData()
        for table in ("invoice", "line"):
            tenant_table()(Table(table, metadata, key(), tenant_id()))
        protect_metadata(metadata, role="app")
        return metadata

    def test_are_put_right_too(self, database: Database, metadata: MetaData) -> None:
        database.create(metadata)
        database.run(
            "REVOKE UPDATE, SELECT ON invoice FROM app",
            "REVOKE ALL ON SEQUENCE line_id_seq FROM app",
            "GRANT TRUNCATE ON line TO app",
            "GRANT SELECT ON line TO PUBLIC",
            "REVOKE USAGE ON SCHEMA public FROM PUBLIC",
        )

        ensure(database, "app", metadata=metadata)

        expected = expected_protection(database.owner, metadata)
        assert list(compare_protection(expected, read_protection(database.owner))) == []
        assert database.ask("SELECT has_schema_privilege('app', 'public', 'USAGE')") is True

    def test_of_tables_that_are_not_there_wait(
        self, database: Database, metadata: MetaData
    ) -> None:
        metadata.tables["line"].create(database.owner)
        database.run("REVOKE SELECT ON line FROM app")

        ensure(database, "app", metadata=metadata)

        assert database.ask("SELECT has_table_privilege('app', 'line', 'SELECT')") is True

    def test_for_another_role_are_refused(self, database: Database, metadata: MetaData) -> None:
        with pytest.raises(AppError, match=r"for role 'app', not for "):
            ensure_app_role(database.owner, f"other_{uuid4().hex}", metadata=metadata)
        database.owner.rollback()


def test_another_role_that_is_declared_and_missing_is_named(database: Database, name: str) -> None:
    before, after = MetaData(), MetaData()
    for metadata in (before, after):
        tenant_table()(Table("note", metadata, key(), tenant_id()))
    ensure(database, name)
    protect_metadata(before, role=name)
    protect_metadata(after, role=name, grants=[Grant("SELECT", "note", to="mgf nobody")])
    database.create(before)

    with pytest.raises(AppConfigError, match="there is no role 'mgf nobody'; make it"):
        ensure(database, name, metadata=after)


def test_columns_that_are_declared_stay_granted_where_the_table_is_not(
    database: Database, name: str
) -> None:
    metadata = MetaData()
    tenant_table()(Table("note", metadata, key(), tenant_id()))
    granted = Grant(["SELECT", "INSERT"], "note", to="pg_monitor", columns="id")
    protect_metadata(metadata, role=name, grants=[granted])
    ensure(database, name)
    database.create(metadata)
    database.run("GRANT SELECT, UPDATE ON note TO pg_monitor")

    ensure(database, name, metadata=metadata)

    there = read_protection(database.owner).table("note")
    assert there is not None
    assert [one for one in there.grants if one.to == "pg_monitor"] == [granted]
