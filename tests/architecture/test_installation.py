"""The wheels as users install them: from files, into an environment that holds nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from architecture.environments import install
from architecture.workspace import PACKAGES

if TYPE_CHECKING:
    from pathlib import Path

    from architecture.distributions import Distributions

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
