"""A data folder that is kept: used again, never damaged."""

from __future__ import annotations

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from mgf_sqlalchemy.testing.conftest import INSTALLED, name_of
from mgf_sqlalchemy.testing.processes import alive, ask, eventually, holder, postmaster_pid

from mgf.common.exceptions import AppConfigError, OperationError
from mgf.sqlalchemy.testing import TemporaryPostgres
from mgf.sqlalchemy.testing._binaries import find_binaries

if TYPE_CHECKING:
    from pathlib import Path


def kill_9(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def content(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = [folder, *folder.rglob("*")]
    status = {str(path): path.lstat() for path in found}
    return {name: (st.st_mode, st.st_uid, st.st_mtime_ns) for name, st in status.items()}


def test_data_and_password_outlive_the_server(tmp_path: Path, bindir: Path | None) -> None:
    first = TemporaryPostgres(data_dir=tmp_path / "new" / "data", bindir=bindir)
    with first:
        password = first.url.password
        ask(first.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    with TemporaryPostgres(data_dir=tmp_path / "new" / "data", bindir=bindir) as second:
        assert second.url.password == password
        assert ask(second.url, "SELECT answer FROM kept") == 42


def test_an_empty_folder_that_is_there_is_filled(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with TemporaryPostgres(data_dir=str(folder)) as server:
        assert server.data_dir == folder
        assert ask(server.url, "SELECT 1") == 1


def test_a_symbolic_link_to_a_folder_is_followed(tmp_path: Path, kept: Path) -> None:
    (tmp_path / "link").symlink_to(kept)
    with TemporaryPostgres(data_dir=tmp_path / "link") as server:
        assert server.data_dir == kept.resolve()


def test_the_password_is_stored_for_the_owner_only(kept: Path) -> None:
    stored = (kept / "mgf.password").stat()
    assert (stored.st_mode & 0o777, stored.st_uid) == (0o600, kept.stat().st_uid)


def test_a_fixed_port_and_the_stored_password_keep_the_url_the_same(kept: Path) -> None:
    with TemporaryPostgres(data_dir=kept) as server:
        url = server.url
    with TemporaryPostgres(data_dir=kept, port=url.port) as again:
        assert again.url == url


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    before = content(tmp_path)
    with pytest.raises(AppConfigError, match="neither empty nor a PostgreSQL data folder"):
        TemporaryPostgres(data_dir=tmp_path).start()
    assert content(tmp_path) == before


def test_a_data_folder_made_by_others_is_refused_and_left_alone(tmp_path: Path, kept: Path) -> None:
    (tmp_path / "PG_VERSION").write_bytes((kept / "PG_VERSION").read_bytes())
    before = content(tmp_path)
    with pytest.raises(AppConfigError, match=r"no 'mgf\.password'.*give another folder"):
        TemporaryPostgres(data_dir=tmp_path).start()
    assert content(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("years of work")
    with pytest.raises(OperationError, match=r"Not a directory: .*data"):
        TemporaryPostgres(data_dir=file).start()
    assert file.read_text() == "years of work"


def test_another_major_version_is_refused_with_both_named(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("9\n")
    major = find_binaries().version[0]
    with pytest.raises(AppConfigError, match=f"by PostgreSQL 9, .* PostgreSQL {major}: .*bindir="):
        TemporaryPostgres(data_dir=tmp_path).start()


@pytest.mark.parametrize("installed", INSTALLED, ids=name_of)
def test_real_data_of_another_major_version_are_left_alone(installed: Path, kept: Path) -> None:
    before = content(kept)
    with pytest.raises(AppConfigError, match=r"the data folder .* was made by PostgreSQL"):
        TemporaryPostgres(data_dir=kept, bindir=installed).start()
    assert content(kept) == before


def test_a_folder_in_use_is_refused_and_its_server_keeps_running(kept: Path) -> None:
    with TemporaryPostgres(data_dir=kept) as server:
        with pytest.raises(OperationError, match="in use by a running server: stop that one"):
            TemporaryPostgres(data_dir=kept).start()
        assert ask(server.url, "SELECT 1") == 1


def test_kill_9_of_a_supervisor_that_waits_leaves_the_server_it_waits_for_alone(kept: Path) -> None:
    with TemporaryPostgres(data_dir=kept) as server, ThreadPoolExecutor(1) as pool:
        earlier = supervisors()
        waiting = pool.submit(TemporaryPostgres(data_dir=kept).start)
        assert eventually(lambda: supervisors() > earlier)
        kill_9((supervisors() - earlier).pop())
        assert "ended before the server was ready" in str(waiting.exception(10))
        assert ask(server.url, "SELECT 1") == 1


def supervisors() -> set[int]:
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {int(line.split()[0]) for line in listing.splitlines() if "_supervisor.py" in line}


def test_of_two_that_fill_one_folder_at_once_one_wins_undamaged(tmp_path: Path) -> None:
    servers = [TemporaryPostgres(data_dir=tmp_path / "data") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        errors = [future.exception() for future in [pool.submit(s.start) for s in servers]]
    winner = servers[0] if errors[0] is None else servers[1]
    with winner:
        assert sum(isinstance(error, OperationError) for error in errors) == 1
        assert ask(winner.url, "SELECT 1") == 1


def test_what_was_committed_survives_kill_9_of_server_and_python(kept: Path) -> None:
    with holder(data_dir=str(kept)) as child:
        ask(child.url, "CREATE TABLE survivor AS SELECT 42 AS answer")
        kill_9(child.postmaster)
        child.process.kill()
        assert eventually(lambda: child.has_ended)
    with TemporaryPostgres(data_dir=kept) as server:
        assert ask(server.url, "SELECT answer FROM survivor") == 42


def test_a_postmaster_pid_that_kill_9_left_is_no_hindrance(kept: Path) -> None:
    with TemporaryPostgres(data_dir=kept) as server:
        pid = postmaster_pid(kept)
        kill_9(pid)
        assert eventually(lambda: not alive(pid))
    assert postmaster_pid(kept) == pid
    with server:
        assert ask(server.url, "SELECT 1") == 1


def test_a_start_right_after_kill_9_of_python_waits_for_the_old_server(kept: Path) -> None:
    with holder(data_dir=str(kept)) as child:
        child.process.kill()
        with TemporaryPostgres(data_dir=kept) as server:
            assert ask(server.url, "SELECT 1") == 1
