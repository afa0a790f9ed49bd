"""Databases for tests: one is made and checked, and every test gets a copy of it."""

from __future__ import annotations

import asyncio
import inspect
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import NullPool
from sqlalchemy.exc import DBAPIError

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import create_engine
from mgf.sqlalchemy.audit import require_rls
from mgf.sqlalchemy.errors import sqlstate
from mgf.sqlalchemy.rls import ensure_app_role, is_protected

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from sqlalchemy import URL, Connection, MetaData

__all__ = ["Template", "TemporaryDatabase", "make_template"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class TemporaryDatabase:
    """A database that a test has to itself; the fixture ``mgf_database``.

    Args:
        owner_url: of the role that owns its tables, without a driver.
        app_url: of the role that the application connects as, which policies hold.
    """

    owner_url: URL
    app_url: URL


@dataclass(frozen=True)
class Template:
    """A database that has the schema and nothing else, and is only ever copied."""

    name: str
    urls: TemporaryDatabase
    administrator: Administrator

    @contextmanager
    def copy(self) -> Generator[TemporaryDatabase]:
        """Make a copy of it, and drop that at the end of the block, whoever is connected.

        Rows that the schema came with are in it, and sequences stand where they stood.
        """
        name = _new_name()
        try:
            # Ctrl-C does not wait for it, and PostgreSQL goes on.
            self.administrator.create_database(name, template=self.name)
            yield TemporaryDatabase(
                self.urls.owner_url.set(database=name), self.urls.app_url.set(database=name)
            )
        finally:
            self.administrator.drop_database(name)


@contextmanager
def make_template(
    server: URL,
    *,
    role: str,
    is_shared: bool,
    create_schema: Callable[[URL], object],
    metadata: MetaData | None,
) -> Generator[Template]:
    """Make a database with the application's schema and role, and make sure that policies hold it.

    Args:
        server: of a login that may create databases and roles.
        role: that the application connects as. It is made, or put right.
        is_shared: the server is not this run's own: connect as a new member of the role, so that
            the role keeps its password.
        create_schema: makes the tables, given the URL of their owner; it may return a coroutine.
        metadata: what the tables are made from, if that is known.

    Raises:
        AppConfigError: the login may not do all that, or `create_schema` left a connection open.
        RlsNotActiveError: policies would not hold the role.
    """
    name = _new_name()
    login, password = (name, secrets.token_hex(16)) if is_shared else (role, server.password)
    owner_url = server.set(database=name)
    app_url = owner_url.set(username=login, password=password)
    with ExitStack() as stack:
        administrator = stack.enter_context(Administrator(server))
        if is_shared:
            stack.callback(administrator.drop_role, name)
        stack.callback(administrator.drop_database, name)
        administrator.create_database(name)
        administrator.run(_make_role(owner_url, role, login, password))
        made = create_schema(owner_url)
        if inspect.iscoroutine(made):
            administrator.run(made)
        administrator.run(_require_rls(app_url, metadata))
        yield Template(name, TemporaryDatabase(owner_url, app_url), administrator)


class Administrator:
    """Makes and drops databases, on an event loop in a thread of its own.

    So that it can be used by whoever runs a loop or none, and its connection is kept.
    """

    def __init__(self, server: URL) -> None:
        self._engine = create_engine(server, isolation_level="AUTOCOMMIT", pool_size=1)
        self._runner = asyncio.Runner()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="mgf-testing")

    def __enter__(self) -> Administrator:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.run(self._engine.dispose())
        self._executor.submit(self._runner.close).result()
        self._executor.shutdown()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine in that thread, and wait for it."""
        return self._executor.submit(partial(self._runner.run, work)).result()

    def execute(self, statement: str) -> None:
        """Run a statement, outside of any transaction."""
        self.run(self._execute(statement))

    def create_database(self, name: str, *, template: str | None = None) -> None:
        """Create a database, empty or as a copy.

        Raises:
            AppConfigError: this login may not, or somebody is connected to the template.
        """
        like = "" if template is None else f" TEMPLATE {template}"
        try:
            self.execute(f"CREATE DATABASE {name}{like}")
        except DBAPIError as error:
            if sqlstate(error) == "42501":
                raise AppConfigError(
                    f"role {self._engine.url.username!r} may not create databases on the server "
                    "for tests: connect as a superuser, or as a role with CREATEDB and CREATEROLE"
                ) from error
            if sqlstate(error) == "55006" and template is not None:
                raise AppConfigError(
                    "a connection to the database with the schema is still open, so it cannot be "
                    "copied: what mgf_create_schema returns has to close its connections, and "
                    "dispose its engine"
                ) from error
            raise

    def drop_database(self, name: str) -> None:
        """Drop a database if there is one, also while somebody is connected, if it may end that."""
        try:
            self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        except DBAPIError as error:
            if sqlstate(error) != "42501":
                raise
            # No superuser may not end other roles' connections. They are closing: it waits.
            self.execute(f"DROP DATABASE IF EXISTS {name}")

    def drop_role(self, name: str) -> None:
        """Drop a role if there is one; a login that may drop none has made none."""
        there = f"SELECT FROM pg_roles WHERE rolname = '{name}'"
        self.execute(f"DO $$ BEGIN IF EXISTS ({there}) THEN DROP ROLE {name}; END IF; END $$")

    async def _execute(self, statement: str) -> None:
        async with self._engine.connect() as connection:
            await connection.exec_driver_sql(statement)


def _new_name() -> str:
    return f"mgf_test_{secrets.token_hex(8)}"


async def _make_role(owner_url: URL, role: str, login: str, password: str | None) -> None:
    engine = create_engine(owner_url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(_ensure_login, role, login, password)


def _ensure_login(connection: Connection, role: str, login: str, password: str | None) -> None:
    ensure_app_role(connection, role, password=password if login == role else None)
    if login != role:
        ensure_app_role(connection, login, password=password)
        quote = connection.dialect.identifier_preparer.quote
        grant = f"GRANT {quote(role)} TO {quote(login)}"
        try:
            connection.exec_driver_sql(grant)
        except DBAPIError as error:
            if sqlstate(error) != "42501":
                raise
            own = connection.engine.url.username
            raise AppConfigError(
                f"role {own!r} may not log in as {role!r} for the tests, since somebody else made "
                f"that role: GRANT {quote(role)} TO {quote(own or '')} WITH ADMIN OPTION, or "
                "connect as a superuser"
            ) from error


async def _require_rls(app_url: URL, metadata: MetaData | None) -> None:
    declared = metadata if metadata is not None and is_protected(metadata) else None
    await require_rls(create_engine(app_url, poolclass=NullPool), metadata=declared)
