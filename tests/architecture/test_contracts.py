"""Every import contract can fail: each is broken in a copy of the sources."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from configparser import ConfigParser
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import grimp
import pytest
from architecture.workspace import (
    PACKAGES,
    ROOT,
    Package,
    clean_environment,
    copy_sources,
    packages,
    run,
)

LINT_IMPORTS = Path(sysconfig.get_path("scripts")) / "lint-imports"

LAYERS = "Layers: common < sqlalchemy < alembic | fastapi"
WEB = "Only mgf.fastapi imports FastAPI or Starlette"
MIGRATIONS = "Only mgf.alembic imports Alembic"
DJANGO = "Nothing imports Django"
CYCLES = "No cycles inside a package"
PRIVATE_COMMON = "mgf.common is imported through its public packages"
PRIVATE_SQLALCHEMY = "mgf.sqlalchemy is imported through its public packages"
PRIVATE_ALEMBIC = "mgf.alembic is imported through its public packages"
PRIVATE_FASTAPI = "mgf.fastapi is imported through its public packages"
ROOMS = "Rooms of mgf.sqlalchemy: testing > audit > rls > scope"
TEST_SUPPORT = "No shipped code imports test support"

ONLY_FOR_TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
INSIDE_A_FUNCTION = "def late():\n    "


class Breach(NamedTuple):
    """Lines added to modules of the copy, and the contract that has to notice."""

    claim: str
    contract: str
    added: dict[str, str]


BREACHES = [
    Breach("FastAPI", WEB, {"sqlalchemy/_engine.py": "from fastapi import Depends"}),
    Breach("Starlette", WEB, {"common/__init__.py": "import starlette"}),
    Breach(
        "FastAPI for types only", WEB, {"alembic/__init__.py": ONLY_FOR_TYPES + "import fastapi"}
    ),
    Breach(
        "Starlette inside a function",
        WEB,
        {"sqlalchemy/_engine.py": INSIDE_A_FUNCTION + "import starlette.requests"},
    ),
    Breach(
        "FastAPI through a sibling's helper",
        WEB,
        {
            "fastapi/_helper.py": "import fastapi",
            "fastapi/__init__.py": "import mgf.fastapi._helper",
            "sqlalchemy/_engine.py": "import mgf.fastapi",
        },
    ),
    Breach("Alembic", MIGRATIONS, {"sqlalchemy/_engine.py": "import alembic"}),
    Breach(
        "Alembic for types only",
        MIGRATIONS,
        {"fastapi/__init__.py": ONLY_FOR_TYPES + "from alembic import op"},
    ),
    Breach("Django", DJANGO, {"fastapi/__init__.py": "import django.db"}),
    Breach("an upper sibling", LAYERS, {"common/__init__.py": "import mgf.sqlalchemy"}),
    Breach(
        "an upper sibling for types only",
        LAYERS,
        {"sqlalchemy/_engine.py": ONLY_FOR_TYPES + "import mgf.alembic"},
    ),
    Breach("the sibling beside it", LAYERS, {"alembic/__init__.py": "import mgf.fastapi"}),
    Breach(
        "a private module of mgf.common",
        PRIVATE_COMMON,
        {"sqlalchemy/_engine.py": "from mgf.common import _identity"},
    ),
    Breach(
        "a private module inside a public package",
        PRIVATE_COMMON,
        {
            "common/exceptions/_probe.py": "",
            "fastapi/__init__.py": "import mgf.common.exceptions._probe",
        },
    ),
    Breach(
        "a private module of mgf.sqlalchemy for types only",
        PRIVATE_SQLALCHEMY,
        {"alembic/__init__.py": ONLY_FOR_TYPES + "from mgf.sqlalchemy._engine import x"},
    ),
    Breach(
        "a private module of mgf.alembic",
        PRIVATE_ALEMBIC,
        {"alembic/_probe.py": "", "fastapi/__init__.py": "import mgf.alembic._probe"},
    ),
    Breach(
        "a private module of mgf.fastapi",
        PRIVATE_FASTAPI,
        {"fastapi/_probe.py": "", "alembic/__init__.py": "import mgf.fastapi._probe"},
    ),
    Breach(
        "two modules in a circle",
        CYCLES,
        {
            "common/_identity.py": "import mgf.common.exceptions",
            "common/exceptions/__init__.py": "import mgf.common._identity",
        },
    ),
    Breach(
        "test support in the scope",
        ROOMS,
        {
            "sqlalchemy/testing/__init__.py": "",
            "sqlalchemy/_engine.py": INSIDE_A_FUNCTION + "import mgf.sqlalchemy.testing",
        },
    ),
    Breach("a module without a room", ROOMS, {"sqlalchemy/_probe.py": ""}),
    Breach(
        "test support in a package's root",
        TEST_SUPPORT,
        {"alembic/testing/__init__.py": "", "alembic/__init__.py": "import mgf.alembic.testing"},
    ),
]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_sources(tmp_path)


def search_path(copy: Path) -> str:
    return ":".join(str(package.folder / "src") for package in packages(copy))


def lint(copy: Path) -> tuple[int, dict[str, str]]:
    """Lint the copy; return the exit code and each contract's verdict."""
    result = subprocess.run(
        [LINT_IMPORTS, "--no-cache", "--no-logo"],
        cwd=copy,
        env=clean_environment(PYTHONPATH=search_path(copy), COLUMNS="200"),
        capture_output=True,
        text=True,
        check=False,
    )
    verdicts = re.findall(r"^(.+) (KEPT|BROKEN)\b", result.stdout, re.MULTILINE)
    assert verdicts, result.stdout + result.stderr
    return result.returncode, dict(verdicts)


def contract_names(root: Path = ROOT) -> set[str]:
    config = ConfigParser()
    config.read(root / ".importlinter")
    return {config[section]["name"] for section in config.sections() if ":" in section}


def test_an_unbroken_copy_keeps_every_contract(copy: Path) -> None:
    assert lint(copy) == (0, dict.fromkeys(contract_names(), "KEPT"))


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.claim)
def test_a_breach_is_noticed(copy: Path, breach: Breach) -> None:
    for module, lines in breach.added.items():
        path = copy / "packages" / f"mgf-{module.split('/')[0]}" / "src/mgf" / module
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as source:
            source.write(f"\n{lines}\n")

    exit_code, verdicts = lint(copy)

    assert verdicts[breach.contract] == "BROKEN"
    assert exit_code == 1


def test_every_contract_is_broken_by_some_breach() -> None:
    assert {breach.contract for breach in BREACHES} == contract_names()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_the_copy_is_analysed_and_not_the_installed_sources(copy: Path, package: Package) -> None:
    find = f"import importlib.util as u; print(u.find_spec({package.portion!r}).origin)"
    origin = run(sys.executable, "-c", find, cwd=copy, PYTHONPATH=search_path(copy))

    assert Path(origin.strip()).is_relative_to(copy)


def test_no_module_takes_part_in_an_import_cycle() -> None:
    """The contract compares siblings only; this sees a package's `__init__` as well."""
    graph = grimp.build_graph(*(package.portion for package in PACKAGES), cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}

    TopologicalSorter(imports).prepare()
