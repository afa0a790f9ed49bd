"""Fixtures: a real PostgreSQL, the role that policies hold there, and a database for each test.

Loaded where it is asked for, in the ``conftest.py`` at the top of the tests::

    pytest_plugins = ["mgf.sqlalchemy.testing.pytest_plugin"]

Your own fixtures of the same names replace `mgf_metadata`, `mgf_create_schema`, `mgf_app_role`,
`mgf_create_engine`, `mgf_create_sessionmaker` and `mgf_server_url`; one of the first two has to be
replaced. Async tests are run by pytest-asyncio, in either mode, or by anyio.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID, uuid4

import pytest
from sqlalchemy import URL, MetaData, NullPool, make_url

from mgf.common.exceptions import AppConfigError, AppError
from mgf.sqlalchemy import create_engine, create_sessionmaker
from mgf.sqlalchemy.audit import RlsNotActiveError
from mgf.sqlalchemy.rls import is_protected
from mgf.sqlalchemy.rls._protect import declared_role
from mgf.sqlalchemy.testing._binaries import URL_VARIABLE
from mgf.sqlalchemy.testing._database import make_template
from mgf.sqlalchemy.testing._postgres import TemporaryPostgres
from mgf.sqlalchemy.testing._rollback import rolled_back

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator
    from contextlib import AbstractContextManager

    from sqlalchemy.ext.asyncio import (
        AsyncConnection,
        AsyncEngine,
        AsyncSession,
        async_sessionmaker,
    )

    from mgf.sqlalchemy.testing._database import Template, TemporaryDatabase

    CreateEngine = Callable[[URL], AsyncEngine]
    Sessionmaker = async_sessionmaker[AsyncSession]
    CreateSessionmaker = Callable[[AsyncEngine], Sessionmaker]

__all__ = [
    "mgf_app_role",
    "mgf_committing_sessionmaker",
    "mgf_connection",
    "mgf_create_engine",
    "mgf_create_schema",
    "mgf_create_sessionmaker",
    "mgf_database",
    "mgf_engine",
    "mgf_metadata",
    "mgf_new_database",
    "mgf_owner_engine",
    "mgf_server_url",
    "mgf_session",
    "mgf_sessionmaker",
    "mgf_tenants",
]

# What a worker of pytest-xdist is told by the process that started it.
_WORKER_INPUT: Final = "mgf_test_server"


class _Server(NamedTuple):
    """Where databases are made.

    Args:
        url: of a login that may do so.
        is_own: it was started for this run.
    """

    url: URL
    is_own: bool


_SERVER: Final = pytest.StashKey[_Server]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Start one server for all workers of pytest-xdist, and tell the worker.

    It stops with this process, however that ends, and does not care how workers end.
    """
    try:
        server = _server_of(node.config)
    except AppError as error:
        # For the tests that need a server, not for all of the run.
        node.workerinput[_WORKER_INPUT] = {"error": str(error)}
    else:
        url = server.url.render_as_string(hide_password=False)
        node.workerinput[_WORKER_INPUT] = {"url": url, "is_own": server.is_own}


def _server_of(config: pytest.Config) -> _Server:
    """Return the server of this run, which starts when it is first asked for."""
    if _SERVER not in config.stash:
        told = getattr(config, "workerinput", {}).get(_WORKER_INPUT)
        config.stash[_SERVER] = _start(config) if told is None else _read(told)
    return config.stash[_SERVER]


def _start(config: pytest.Config) -> _Server:
    postgres = TemporaryPostgres()
    postgres.start()
    config.add_cleanup(postgres.stop)
    return _Server(postgres.url, is_own=not os.environ.get(URL_VARIABLE))


def _read(told: dict[str, Any]) -> _Server:
    if "error" in told:
        pytest.fail(told["error"], pytrace=False)
    return _Server(make_url(told["url"]), told["is_own"])


@contextmanager
def _no_traceback(*kinds: type[Exception]) -> Generator[None]:
    """Fail with the text of an error alone: it says what to do, at each of many tests."""
    try:
        yield
    except kinds as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def mgf_server_url(request: pytest.FixtureRequest) -> URL:
    """The URL of the server's login that makes databases and roles.

    A server that is started for this run, one for all workers of pytest-xdist; or the one that
    MGF_TEST_DATABASE_URL names. Replace it for a server that is found in another way.
    """
    with _no_traceback(AppError):
        return _server_of(request.config).url


