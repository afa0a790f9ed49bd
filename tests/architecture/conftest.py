from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from architecture.distributions import Distributions
from architecture.workspace import uv

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The four sdists, and the wheels that uv builds from them: what a release uploads."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--all-packages", "--out-dir", folder)
    return Distributions(folder)


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A constraints file: the locked version of every package that is not ours."""
    file = tmp_path_factory.mktemp("locked") / "constraints.txt"
    uv("export", "--frozen", "--no-emit-workspace", "--no-hashes", "--output-file", file)
    return file
