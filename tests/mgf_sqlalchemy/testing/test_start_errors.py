"""A server that does not start: the error says why and what to do, and nothing is left behind."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from mgf_sqlalchemy.testing.processes import ask

from mgf.common.exceptions import AppConfigError, OperationError
from mgf.sqlalchemy.testing import TemporaryPostgres

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cr3t"


def test_a_setting_it_does_not_take_is_told_in_its_own_words_and_without_the_password(
    kept: Path,
) -> None:
    server = TemporaryPostgres(data_dir=kept, settings={"shared_buffers": "nonsense"})
    with pytest.raises(
        OperationError, match=r"(?s)exit code 1;.*shared_buffers.*nonsense"
    ) as error:
        server.start()
    assert (kept / "mgf.password").read_text() not in str(error.value)


def test_a_start_that_takes_too_long_is_given_up() -> None:
    began = time.monotonic()
    with pytest.raises(OperationError, match=r"not ready within 0\.1 s: raise start_timeout"):
        TemporaryPostgres(start_timeout=0.1).start()
    assert time.monotonic() - began < 5


def test_a_kept_folder_that_was_not_filled_to_the_end_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(OperationError):
        TemporaryPostgres(data_dir=tmp_path / "new" / "data", start_timeout=0.1).start()
    assert not any(tmp_path.iterdir())


def test_a_taken_port_is_named(kept: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            OperationError, match=f"(?s)port {port} .*leave port= out.*could not bind"
        ):
            TemporaryPostgres(data_dir=kept, port=port).start()


def test_ctrl_c_during_a_start_leaves_nothing_behind() -> None:
    interrupt = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        TemporaryPostgres().start()
    interrupt.join()


def test_a_supervisor_that_does_not_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(OperationError, match="ended before the server was ready"):
        TemporaryPostgres().start()


def test_without_the_wheel_the_error_names_every_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:2])
    with pytest.raises(AppConfigError) as failure:
        TemporaryPostgres().start()
    for remedy in ("mgf-sqlalchemy[test-postgres]", "MGF_PG_BINDIR", "MGF_TEST_DATABASE_URL"):
        assert remedy in str(failure.value)


def test_a_folder_without_programs_is_named(tmp_path: Path) -> None:
    with pytest.raises(AppConfigError, match=f"no program 'initdb' in the folder '{tmp_path}'"):
        TemporaryPostgres(bindir=tmp_path).start()


def test_programs_that_do_not_run_are_told_in_their_own_words(tmp_path: Path) -> None:
    for name in ("initdb", "postgres"):
        (tmp_path / name).write_text("#!/bin/sh\necho no libpq here >&2\nexit 127\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(AppConfigError, match=r"postgres' does not run here: no libpq here"):
        TemporaryPostgres(bindir=tmp_path).start()


def test_the_environment_names_other_binaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGF_PG_BINDIR", str(tmp_path))
    with pytest.raises(AppConfigError, match=f"in the folder '{tmp_path}'"):
        TemporaryPostgres().start()


def test_the_argument_beats_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGF_PG_BINDIR", "/nowhere")
    with pytest.raises(AppConfigError, match=f"in the folder '{tmp_path}'"):
        TemporaryPostgres(bindir=str(tmp_path)).start()


class TestServerNamedByTheEnvironment:
    @pytest.fixture(autouse=True)
    def named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        url = f"postgres://me:{SECRET}@db.example:6543/app?password={SECRET}"
        monkeypatch.setenv("MGF_TEST_DATABASE_URL", f" {url} ")

    def test_its_url_is_the_url(self) -> None:
        with TemporaryPostgres() as server:
            assert server.url.render_as_string(hide_password=False) == (
                f"postgresql://me:{SECRET}@db.example:6543/app?password={SECRET}"
            )

    def test_nothing_is_started_nor_stopped(self, temporary_folder: Path) -> None:
        with TemporaryPostgres(bindir=None, port=1, settings={"fsync": "nonsense"}) as server:
            assert not any(temporary_folder.iterdir())
            assert (server.port, server.log) == (6543, "")

    def test_a_driver_and_a_missing_port_are_taken_as_they_are(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MGF_TEST_DATABASE_URL", "postgresql+asyncpg://db.example/app")
        with TemporaryPostgres() as server:
            assert str(server.url) == "postgresql+asyncpg://db.example/app"
            assert server.port == 5432

    @pytest.mark.parametrize("name", ["version", "data_dir"])
    def test_what_only_its_starter_knows_is_refused_without_the_password(self, name: str) -> None:
        with (
            TemporaryPostgres() as server,
            pytest.raises(AppConfigError, match=f"{name} is not known here: .*ask that") as failure,
        ):
            getattr(server, name)
        assert SECRET not in str(failure.value)

    @pytest.mark.parametrize(
        "url",
        [
            f"postgresql://me:{SECRET}:x@db.example:port{SECRET}/app",
            f"not a url {SECRET}",
            f"mysql://me:{SECRET}@db.example/app",
        ],
    )
    def test_what_is_no_postgresql_url_is_refused_without_a_part_of_it(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MGF_TEST_DATABASE_URL", url)
        with pytest.raises(AppConfigError, match="not the URL of a PostgreSQL server") as failure:
            TemporaryPostgres().start()
        assert SECRET not in str(failure.value)
        assert failure.value.__context__ is None

    def test_a_data_dir_asks_for_a_server_of_its_own(self, kept: Path) -> None:
        with TemporaryPostgres(data_dir=kept) as server:
            assert ask(server.url, "SELECT 1") == 1

    def test_a_bindir_asks_for_a_server_of_its_own(self, tmp_path: Path) -> None:
        with pytest.raises(AppConfigError, match="no program"):
            TemporaryPostgres(bindir=tmp_path).start()
