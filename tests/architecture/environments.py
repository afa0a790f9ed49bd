"""Virtual environments that hold what a test installs and nothing else."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from architecture.workspace import run, uv

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """A virtual environment of the Python that runs the suite."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    def check(self, code: str) -> None:
        """Run code isolated from this checkout, with warnings as errors."""
        run(self.python, "-I", "-W", "error", "-c", code, cwd=self.folder)


def install(folder: Path, *requirements: str | Path, constraints: Path) -> Environment:
    """Make an environment; run outside the workspace, so that its sources stay unknown to uv."""
    folder.mkdir()
    environment = Environment(folder / "venv")
    uv("venv", "--python", sys.executable, environment.folder, cwd=folder)
    options = ("--python", environment.python, "--constraints", constraints)
    uv("pip", "install", *options, *requirements, cwd=folder)
    return environment
