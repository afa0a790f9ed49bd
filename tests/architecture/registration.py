"""The places where a package has to be named, and which of them it is missing from."""

from __future__ import annotations

import re
import tomllib
from configparser import ConfigParser
from typing import TYPE_CHECKING, Any, NamedTuple

from architecture.workspace import Package, packages
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Workspace(NamedTuple):
    """The files at the top that name packages."""

    root: Path
    pyproject: dict[str, Any]
    contracts: ConfigParser

    @classmethod
    def read(cls, root: Path) -> Workspace:
        contracts = ConfigParser()
        contracts.read(root / ".importlinter")
        return cls(root, tomllib.loads((root / "pyproject.toml").read_text()), contracts)

    @property
    def tools(self) -> dict[str, Any]:
        return dict(self.pyproject["tool"])

    def contract(self, package: Package, option: str, section: str) -> bool:
        """Whether a contract's option names the package."""
        words = self.contracts.get(f"importlinter:contract:{section}", option, fallback="")
        return package.portion in re.split(r"[\s|:]+", words)


def _is_root_package(workspace: Workspace, package: Package) -> bool:
    return package.portion in workspace.contracts["importlinter"]["root_packages"].split()


def _is_kept_from_foreign_frameworks(workspace: Workspace, package: Package) -> bool:
    """A source of every `forbidden` contract, except of what the package is there for."""
    own = {Requirement(line).name for line in package.pyproject["project"]["dependencies"]}
    return all(
        package.portion in contract["source_modules"].split()
        or own & set(contract["forbidden_modules"].split())
        for contract in workspace.contracts.values()
        if contract.get("type") == "forbidden"
    )


def _is_private_to_itself(workspace: Workspace, package: Package) -> bool:
    return any(
        contract.get("protected_modules") == f"{package.portion}.*"
        for contract in workspace.contracts.values()
    )


def _is_installed_by_a_group(workspace: Workspace, package: Package) -> bool:
    """Named in a group itself, or required by another package."""
    groups = workspace.pyproject["dependency-groups"].values()
    lines = [line for group in groups for line in group if isinstance(line, str)]
    for sibling in packages(workspace.root):
        lines += sibling.pyproject["project"]["dependencies"]
    return package.name in {Requirement(line).name for line in lines}


def _has_tests(workspace: Workspace, package: Package) -> bool:
    return (workspace.root / "tests" / package.name.replace("-", "_")).is_dir()


def _source(package: Package) -> str:
    return f"packages/{package.name}/src"


PLACES: dict[str, Callable[[Workspace, Package], bool]] = {
    "`.importlinter`: `root_packages`": _is_root_package,
    "`.importlinter`: contract `layers`": lambda workspace, package: workspace.contract(
        package, "layers", "layers"
    ),
    "`.importlinter`: contract `cycles`": lambda workspace, package: workspace.contract(
        package, "ancestors", "cycles"
    ),
    "`.importlinter`: `source_modules` of every forbidden framework": (
        _is_kept_from_foreign_frameworks
    ),
    "`.importlinter`: a `private-*` contract of its own": _is_private_to_itself,
    "`pyproject.toml`: `[tool.uv.sources]`": lambda workspace, package: (
        package.name in workspace.tools["uv"]["sources"]
    ),
    "`pyproject.toml`: a group under `[dependency-groups]`": _is_installed_by_a_group,
    "`pyproject.toml`: `[tool.coverage.run]` `source_pkgs`": lambda workspace, package: (
        package.portion in workspace.tools["coverage"]["run"]["source_pkgs"]
    ),
    "`pyproject.toml`: `[tool.mypy]` `mypy_path`": lambda workspace, package: (
        _source(package) in workspace.tools["mypy"]["mypy_path"]
    ),
    "`pyproject.toml`: `[tool.basedpyright]` `extraPaths`": lambda workspace, package: (
        _source(package) in workspace.tools["basedpyright"]["extraPaths"]
    ),
    "`pyproject.toml`: `[tool.ruff]` `namespace-packages`": lambda workspace, package: (
        f"{_source(package)}/mgf" in workspace.tools["ruff"]["namespace-packages"]
    ),
    "`tests/`: a folder of its own": _has_tests,
}


def missing_places(root: Path) -> dict[str, set[str]]:
    """Tell for each package the places under `root` that do not name it."""
    workspace = Workspace.read(root)
    missing = {
        package.name: {place for place, named in PLACES.items() if not named(workspace, package)}
        for package in packages(root)
    }
    return {name: places for name, places in missing.items() if places}
