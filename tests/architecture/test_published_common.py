"""The other packages work with the mgf-common that others publish under the same version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from architecture.environments import Environment, install
from architecture.workspace import PACKAGES, ROOT, run, uv

if TYPE_CHECKING:
    from pathlib import Path

    from architecture.distributions import Distributions

PUBLISHED = "mgf-common==0.30.0"

# What reads the identity or raises mgf.common's exceptions; the rest of the suite would only repeat
# itself here.
CORE = (
    "tests/isolation/test_refusals.py",
    "tests/isolation/test_require_tenant.py",
    "tests/mgf_alembic/test_refusals.py",
    "tests/mgf_fastapi",
    "tests/mgf_sqlalchemy/test_engine.py",
    "tests/mgf_sqlalchemy/test_url.py",
)

IS_THE_PUBLISHED_ONE = """
import mgf.common, sys
from importlib.metadata import requires
assert mgf.common.__file__.startswith(sys.prefix)
assert requires("mgf-common"), "ours: it requires nothing"
"""

NEVER_BOOTSTRAPPED = """
import asyncio
from mgf.sqlalchemy import create_engine

for url in ("sqlite://", "postgresql+asyncpg://app@localhost/app"):
    asyncio.run(create_engine(url).dispose())
"""


@pytest.fixture(scope="module")
def environment(
    tmp_path_factory: pytest.TempPathFactory, distributions: Distributions, locked: Path
) -> Environment:
    folder = tmp_path_factory.mktemp("published")
    others = folder / "requirements.txt"
    groups = ("--no-default-groups", "--group", "demo", "--group", "test")
    uv("export", "--frozen", *groups, "--no-emit-workspace", "--no-hashes", "-o", others)
    wheels = [
        distributions.requirement(package) for package in PACKAGES if package.name != "mgf-common"
    ]
    return install(folder / "env", PUBLISHED, *wheels, "-r", others, constraints=locked)


def test_the_environment_has_the_published_one(environment: Environment) -> None:
    environment.check(IS_THE_PUBLISHED_ONE)


def test_no_unconfigured_warning_escapes(environment: Environment) -> None:
    """Warnings are errors here, and no identity was set."""
    environment.check(NEVER_BOOTSTRAPPED)


def test_the_core_of_the_suite_passes(environment: Environment) -> None:
    # Without the options of pyproject.toml, which may measure coverage.
    options = ("-p", "no:cacheprovider", "-o", "addopts=", "--import-mode=importlib", "-q")

    run(environment.python, "-m", "pytest", *options, *CORE, cwd=ROOT)
