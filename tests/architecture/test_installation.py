"""The wheels as users install them: from files, into an environment that holds nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from architecture.environments import install
from architecture.workspace import PACKAGES, run, uv

if TYPE_CHECKING:
    from pathlib import Path

    from architecture.distributions import Distributions
    from architecture.environments import Environment

BY_NAME = {package.name: package for package in PACKAGES}
COMMON, SQLALCHEMY, ALEMBIC, FASTAPI = (
    BY_NAME[name] for name in ("mgf-common", "mgf-sqlalchemy", "mgf-alembic", "mgf-fastapi")
)

SIDE_BY_SIDE = f"""
import importlib, sys, sysconfig
import mgf
assert mgf.__file__ is None, mgf.__file__
assert list(mgf.__path__) == [sysconfig.get_path("purelib") + "/mgf"], mgf.__path__
for module in {[name for package in PACKAGES for name in package.public_modules()]!r}:
    assert importlib.import_module(module).__file__.startswith(sys.prefix), module
"""

ABSENT = """
import sys
from importlib.util import find_spec
for name in {names!r}:
    assert find_spec(name) is None, name
    assert not [module for module in sys.modules if module.split(".")[0] == name], name
"""

QUERY = """
import asyncio
import mgf.sqlalchemy.testing
from mgf.sqlalchemy import create_engine, create_sessionmaker
from sqlalchemy import text

async def main():
    engine = create_engine("sqlite+aiosqlite:///:memory:")
    async with create_sessionmaker(engine)() as session:
        assert await session.scalar(text("SELECT 6 * 7")) == 42
    await engine.dispose()

asyncio.run(main())
"""

# A user's project: the fixtures, both kinds of sessionmaker and the probe; warnings are errors.
USER_PROJECT = {
    "pytest.ini": """[pytest]
filterwarnings = error
pythonpath = .
asyncio_mode = strict
asyncio_default_fixture_loop_scope = function
""",
    "models.py": """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from mgf.sqlalchemy.rls import TenantMixin, protect_metadata


class Base(DeclarativeBase):
    pass


class Note(TenantMixin, Base):
    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)


protect_metadata(Base.metadata, role="installed_app")
""",
    "conftest.py": """
import pytest
from models import Base

pytest_plugins = ["mgf.sqlalchemy.testing.pytest_plugin"]


@pytest.fixture(scope="session")
def mgf_metadata():
    return Base.metadata


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"
""",
    "test_it.py": """
import pytest
from models import Base, Note

from mgf.sqlalchemy import tenant_scope
from mgf.sqlalchemy.testing import assert_isolated

pytestmark = pytest.mark.{marker}


async def add(sessionmaker, tenants):
    for key, tenant in enumerate(tenants):
        async with tenant_scope(sessionmaker, tenant) as session:
            session.add(Note(id=key))
            await session.commit()


@pytest.mark.parametrize("time", [1, 2])
async def test_rolled_back(mgf_sessionmaker, mgf_tenants, time):
    await add(mgf_sessionmaker, mgf_tenants)


@pytest.mark.parametrize("time", [1, 2])
async def test_committed(mgf_committing_sessionmaker, mgf_tenants, time):
    await add(mgf_committing_sessionmaker, mgf_tenants)


async def test_isolated(mgf_engine):
    await assert_isolated(mgf_engine, Base)
""",
}

NO_PLUGIN_BY_ITSELF = """
from importlib.metadata import entry_points
assert not [one for one in entry_points(group="pytest11") if "mgf" in one.value]
"""

NAMES_THE_EXTRA = """
import mgf.fastapi
try:
    import mgf.fastapi.db
except ImportError as error:
    assert "mgf-fastapi[sqlalchemy]" in str(error), error
else:
    raise AssertionError("imported without mgf-sqlalchemy")
"""


def test_the_wheels_install_side_by_side(
    tmp_path: Path, distributions: Distributions, locked: Path
) -> None:
    wheels = [
        distributions.requirement(
            package, *package.pyproject["project"].get("optional-dependencies", {})
        )
        for package in PACKAGES
    ]
    environment = install(tmp_path / "all", *wheels, "pytest", constraints=locked)

    environment.check(SIDE_BY_SIDE)


def test_mgf_sqlalchemy_works_without_any_framework(
    tmp_path: Path, distributions: Distributions, locked: Path
) -> None:
    environment = install(
        tmp_path / "scope",
        distributions.requirement(COMMON),
        distributions.requirement(SQLALCHEMY, "test"),
        constraints=locked,
    )

    environment.check(QUERY + ABSENT.format(names=["fastapi", "starlette", "alembic", "pytest"]))


def test_the_fixtures_work_where_only_the_extra_and_a_runner_of_async_tests_are_installed(
    tmp_path: Path, distributions: Distributions, locked: Path
) -> None:
    environment = install(
        tmp_path / "fixtures",
        distributions.requirement(COMMON),
        distributions.requirement(SQLALCHEMY, "test-postgres"),
        "pytest",
        "anyio",
        constraints=locked,
    )

    environment.check(NO_PLUGIN_BY_ITSELF + ABSENT.format(names=["pytest_asyncio", "alembic"]))
    run_user_project(environment, "anyio")

    uv("pip", "install", "--python", environment.python, "-c", locked, *RUNNERS, cwd=tmp_path)
    run_user_project(environment, "asyncio", "-n", "2")


RUNNERS = ("pytest-asyncio", "pytest-xdist")


def run_user_project(environment: Environment, marker: str, *options: str) -> None:
    project = environment.folder.parent / f"project_{marker}"
    project.mkdir()
    for name, text in USER_PROJECT.items():
        # anyio's plugin has no such settings.
        fitting = text if marker == "asyncio" else re.sub("(?m)^asyncio_.*\n", "", text)
        (project / name).write_text(fitting.replace("{marker}", marker))
    printed = run(environment.python, "-I", "-m", "pytest", *options, cwd=project)
    assert " 5 passed" in printed, printed


def test_mgf_alembic_works_without_a_web_framework(
    tmp_path: Path, distributions: Distributions, locked: Path
) -> None:
    environment = install(
        tmp_path / "migrations",
        *(distributions.requirement(package) for package in (COMMON, SQLALCHEMY, ALEMBIC)),
        constraints=locked,
    )

    environment.check("import mgf.alembic" + ABSENT.format(names=["fastapi", "starlette"]))


def test_mgf_fastapi_names_the_extra_that_its_db_needs(
    tmp_path: Path, distributions: Distributions, locked: Path
) -> None:
    environment = install(
        tmp_path / "web",
        *(distributions.requirement(package) for package in (COMMON, FASTAPI)),
        constraints=locked,
    )

    environment.check(NAMES_THE_EXTRA + ABSENT.format(names=["sqlalchemy", "alembic"]))
