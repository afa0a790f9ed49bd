"""The fixtures, in projects that pytester runs: with every runner of async tests, and xdist."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mgf_sqlalchemy.testing.kit import AUTO, STRICT, TESTS, failures, name_server, project
from mgf_sqlalchemy.testing.processes import alive, ask, eventually, postmaster_pid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

    from mgf.sqlalchemy.testing import TemporaryPostgres

__all__ = ["project"]

pytest_plugins = ["pytester"]

MINE = "SELECT count(*) FROM {} WHERE {} LIKE 'mgf_test_%'"
MARK = "import pytest\npytestmark = pytest.mark.{}\n"
ON_ASYNCIO = """
@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"
"""


@pytest.fixture
def named(server: TemporaryPostgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[URL]:
    """A server that is named to the project, and on which nothing may be left."""
    name_server(monkeypatch, server.url)
    yield server.url
    assert ask(server.url, MINE.format("pg_database", "datname")) == 0
    assert ask(server.url, MINE.format("pg_roles", "rolname")) == 0


@pytest.mark.parametrize(
    ("settings", "mark", "options"),
    [
        pytest.param(AUTO, "", [], id="asyncio auto"),
        pytest.param(STRICT, MARK.format("asyncio"), [], id="asyncio strict"),
        pytest.param(STRICT, MARK.format("asyncio(loop_scope='module')"), [], id="one loop"),
        pytest.param(
            AUTO + "asyncio_default_test_loop_scope = session\n", "", [], id="one loop by default"
        ),
        pytest.param("anyio_mode = auto\n", "", ["-p", "no:asyncio"], id="anyio auto"),
        pytest.param(STRICT, MARK.format("anyio"), [], id="anyio beside asyncio"),
    ],
)
def test_both_kinds_of_sessionmaker_work_whoever_runs_the_test(
    project: pytest.Pytester, named: URL, settings: str, mark: str, options: list[str]
) -> None:
    project.makeini(f"[pytest]\nfilterwarnings = error\n{settings}")
    with (project.path / "conftest.py").open("a") as conftest:
        conftest.write(ON_ASYNCIO)
    project.makepyfile(test_it=mark + TESTS)

    project.runpytest_inprocess(*options).assert_outcomes(passed=4)


def test_fixtures_of_the_user_run_around_them_on_the_same_loop(
    project: pytest.Pytester, named: URL
) -> None:
    project.makepyfile(
        """
        import pytest
        from kit_service import read, write

        from mgf.sqlalchemy import tenant_session


        @pytest.fixture
        async def session_of_a(mgf_sessionmaker, mgf_session, mgf_tenants):
            await write(mgf_sessionmaker, mgf_tenants[0], "seed")
            async with tenant_session(mgf_session, mgf_tenants[0]):
                yield mgf_session


        async def test_it(session_of_a, mgf_sessionmaker, mgf_tenants):
            await write(mgf_sessionmaker, mgf_tenants[0], "more")
            assert await read(mgf_sessionmaker, mgf_tenants[0]) == ["seed", "more"]
        """
    )

    project.runpytest_inprocess().assert_outcomes(passed=1)


def test_rows_of_the_schema_stay_and_nothing_else(project: pytest.Pytester, named: URL) -> None:
    with (project.path / "conftest.py").open("a") as conftest:
        conftest.write(
            """
from sqlalchemy import NullPool, text

from mgf.sqlalchemy import create_engine


@pytest.fixture(scope="session")
def mgf_create_schema(mgf_metadata):
    async def create(owner_url):
        async with create_engine(owner_url, poolclass=NullPool).begin() as connection:
            await connection.run_sync(mgf_metadata.create_all)
            await connection.execute(text("CREATE TABLE country AS SELECT 'dk' AS code"))
            await connection.execute(text("GRANT ALL ON country TO kit_app"))

    return create
