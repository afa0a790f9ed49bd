"""The supervisor's own logic, in this process; what its end does is told by the other tests."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest
from mgf_sqlalchemy.testing.processes import alive

from mgf.sqlalchemy.testing import TemporaryPostgres, _supervisor
from mgf.sqlalchemy.testing._account import server_account
from mgf.sqlalchemy.testing._binaries import find_binaries

if TYPE_CHECKING:
    from pathlib import Path

    from mgf.sqlalchemy.testing._protocol import Failed, Job, Ready


@pytest.fixture
def job(temporary_folder: Path) -> Job:
    """What TemporaryPostgres asks for when it has no arguments."""
    server = TemporaryPostgres()
    return server._job(find_binaries(), server_account(None))


def run(job: Job, **changes: Any) -> Ready | Failed:
    """Supervise until the first report, and return that."""
    reports: list[Ready | Failed] = []
    gone = threading.Event()

    def report(reply: Ready | Failed) -> None:
        reports.append(reply)
        gone.set()

    _supervisor.supervise(cast("Job", {**job, **changes}), gone, report)
    (only,) = reports
    return only


def error_of(reply: Ready | Failed) -> str:
    assert "error" in reply
    return reply["error"]


def test_a_server_is_reported_once_it_is_ready_and_gone_afterwards(job: Job) -> None:
    reply = run(job)
    assert "pid" in reply
    assert not alive(reply["pid"])


def test_a_parent_that_is_gone_already_gets_no_server_and_no_folder(
    job: Job, tmp_path: Path
) -> None:
    gone = threading.Event()
    gone.set()
    reports: list[object] = []
    job["data"] = str(tmp_path / "new" / "data")
    _supervisor.supervise(job, gone, reports.append)
    assert not reports
    assert not any(tmp_path.iterdir())


def test_a_failed_initdb_is_told_with_its_output_and_undone(job: Job, tmp_path: Path) -> None:
    (data := tmp_path / "data").mkdir()
    reply = run(job, initdb=["--locale=nonsense"], data=str(data), by_descriptor=True)
    assert "initdb failed with exit code 1" in error_of(reply)
    assert "nonsense" in cast("Failed", reply)["log"]
    assert not any(data.iterdir())


def test_what_a_failed_initdb_leaves_is_removed(job: Job, temporary_folder: Path) -> None:
    (programs := temporary_folder / "bin").mkdir()
    initdb = programs / "initdb"
    initdb.write_text('#!/bin/sh\nmkdir "$2/base"\ntouch "$2/base/1" "$2/PG_VERSION"\nexit 3\n')
    initdb.chmod(0o755)
    (data := temporary_folder / "data").mkdir()
    assert "exit code 3" in error_of(run(job, bindir=str(programs), data=str(data)))
    assert not any(data.iterdir())
    data.rmdir()
    shutil.rmtree(programs)


def test_a_start_that_takes_too_long_is_undone(job: Job, tmp_path: Path) -> None:
    reply = run(job, timeout=0.1, data=str(tmp_path / "new" / "data"), by_descriptor=True)
    assert "not ready within 0.1 s" in error_of(reply)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("files", [{"a": "b"}, {"PG_VERSION": "9"}, {"PG_VERSION": "{major}"}])
def test_a_folder_of_others_is_the_callers_mistake(
    job: Job, tmp_path: Path, files: dict[str, str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text.format(**job))
    reply = run(job, data=str(tmp_path))
    assert cast("Failed", reply)["misuse"]


def test_a_port_and_a_setting_that_cannot_be_had_are_told(job: Job, kept: Path) -> None:
    reply = run(job, **on(kept), port=1, settings={"listen_addresses": "192.0.2.1"})
    assert "port 1 of 127.0.0.1 cannot be had" in error_of(reply)
    reply = run(job, **on(kept), settings={"shared_buffers": "nonsense"})
    assert "PostgreSQL ended with exit code 1" in error_of(reply)


def test_relocated_binaries_serve_from_the_temporary_folder(job: Job, kept: Path) -> None:
    binaries = find_binaries()
    assert "port" in run(job, **on(kept), relocate=[str(part) for part in binaries.relocatable])


def test_programs_that_cannot_be_run_are_told(job: Job, tmp_path: Path) -> None:
    assert "cannot start PostgreSQL" in error_of(run(job, bindir=str(tmp_path)))


def test_a_port_taken_between_choice_and_use_is_chosen_anew(
    job: Job, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        choices = iter([other.getsockname()[1], free := _supervisor._free_port()])
        monkeypatch.setattr(_supervisor, "_free_port", lambda: next(choices))
        reply = run(job, **on(kept))
    assert cast("Ready", reply)["port"] == free


def test_a_port_that_stays_taken_ends_the_attempts(
    job: Job, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_supervisor, "_PORT_ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr(_supervisor, "_free_port", lambda: other.getsockname()[1])
        assert "cannot be had" in error_of(run(job, **on(kept)))


def test_a_folder_another_process_holds_is_waited_for(job: Job, kept: Path) -> None:
    descriptor = os.open(kept, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    threading.Timer(0.3, os.close, [descriptor]).start()
    assert "port" in run(job, **on(kept))


def test_a_folder_another_process_keeps_holding_is_given_up(
    job: Job, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_supervisor, "_PATIENCE", 0.1)
    descriptor = os.open(kept, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert "in use by a running server" in error_of(run(job, **on(kept)))
    os.close(descriptor)


def test_a_folder_served_by_a_postmaster_of_others_is_given_up(
    job: Job, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_supervisor, "_PATIENCE", 0.1)
    owner = kept.stat()
    with subprocess.Popen(["sleep", "60"], user=owner.st_uid, group=owner.st_gid) as other:
        (kept / "postmaster.pid").write_text(f"{other.pid}\n{kept}\n1\n1\n\n\n\nready\n")
        os.chown(kept / "postmaster.pid", owner.st_uid, owner.st_gid)
        reply = run(job, **on(kept))
        other.kill()
    (kept / "postmaster.pid").unlink()
    assert "in use by a running server" in error_of(reply)
    assert 'lock file "postmaster.pid" already exists' in cast("Failed", reply)["log"]


def test_a_process_that_ignores_the_polite_signals_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_supervisor, "_STOP_PATIENCE", 0.1)
    stubborn = "import signal, time; [signal.signal(s, signal.SIG_IGN) for s in (2, 3)]; "
    stubborn += "print('deaf', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        _supervisor.stop(process)
        assert process.returncode == -9


def test_a_folder_that_cannot_be_removed_at_once_is_tried_again(tmp_path: Path) -> None:
    link = tmp_path / "link"  # what rmtree refuses
    link.symlink_to(tmp_path)
    threading.Timer(0.2, link.unlink).start()
    _supervisor.remove(link)
    assert not link.is_symlink()


def test_a_folder_that_cannot_be_removed_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_supervisor, "_PATIENCE", 0.1)
    (tmp_path / "link").symlink_to(tmp_path)
    _supervisor.remove(tmp_path / "link")


def test_the_job_comes_and_the_answer_goes_as_a_line_of_json(job: Job, kept: Path) -> None:
    reading, writing = os.pipe()

    class Answer(io.BytesIO):
        """The parent goes as soon as it has the answer."""

        def write(self, line: Any) -> int:
            os.close(writing)
            return super().write(line)

    answer = Answer()
    os.write(writing, json.dumps({**job, **on(kept)}).encode() + b"\n")
    with open(reading, "rb", buffering=0) as lifeline:  # noqa: PTH123 - a descriptor
        _supervisor.main(lifeline, answer)
    assert set(json.loads(answer.getvalue())) == {"port", "password", "pid"}


def on(kept: Path) -> dict[str, Any]:
    """Say that the data folder is there already, and closed to others as pytest's folders are."""
    return {"data": str(kept), "by_descriptor": sys.platform == "linux"}
