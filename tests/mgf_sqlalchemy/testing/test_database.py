"""Databases for tests: whose login suffices, what is refused, and what is left on a server."""

from __future__ import annotations

import re
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest
from mgf_sqlalchemy.testing.processes import ask, eventually
from sqlalchemy import Column, Integer, MetaData, NullPool, Table, Uuid

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import create_engine
from mgf.sqlalchemy.audit import RlsNotActiveError
from mgf.sqlalchemy.rls import protect_metadata, tenant_table
from mgf.sqlalchemy.testing._database import make_template

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from sqlalchemy import URL

    from mgf.sqlalchemy.testing import TemporaryPostgres
    from mgf.sqlalchemy.testing._database import Template

LEFT = """
    SELECT (SELECT count(*) FROM pg_database WHERE datname LIKE 'mgf_test_%')
         + (SELECT count(*) FROM pg_roles WHERE rolname LIKE 'mgf_test_%')
"""
MADE_BY_LOGIN = """
    SELECT pg_get_userbyid(roleid) FROM pg_auth_members
    WHERE pg_get_userbyid(member) = 'kit_login' LIMIT 1
"""
COPYING = (
    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE DATABASE % TEMPLATE mgf_%'"
)


def plain(url: URL) -> str:
    return url.render_as_string(hide_password=False)


class Schema:
    """A table, protected for a role that no other test has, and what is done to it then."""

    def __init__(self, *statements: str) -> None:
        self.role = f"role_{uuid4().hex}"
        self.metadata = MetaData()
        columns = (
            Column("id", Integer, primary_key=True),
            Column("tenant_id", Uuid, nullable=False),
        )
        tenant_table()(Table("note", self.metadata, *columns))
        protect_metadata(self.metadata, role=self.role)
        self._statements = statements

    async def create(self, owner_url: URL) -> None:
        async with create_engine(owner_url, poolclass=NullPool).begin() as connection:
            await connection.run_sync(self.metadata.create_all)
            for statement in self._statements:
                await connection.exec_driver_sql(statement.format(role=self.role))

    @contextmanager
    def template(self, server: URL, *, is_shared: bool = True) -> Generator[Template]:
        with make_template(
            server,
            role=self.role,
            is_shared=is_shared,
            create_schema=self.create,
            metadata=self.metadata,
        ) as template:
            yield template


@pytest.fixture
def admin(each_server: TemporaryPostgres) -> Iterator[URL]:
    """The superuser of each PostgreSQL, on which no database and no login may be left."""
    yield each_server.url
    assert ask(each_server.url, LEFT) == 0


@pytest.fixture
def login(admin: URL) -> Iterator[URL]:
    """A login that may create databases and roles, and is no superuser."""
    ask(admin, "CREATE ROLE kit_login LOGIN CREATEDB CREATEROLE PASSWORD 'login'")
    yield admin.set(username="kit_login", password="login")
    # PostgreSQL 16 and later remember who granted what to the roles that this one has made.
    ask(admin, "DROP OWNED BY kit_login")
    for made in iter(lambda: ask(admin, MADE_BY_LOGIN), None):
        ask(admin, f"DROP ROLE {made}")
    ask(admin, "DROP ROLE kit_login")


@pytest.mark.parametrize("is_shared", [False, True])
def test_the_copies_are_apart_and_the_role_is_held_by_policies(admin: URL, is_shared: bool) -> None:
    schema = Schema()
    with (
        schema.template(admin, is_shared=is_shared) as template,
        template.copy() as one,
        template.copy() as other,
    ):
        ask(one.owner_url, f"INSERT INTO note VALUES (1, '{uuid4()}')")
        assert ask(one.owner_url, "SELECT count(*) FROM note") == 1
        assert ask(other.owner_url, "SELECT count(*) FROM note") == 0
        assert ask(one.app_url, "SELECT count(*) FROM note") == 0
        assert ask(one.app_url, "SELECT row_security_active('note')") is True
        assert (one.app_url.username == schema.role) is not is_shared


def test_on_a_shared_server_the_role_keeps_its_password(admin: URL) -> None:
    schema = Schema()
    ask(admin, f"CREATE ROLE {schema.role} LOGIN PASSWORD 'of-somebody'")
    with schema.template(admin) as template, template.copy() as database:
        assert ask(database.app_url, f"SELECT pg_has_role('{schema.role}', 'USAGE')") is True

    own = admin.set(username=schema.role, password="of-somebody")
    assert ask(own, "SELECT current_user") == schema.role


