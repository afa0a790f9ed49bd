from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mgf_sqlalchemy.testing.processes import eventually

from mgf.sqlalchemy.testing import TemporaryPostgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Starter = Callable[[Path | None], TemporaryPostgres]

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def name_of(bindir: Path | None) -> str:
    return bindir.parent.name if bindir else "wheel"


@contextlib.contextmanager
def no_server_of_others() -> Iterator[None]:
    """Start servers whatever the run as a whole tests against."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MGF_TEST_DATABASE_URL", raising=False)
        patch.delenv("MGF_PG_BINDIR", raising=False)
        yield


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    with no_server_of_others():
        yield


@pytest.fixture(autouse=True)
def temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A TMPDIR for this test alone, in which neither file nor process may be left."""
    tmp_path_factory.getbasetemp()  # pytest's own folder is to lie elsewhere
    folder = Path(tempfile.mkdtemp(prefix="mgf-test-"))
    folder.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    empty = eventually(lambda: not any(folder.iterdir()))
    left = [str(path) for path in folder.rglob("*")][:5]
    shutil.rmtree(folder)
    assert empty, left
    listing = subprocess.run(["ps", "-wweo", "args"], capture_output=True, text=True, check=True)
    assert str(folder) not in listing.stdout


@pytest.fixture(scope="session")
def started() -> Iterator[Starter]:
    """Start a server with these binaries, once for all tests that only look at it."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start(bindir: Path | None) -> TemporaryPostgres:
            with no_server_of_others():
                return stack.enter_context(TemporaryPostgres(bindir=bindir))

        yield start


@pytest.fixture(scope="session")
def server(started: Starter) -> TemporaryPostgres:
    return started(None)


@pytest.fixture(scope="session", params=[None, *INSTALLED], ids=name_of)
def bindir(request: pytest.FixtureRequest) -> Path | None:
    folder: Path | None = request.param
    return folder


@pytest.fixture(scope="session")
def each_server(bindir: Path | None, started: Starter) -> TemporaryPostgres:
    return started(bindir)


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder made earlier, on which a server starts in a tenth of a second."""
    folder = tmp_path_factory.mktemp("kept") / "data"
    with no_server_of_others(), TemporaryPostgres(data_dir=folder):
        return folder
