"""What the architecture tests know of the repository: its packages, read from `packages/*`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# The suite's own measuring and options must not reach a pytest or a Python started by a test.
_OWN_SETTINGS = re.compile(r"^(COV_|COVERAGE_|PYTEST_|PYTHON|UV_PROJECT_ENVIRONMENT$|VIRTUAL_ENV$)")


@dataclass(frozen=True)
class Package:
    """One distribution: a folder under `packages/`."""

    folder: Path

    @cached_property
    def pyproject(self) -> dict[str, Any]:
        return tomllib.loads((self.folder / "pyproject.toml").read_text())

    @property
    def name(self) -> str:
        return str(self.pyproject["project"]["name"])

    @property
    def version(self) -> str:
        return str(self.pyproject["project"]["version"])

    @property
    def extras(self) -> list[str]:
        return list(self.pyproject["project"].get("optional-dependencies", {}))

    @property
    def portion(self) -> str:
        """The import name, such as `mgf.sqlalchemy`."""
        return self.name.replace("-", ".")

    @property
    def source(self) -> Path:
        return self.folder / "src" / Path(*self.portion.split("."))

    def public_modules(self) -> list[str]:
        """Name every module of the portion that has no underscore in its path."""
        modules = (
            path.relative_to(self.folder / "src").with_suffix("").parts
            for path in self.source.rglob("*.py")
        )
        names = {".".join(parts).removesuffix(".__init__") for parts in modules}
        return sorted(name for name in names if "._" not in name)


def packages(root: Path = ROOT) -> list[Package]:
    return [Package(path.parent) for path in sorted(root.glob("packages/*/pyproject.toml"))]


PACKAGES = packages()
NAMES = [package.name for package in PACKAGES]


def clean_environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without the test run's own settings."""
    kept = {name: value for name, value in os.environ.items() if not _OWN_SETTINGS.match(name)}
    # Outside the workspace uv does not read that it is to trust what this machine trusts.
    return kept | {"UV_SYSTEM_CERTS": "1"} | changes


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command in a clean environment and return what it printed; fail with all of it."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command} exited with {result.returncode}:\n{result.stdout}"
    return result.stdout


def uv(*arguments: str | Path, cwd: Path = ROOT) -> str:
    """Run uv: the one that runs the suite, else the one on PATH."""
    executable = os.environ.get("UV") or shutil.which("uv")
    assert executable, "uv is neither named by the variable UV nor on PATH: run `uv run pytest`"
    return run(executable, *arguments, cwd=cwd)


def tracked_files(folder: Path) -> set[str]:
    """List what git has of a folder or would take in: everything that no rule ignores."""
    listed = run(
        "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=folder
    ).split("\0")
    return {name for name in listed if name and (folder / name).exists()}


def copy_sources(destination: Path) -> Path:
    """Copy the packages and the files at the top that speak of them, as git would list them."""
    for name in tracked_files(ROOT):
        if name.startswith("packages/") or "/" not in name:
            target = destination / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    return destination