def test_a_login_that_may_create_databases_and_roles_is_enough(login: URL) -> None:
    with Schema().template(login) as template, template.copy() as database:
        assert ask(database.owner_url, "SELECT row_security_active('note')") is True
        assert ask(database.app_url, "SELECT row_security_active('note')") is True


@pytest.mark.parametrize(
    ("missing", "says"),
    [("CREATEROLE", "may not make or change role"), ("CREATEDB", "may not create databases")],
)
def test_a_login_that_may_not_do_it_is_told_so(
    admin: URL, login: URL, missing: str, says: str
) -> None:
    ask(admin, f"ALTER ROLE kit_login NO{missing}")
    with pytest.raises(AppConfigError, match=says), Schema().template(login):
        pytest.fail("made")


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("ALTER TABLE note DISABLE ROW LEVEL SECURITY", "does not hold role"),
        ("DROP TABLE note", "'public.note': declared to be protected"),
        ("CREATE TABLE other (tenant_id uuid)", "'public.other'"),
        ("ALTER TABLE note OWNER TO {role}", "may lift their"),
        ("ALTER ROLE {role} SUPERUSER", "whom no policy holds"),
        ("ALTER ROLE {role} BYPASSRLS", "whom no policy holds"),
        ("GRANT postgres TO {role}", "whom no policy holds"),
    ],
)
def test_what_policies_do_not_hold_is_refused(
    server: TemporaryPostgres, is_shared: bool, statement: str, says: str
) -> None:
    schema = Schema(statement)
    with (
        pytest.raises(RlsNotActiveError, match=says),
        schema.template(server.url, is_shared=is_shared),
    ):
        pytest.fail("made")
    assert ask(server.url, LEFT) == 0


def test_a_role_that_somebody_else_made_is_named_with_what_to_grant(
    server: TemporaryPostgres,
) -> None:
    schema = Schema()
    own = f"login_{uuid4().hex}"
    ask(server.url, f"CREATE ROLE {own} LOGIN CREATEDB CREATEROLE PASSWORD 'login'")
    ask(server.url, f"CREATE ROLE {schema.role} LOGIN")
    login = server.url.set(username=own, password="login")
    with pytest.raises(AppConfigError, match="somebody else") as refused, schema.template(login):
        pytest.fail("made")
    assert ask(server.url, LEFT) == 0

    remedy = re.search("GRANT .* WITH ADMIN OPTION", str(refused.value))
    assert remedy is not None
    ask(server.url, remedy[0])
    with schema.template(login) as template, template.copy() as database:
        assert ask(database.app_url, "SELECT row_security_active('note')") is True


def test_a_database_that_ctrl_c_does_not_wait_for_is_dropped(admin: URL) -> None:
    with Schema().template(admin) as template:
        # It waits for this connection, for up to five seconds.
        holding = psycopg.connect(plain(template.urls.owner_url))
        interrupt = threading.Thread(target=interrupt_while_it_copies, args=(admin, holding))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt), template.copy():
            pytest.fail("copied")
        interrupt.join()
        assert ask(admin, "SELECT count(*) FROM pg_database WHERE datname LIKE 'mgf_test_%'") == 1


def interrupt_while_it_copies(admin: URL, holding: psycopg.Connection) -> None:
    assert eventually(lambda: ask(admin, COPYING) == 1)
    # A signal to this thread would not wake the main one, which waits.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    holding.close()


def test_a_connection_that_was_left_open_is_named_as_the_reason(admin: URL) -> None:
    schema = Schema()
    with (
        schema.template(admin) as template,
        psycopg.connect(plain(template.urls.owner_url)),
        pytest.raises(AppConfigError, match="has to close its connections"),
        template.copy(),
    ):
        pytest.fail("copied")


def test_a_database_is_dropped_while_programs_are_connected(admin: URL) -> None:
    with Schema().template(admin) as template:
        with template.copy() as database:
            left = psycopg.connect(plain(database.app_url))
        with pytest.raises(psycopg.OperationalError):
            left.execute("SELECT 1")
        left.close()


def test_a_login_that_may_end_no_connection_waits_for_those_that_are_closing(login: URL) -> None:
    with Schema().template(login) as template, template.copy() as database:
        closing = threading.Timer(0.5, psycopg.connect(plain(database.app_url)).close)
        closing.start()
    closing.join()


def test_a_schema_that_fails_leaves_nothing(admin: URL) -> None:
    schema = Schema("SELECT 1 / 0")
    with pytest.raises(Exception, match="division by zero"), schema.template(admin):
        pytest.fail("made")
    assert ask(admin, LEFT) == 0