"""
        )
    project.makepyfile(
        """
        import pytest
        from kit_service import write
        from sqlalchemy import text

        NEXT = text("SELECT nextval('note_id_seq')")


        @pytest.mark.parametrize("time", [1, 2])
        async def test_it(mgf_engine, mgf_committing_sessionmaker, mgf_tenants, time):
            await write(mgf_committing_sessionmaker, mgf_tenants[0], "mine")
            async with mgf_engine.begin() as connection:
                assert (await connection.scalars(text("TABLE country"))).all() == ["dk"]
                assert (await connection.execute(NEXT)).scalar() == 2
                await connection.execute(text("INSERT INTO country VALUES ('no')"))
        """
    )

    project.runpytest_inprocess().assert_outcomes(passed=2)


def test_a_database_is_dropped_while_programs_are_connected(
    project: pytest.Pytester, named: URL
) -> None:
    project.makepyfile(
        """
        import psycopg
        import pytest


        @pytest.fixture(scope="session")
        def kept():
            kept = []
            yield kept
            for connection in kept:
                connection.close()


        def test_it(kept, mgf_database):
            for url in (mgf_database.app_url, mgf_database.owner_url):
                kept.append(psycopg.connect(url.render_as_string(hide_password=False)))
        """
    )

    project.runpytest_inprocess().assert_outcomes(passed=1)


def test_a_database_may_serve_a_whole_module(project: pytest.Pytester, named: URL) -> None:
    project.makepyfile(
        """
        import pytest


        @pytest.fixture(scope="module")
        def database(mgf_new_database):
            with mgf_new_database() as database:
                yield database


        def test_one(database, mgf_database):
            assert database.app_url.database != mgf_database.app_url.database
            assert database.app_url.username == mgf_database.app_url.username


        def test_two(database):
            assert database.owner_url.database == database.app_url.database
        """
    )

    project.runpytest_inprocess().assert_outcomes(passed=2)


def test_the_users_sessionmaker_is_used_for_both_kinds(
    project: pytest.Pytester, named: URL
) -> None:
    with (project.path / "conftest.py").open("a") as conftest:
        conftest.write(
            """
from functools import partial

from mgf.sqlalchemy import create_sessionmaker


@pytest.fixture(scope="session")
def mgf_create_sessionmaker():
    return partial(create_sessionmaker, require_tenant=True)
"""
        )
    project.makepyfile(
        """
        import pytest
        from kit_models import Note
        from sqlalchemy import select
        from sqlalchemy.exc import DBAPIError


        async def test_rolled_back(mgf_sessionmaker):
            with pytest.raises(DBAPIError, match="row-level security"):
                async with mgf_sessionmaker() as session:
                    await session.scalars(select(Note))


        async def test_committing(mgf_committing_sessionmaker):
            with pytest.raises(DBAPIError, match="row-level security"):
                async with mgf_committing_sessionmaker() as session:
                    await session.scalars(select(Note))
        """
    )

    project.runpytest_inprocess().assert_outcomes(passed=2)


WHO = """
import json
import os
from pathlib import Path

import pytest


@pytest.mark.parametrize("time", range(6))
async def test_it(mgf_sessionmaker, mgf_engine, mgf_server_url, worker_id, time):
    if time == 3:
        os._exit(1)
    async with mgf_engine.connect() as connection:
        database = (await connection.exec_driver_sql("SELECT current_database()")).scalar()
    told = {
        "port": mgf_server_url.port, "worker": worker_id, "user": mgf_engine.url.username,
        "shared": mgf_sessionmaker.kw["bind"].engine.url.database, "database": database,
    }
    Path(f"{worker_id}-{time}.json").write_text(json.dumps(told))
"""


def test_workers_share_a_server_and_no_database_also_when_one_crashes(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=WHO)

    project.runpytest_inprocess("-n", "2").assert_outcomes(passed=5, failed=1)

    seen = [json.loads(path.read_text()) for path in project.path.glob("*.json")]
    assert {one["user"] for one in seen} == {"kit_app"}
    assert len({one["port"] for one in seen}) == 1
    assert len({one["database"] for one in seen}) == 5
    assert len({one["shared"] for one in seen}) == len({one["worker"] for one in seen})


HANG = """
import json
import os
import time
from pathlib import Path


def test_it(mgf_database):
    import psycopg

    with psycopg.connect(mgf_database.owner_url.render_as_string(hide_password=False)) as own:
        folder = own.execute("SHOW data_directory").fetchone()[0]
    Path("told.tmp").write_text(json.dumps({"data": folder, "worker": os.getpid()}))
    Path("told.tmp").rename("told.json")
    time.sleep(600)