@pytest.fixture(scope="session")
def mgf_metadata() -> MetaData | None:
    """The metadata of the models, ``Base.metadata``; to be replaced."""
    return None


@pytest.fixture(scope="session")
def mgf_app_role(mgf_metadata: MetaData | None) -> str:
    """The role that the application connects as: the one that `mgf_metadata` is protected for."""
    if mgf_metadata is not None and is_protected(mgf_metadata):
        return declared_role(mgf_metadata)
    pytest.fail(
        "there is no role for the tests: replace the fixture mgf_metadata by one that returns "
        "the metadata of your models, protected by protect_metadata(), or the fixture "
        "mgf_app_role by one that returns the role's name",
        pytrace=False,
    )


@pytest.fixture(scope="session")
def mgf_create_schema(mgf_metadata: MetaData | None) -> Callable[[URL], object]:
    """What makes the schema, once in each process: ``mgf_metadata.create_all``.

    Replace it by a fixture that returns a function, async or not, which takes the URL of the
    tables' owner and runs the migrations there.
    """
    if mgf_metadata is None:
        pytest.fail(
            "there is no schema for the tests: replace the fixture mgf_metadata by one that "
            "returns the metadata of your models, or the fixture mgf_create_schema by one that "
            "returns a function which runs your migrations",
            pytrace=False,
        )
    return partial(_create_all, mgf_metadata)


async def _create_all(metadata: MetaData, owner_url: URL) -> None:
    async with create_engine(owner_url, poolclass=NullPool).begin() as connection:
        await connection.run_sync(metadata.create_all)


@pytest.fixture(scope="session")
def mgf_create_engine() -> CreateEngine:
    """What makes the engines: `create_engine` without a pool, so that any event loop will do."""
    return partial(create_engine, poolclass=NullPool)


@pytest.fixture(scope="session")
def mgf_create_sessionmaker() -> CreateSessionmaker:
    """What makes the sessionmakers, a new one at each call: `create_sessionmaker`."""
    return create_sessionmaker


@pytest.fixture(scope="session")
def _mgf_template(
    request: pytest.FixtureRequest,
    mgf_server_url: URL,
    mgf_app_role: str,
    mgf_create_schema: Callable[[URL], object],
    mgf_metadata: MetaData | None,
) -> Iterator[Template]:
    started = request.config.stash.get(_SERVER, None)
    is_own = started is not None and started == (mgf_server_url, True)
    made = make_template(
        mgf_server_url,
        role=mgf_app_role,
        is_shared=not is_own,
        create_schema=mgf_create_schema,
        metadata=mgf_metadata,
    )
    with ExitStack() as stack:
        with _no_traceback(AppConfigError, RlsNotActiveError):
            template = stack.enter_context(made)
        yield template


@pytest.fixture(scope="session")
def mgf_new_database(
    _mgf_template: Template,
) -> Callable[[], AbstractContextManager[TemporaryDatabase]]:
    """Make a database with the schema for the length of a block.

    For fixtures that keep one for a module or a session: ``with mgf_new_database() as database``.
    """
    return _mgf_template.copy


@pytest.fixture
def mgf_database(
    mgf_new_database: Callable[[], AbstractContextManager[TemporaryDatabase]],
) -> Iterator[TemporaryDatabase]:
    """A database of the test's own, with the schema: its `owner_url` and `app_url`.

    It is dropped after the test, whatever was committed to it and whoever is connected.
    """
    with mgf_new_database() as database:
        yield database


@pytest.fixture
def mgf_engine(mgf_database: TemporaryDatabase, mgf_create_engine: CreateEngine) -> AsyncEngine:
    """An engine on `mgf_database` as the application's role, which policies hold."""
    return mgf_create_engine(mgf_database.app_url)