"""


def test_the_server_ends_with_the_process_that_started_the_workers(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=HANG)
    command = [sys.executable, "-m", "pytest", "-n", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        file = project.path / "told.json"
        assert eventually(file.exists, within=120)
        state = json.loads(file.read_text())
        postmaster = postmaster_pid(Path(state["data"]))
        run.kill()
    os.kill(state["worker"], signal.SIGKILL)  # it sleeps, and would find out only later
    assert eventually(lambda: not alive(postmaster), within=60)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_tests_without_a_database_run_where_there_is_no_postgresql(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv("MGF_PG_BINDIR", str(project.path))
    project.makepyfile(test_it="def test_without(): pass\n\n\ndef test_with(mgf_database): pass\n")

    result = project.runpytest_inprocess("-n", workers)

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*no program 'initdb' in the folder*"])
    result.stdout.no_fnmatch_line("*_binaries.py*")


def test_a_schema_that_policies_do_not_hold_fails_every_test(
    project: pytest.Pytester, named: URL
) -> None:
    with (project.path / "conftest.py").open("a") as conftest:
        conftest.write(
            """
from sqlalchemy import NullPool, text

from mgf.sqlalchemy import create_engine


@pytest.fixture(scope="session")
def mgf_create_schema(mgf_metadata):
    async def create(owner_url):
        async with create_engine(owner_url, poolclass=NullPool).begin() as connection:
            await connection.run_sync(mgf_metadata.create_all)
            await connection.execute(text("ALTER TABLE note DISABLE ROW LEVEL SECURITY"))

    return create
"""
        )
    project.makepyfile(test_it=TESTS)

    result = project.runpytest_inprocess()

    result.assert_outcomes(errors=4)
    assert "row-level security does not hold role" in failures(result)
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*_database.py*")


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ("def test_it(mgf_sessionmaker): pass", "neither by pytest-asyncio nor by anyio"),
        (
            "import pytest\n\n\n@pytest.mark.anyio\nasync def test_it(mgf_session): pass",
            "asyncio, not on 'trio'",
        ),
    ],
)
def test_a_test_that_cannot_be_rolled_back_is_told_so(
    project: pytest.Pytester, test: str, says: str
) -> None:
    with (project.path / "conftest.py").open("a") as conftest:
        conftest.write(ON_ASYNCIO.replace("asyncio", "trio"))
    project.makeini("[pytest]\nfilterwarnings = error\n")
    project.makepyfile(test)

    result = project.runpytest_inprocess("-p", "no:asyncio")

    result.assert_outcomes(errors=1)
    assert says in failures(result)


@pytest.mark.parametrize(
    ("fixture", "says"),
    [("mgf_app_role", "no role for the tests"), ("mgf_create_schema", "no schema for the tests")],
)
def test_what_has_to_be_replaced_is_named(
    project: pytest.Pytester, fixture: str, says: str
) -> None:
    project.makeconftest('pytest_plugins = ["mgf.sqlalchemy.testing.pytest_plugin"]')
    project.makepyfile(f"def test_it({fixture}): pass")

    result = project.runpytest_inprocess()

    result.assert_outcomes(errors=1)
    assert says in failures(result)


def test_a_project_without_metadata_names_role_and_schema(
    project: pytest.Pytester, named: URL
) -> None:
    project.makeconftest(
        '''
        import psycopg
        import pytest

        pytest_plugins = ["mgf.sqlalchemy.testing.pytest_plugin"]

        SCHEMA = """
            CREATE TABLE note (id serial PRIMARY KEY, tenant_id uuid);
            ALTER TABLE note ENABLE ROW LEVEL SECURITY;
            GRANT SELECT ON note TO kit_app;
        """


        @pytest.fixture(scope="session")
        def mgf_app_role():
            return "kit_app"


        @pytest.fixture(scope="session")
        def mgf_create_schema():
            def create(owner_url):
                url = owner_url.render_as_string(hide_password=False)
                with psycopg.connect(url) as connection:
                    connection.execute(SCHEMA)

            return create
        '''
    )
    project.makepyfile(
        """
        from sqlalchemy import text


        async def test_it(mgf_session):
            assert (await mgf_session.scalars(text("SELECT id FROM note"))).all() == []
        """
    )

    project.runpytest_inprocess().assert_outcomes(passed=1)


def test_its_fixtures_are_the_ones_that_are_listed(project: pytest.Pytester) -> None:
    from mgf.sqlalchemy.testing import pytest_plugin

    result = project.runpytest_inprocess("--fixtures", "--setup-plan")

    found = {line.split()[0] for line in result.outlines if line.startswith("mgf_")}
    assert found == set(pytest_plugin.__all__)


def test_without_being_asked_for_nothing_is_loaded(project: pytest.Pytester) -> None:
    project.makeconftest("import mgf.sqlalchemy.testing")
    project.makepyfile("def test_it(mgf_tenants): pass")

    result = project.runpytest_inprocess()

    result.assert_outcomes(errors=1)
    assert "fixture 'mgf_tenants' not found" in failures(result)