@pytest.fixture
def mgf_owner_engine(
    mgf_database: TemporaryDatabase, mgf_create_engine: CreateEngine
) -> AsyncEngine:
    """An engine on `mgf_database` as the tables' owner, a superuser on a server of the run's own.

    For rows that the application may not write, and for a look at those of all tenants.
    """
    return mgf_create_engine(mgf_database.owner_url)


@pytest.fixture
def mgf_committing_sessionmaker(
    mgf_engine: AsyncEngine, mgf_create_sessionmaker: CreateSessionmaker
) -> Sessionmaker:
    """A sessionmaker on `mgf_engine`, whose commits are real ones."""
    return mgf_create_sessionmaker(mgf_engine)


@pytest.fixture
def mgf_sessionmaker(_mgf_rolled_back: _RolledBack) -> Sessionmaker:
    """A sessionmaker whose work is rolled back after the test, committed or not.

    On a database that the tests of one process share; see `rolled_back` for the limits that one
    connection has.
    """
    return _mgf_rolled_back.sessionmaker


@pytest.fixture
def mgf_session(_mgf_rolled_back: _RolledBack) -> AsyncSession:
    """A session of `mgf_sessionmaker`, closed after the test."""
    return _mgf_rolled_back.session


@pytest.fixture
def mgf_connection(_mgf_rolled_back: _RolledBack) -> AsyncConnection:
    """The connection that all sessions of `mgf_sessionmaker` are on."""
    return _mgf_rolled_back.connection


@pytest.fixture
def mgf_tenants() -> tuple[UUID, UUID]:
    """Two tenants that no other test knows."""
    return uuid4(), uuid4()


class _RolledBack(NamedTuple):
    connection: AsyncConnection
    sessionmaker: Sessionmaker
    session: AsyncSession


@pytest.fixture(scope="session")
def _mgf_shared_database(_mgf_template: Template) -> Iterator[TemporaryDatabase]:
    with _mgf_template.copy() as database:
        yield database


@pytest.fixture
def _mgf_rolled_back(request: pytest.FixtureRequest) -> _RolledBack:
    """Have the transaction opened and ended on the event loop that the test runs on."""
    asyncio_marker = request.node.get_closest_marker("asyncio")
    if asyncio_marker is not None:
        loop_scope = asyncio_marker.kwargs.get("loop_scope") or request.config.getini(
            "asyncio_default_test_loop_scope"
        )
        runner = f"asyncio_{loop_scope}"
    elif "anyio_backend" in request.fixturenames:
        backend = request.getfixturevalue("anyio_backend_name")
        if backend != "asyncio":
            pytest.fail(
                f"SQLAlchemy runs on asyncio, not on {backend!r}: let a fixture anyio_backend "
                "return 'asyncio'",
                pytrace=False,
            )
        runner = "anyio"
    else:
        pytest.fail(
            "what is rolled back belongs to the event loop of an async test, and this one is run "
            "neither by pytest-asyncio nor by anyio: mark it, or take mgf_database, or "
            "mgf_committing_sessionmaker, which serve any test",
            pytrace=False,
        )
    prepared: _RolledBack = request.getfixturevalue(f"_mgf_rolled_back_by_{runner}")
    return prepared


def _roll_back() -> Callable[..., AsyncGenerator[_RolledBack]]:
    """Return an async fixture function: a new one, since decorators leave their marks on it."""

    async def roll_back(
        _mgf_shared_database: TemporaryDatabase,
        mgf_create_engine: CreateEngine,
        mgf_create_sessionmaker: CreateSessionmaker,
    ) -> AsyncGenerator[_RolledBack]:
        sessionmaker = mgf_create_sessionmaker(mgf_create_engine(_mgf_shared_database.app_url))
        async with rolled_back(sessionmaker) as connection, sessionmaker() as session:
            yield _RolledBack(connection, sessionmaker, session)

    return roll_back


_mgf_rolled_back_by_anyio: object = pytest.fixture(_roll_back())

with suppress(ImportError):
    import pytest_asyncio

    # pytest-asyncio gives fixtures a loop of their own scope, wherever their test runs.
    for _scope in ("function", "class", "module", "package", "session"):
        _name = f"_mgf_rolled_back_by_asyncio_{_scope}"
        globals()[_name] = pytest_asyncio.fixture(_roll_back(), loop_scope=_scope, name=_name)
