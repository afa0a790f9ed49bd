"""The command: exit codes, one line for what keeps it from running, and files as a whole."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from architecture.workspace import clean_environment

from mgf.sqlalchemy.audit._command import main
from mgf.sqlalchemy.rls import ensure_app_role

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from mgf_sqlalchemy.audit.correct import Correct
    from sqlalchemy import URL

TENANTS = ["00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"]
SECRET = "n0t-to-be-seen"
MODELS = """
import sqlalchemy as sa
from mgf.sqlalchemy.rls import protect_metadata, tenant_table

print("models say hello")
class Base:
    metadata = sa.MetaData()
t = sa.Table("t", Base.metadata, sa.Column("tenant_id", sa.Uuid, primary_key=True))
tenant_table()(t)
protect_metadata(Base.metadata, role={role!r})
unprotected = sa.MetaData()
"""


def plain(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@pytest.fixture
def url(correct: Correct) -> str:
    return plain(correct.database.url)


@pytest.fixture
def open_door(correct: Correct) -> Iterator[str]:
    """A finding that other connections see."""
    correct.change("GRANT TRUNCATE ON line TO {role}")
    correct.database.owner.commit()
    yield plain(correct.database.url)
    correct.change("REVOKE TRUNCATE ON line FROM {role}")
    correct.database.owner.commit()


@pytest.fixture
def models(correct: Correct, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module "shop_models" in the current folder."""
    (tmp_path / "shop_models.py").write_text(MODELS.format(role=correct.role))
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield
    sys.path[:] = path
    sys.modules.pop("shop_models", None)


# A server below the floor of fixes is one of those that the suite runs on, and its superuser asks.
ALLOWED = [
    *("--ignore", "server-cve-floor=the machine's own"),
    *("--ignore", "login-resets-role=the tests alone log in so"),
]


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(["audit", *arguments])
    except SystemExit as stop:  # argparse
        code = stop.code if isinstance(stop.code, int) else 1
    out, err = capsys.readouterr()
    err = "\n".join(line for line in err.splitlines() if "left nothing out" not in line)
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that says why the command did not run."""
    code, out, err = outcome(capsys, *arguments)
    assert (code, out) == (2, "")
    assert SECRET not in err
    assert "\n" not in err.strip()
    prefix = "mgf-sqlalchemy audit: error: "
    assert err.startswith(prefix)
    return err.removeprefix(prefix)


def test_a_clean_database_is_0(
    url: str, correct: Correct, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = outcome(capsys, url, "--role", correct.role, *ALLOWED)

    assert (code, err) == (0, "")
    assert out.splitlines()[-2].startswith("ok: ")


def test_a_finding_is_1(
    open_door: str, correct: Correct, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = outcome(capsys, open_door, "--role", correct.role)

    assert code == 1
    assert "grant-truncate" in out
    assert "\x1b" not in out


def test_a_probe_goes_into_the_same_report(
    open_door: str, correct: Correct, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--role", correct.role, "--probe", "--format", "json"]
    for tenant in TENANTS:
        arguments += ["--tenant", tenant]
    code, out, _ = outcome(capsys, open_door, *arguments)

    report = json.loads(out)
    assert code == 1
    assert {"grant-truncate", "probe-truncate"} <= {one["id"] for one in report["findings"]}
    assert report["probed"]["control"] == "caught"
    assert report["probed"]["relations"]["public.line"]["truncate"] == "leaked"


def test_a_role_that_the_login_may_not_become_is_said(
    correct: Correct, capsys: pytest.CaptureFixture[str]
) -> None:
    role = f"{correct.role}_in"
    ensure_app_role(correct.database.owner, role, password=SECRET)
    correct.database.owner.commit()
    url = correct.database.url.set(username=role, password=SECRET)
    try:
        message = refused(capsys, plain(url), "--role", correct.role, "--probe")
    finally:
        correct.change(f"DROP ROLE {role}")
        correct.database.owner.commit()

    assert f"may not become {correct.role!r}" in message


def test_the_url_may_come_from_the_environment(
    url: str,
    correct: Correct,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MGF_DATABASE_URL", url)
    assert outcome(capsys, "--role", correct.role, *ALLOWED)[0] == 0

    monkeypatch.delenv("MGF_DATABASE_URL")
    assert "MGF_DATABASE_URL" in refused(capsys)


def test_json_is_the_report(
    open_door: str, correct: Correct, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = outcome(capsys, open_door, "--role", correct.role, "--format", "json")

    report = json.loads(out)
    assert (code, report["ok"], report["role"]) == (1, False, correct.role)
    assert [one["object"] for one in report["findings"] if one["id"] == "grant-truncate"] == [
        "public.line"
    ]


@pytest.mark.parametrize("name", ["grant-truncate", "grant-truncate public.line"])
def test_what_is_ignored_counts_no_more(
    open_door: str, correct: Correct, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code, out, _ = outcome(
        capsys,
        open_door,
        "--role",
        correct.role,
        "--ignore",
        f"{name}=a night job = nightly",
        *ALLOWED,
    )

    assert code == 0
    assert f"{name}: a night job = nightly" in out


def test_what_is_ignored_in_vain_is_said(
    url: str, correct: Correct, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["audit", url, "--role", correct.role, "--ignore", "rls-off=an old one"])

    assert "--ignore 'rls-off' left nothing out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ignore", "message"),
    [
        ("rls-off", "no reason"),
        ("rls-off= ", "no reason"),
        ("=why", "no reason"),
        ("rls-of=why", "no check 'rls-of'; 'rls-off' is one"),
        ("nonsense=why", "no check 'nonsense'"),
    ],
)
def test_a_bad_ignore_is_refused(
    capsys: pytest.CaptureFixture[str], ignore: str, message: str
) -> None:
    code, _, err = outcome(capsys, "postgresql://nowhere", "--ignore", ignore)

    assert code == 2
    assert message in err


def test_metadata_is_found_in_the_current_folder(
    url: str, correct: Correct, models: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--role", correct.role, "--metadata", "shop_models:Base.metadata"]
    code, out, err = outcome(capsys, url, *arguments, "--format", "json")

    assert code == 1
    assert "table-missing" in {one["id"] for one in json.loads(out)["findings"]}
    assert err == "models say hello"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("shop_models", "MODULE:NAME"),
        ("shop_models:", "MODULE:NAME"),
        ("no_such_module_at_all:Base", "No module named 'no_such_module_at_all'"),
        ("broken:Base", "importing 'broken'"),
        ("leaving:Base", "SystemExit"),
        ("shop_models:Nothing.metadata", "no 'Nothing' in it"),
        ("shop_models:t", "is of type 'Table'"),
        ("shop_models:Base", "write shop_models:Base.metadata"),
    ],
)
def test_metadata_that_cannot_be_had_is_refused(
    url: str, models: None, capsys: pytest.CaptureFixture[str], path: str, message: str
) -> None:
    Path("broken.py").write_text("raise ValueError('two\\nlines')")
    Path("leaving.py").write_text("raise SystemExit(0)")
    code, out, err = outcome(capsys, url, "--metadata", path)

    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_metadata_that_is_not_protected_is_refused(
    url: str, models: None, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = outcome(capsys, url, "--metadata", "shop_models:unprotected")

    assert code == 2
    assert "protect_metadata" in err


DRIVERS = ["postgresql+asyncpg", "postgresql+psycopg"]
every_driver = pytest.mark.parametrize("driver", DRIVERS)


@every_driver
def test_an_unreachable_server_is_said(capsys: pytest.CaptureFixture[str], driver: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    message = refused(capsys, f"{driver}://app:{SECRET}@127.0.0.1:{port}/shop")

    assert str(port) in message
    assert "is the server up" in message


@every_driver
def test_a_server_that_says_nothing_is_given_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    monkeypatch.setattr("mgf.sqlalchemy.audit._command._CONNECT_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        message = refused(capsys, f"{driver}://app:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/x")

    assert "no answer from '127.0.0.1'" in message


@every_driver
def test_an_unknown_host_is_said(capsys: pytest.CaptureFixture[str], driver: str) -> None:
    refused(capsys, f"{driver}://app:{SECRET}@nowhere.invalid/shop")


@every_driver
def test_a_wrong_password_is_said(
    correct: Correct, capsys: pytest.CaptureFixture[str], driver: str
) -> None:
    wrong = correct.database.url.set(drivername=driver, password=SECRET)

    assert "password authentication failed" in refused(capsys, plain(wrong))


@every_driver
def test_a_database_that_is_not_there_is_said(
    correct: Correct, capsys: pytest.CaptureFixture[str], driver: str
) -> None:
    message = refused(capsys, plain(correct.database.url.set(drivername=driver, database="none")))

    assert '"none" does not exist' in message


@every_driver
def test_a_missing_privilege_is_said(
    correct: Correct, capsys: pytest.CaptureFixture[str], driver: str
) -> None:
    role = f"{correct.role}_out"
    database = correct.database.url.database
    ensure_app_role(correct.database.owner, role, password=SECRET)
    correct.change(f'REVOKE CONNECT ON DATABASE "{database}" FROM PUBLIC')
    correct.database.owner.commit()
    url = correct.database.url.set(drivername=driver, username=role, password=SECRET)
    try:
        message = refused(capsys, plain(url))
    finally:
        correct.change(f'GRANT CONNECT ON DATABASE "{database}" TO PUBLIC', f"DROP ROLE {role}")
        correct.database.owner.commit()

    assert "permission denied for database" in message


def test_an_unknown_role_is_said(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no role 'nobody at all'" in refused(capsys, url, "--role", "nobody at all")


@pytest.mark.parametrize(
    "url", ["sqlite:///shop.db", " 'SQLite:///shop.db'", "mssql+nothing://host/shop"]
)
def test_what_is_not_postgresql_is_said_before_a_driver_is_missed(
    capsys: pytest.CaptureFixture[str], url: str
) -> None:
    assert "only PostgreSQL" in refused(capsys, url)


def test_the_url_s_own_user_is_said_where_that_is_no_application_s(
    url: str, correct: Correct, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = outcome(capsys, url)

    assert (code, "role-superuser" in out) == (1, True)
    assert f"{correct.database.url.username!r}, the URL's own user" in err
    assert "--role" in err


def test_a_missing_driver_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "driver" in refused(capsys, f"postgresql+psycopg2://app:{SECRET}@localhost/shop")


def test_a_malformed_url_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "malformed" in refused(capsys, f"postgresql://app:{SECRET}:{SECRET}@host:x/shop")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tenant", "00000000-0000-0000-0000-000000000001"], "--probe"),
        (["--probe", "--tenant", "00000000-0000-0000-0000-000000000001"], "twice"),
        (["--probe", *["--tenant", "00000000-0000-0000-0000-000000000001"] * 2], "different"),
    ],
)
def test_tenants_go_with_a_probe_and_are_two(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refused(capsys, "postgresql://nowhere.invalid/", *arguments)


def test_a_tenant_that_is_no_uuid_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = outcome(capsys, "postgresql://nowhere", "--probe", "--tenant", "one")
    assert code == 2
    assert "'one' is no UUID" in err


def test_a_warning_about_the_url_is_one_line(
    url: str, correct: Correct, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = outcome(
        capsys, f"{url}?channel_binding=require", "--role", correct.role, *ALLOWED
    )

    assert code == 0
    assert "channel_binding" in err
    assert "\n" not in err.strip()


def test_a_file_is_written_as_a_whole(
    open_door: str, correct: Correct, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.html"
    file.write_text("yesterday's")
    file.chmod(0o640)
    code, out, err = outcome(
        capsys, open_door, "--role", correct.role, "--format", "html", "--output", str(file)
    )

    assert (code, out) == (1, "")
    assert file.read_text().startswith("<!DOCTYPE html>")
    assert file.stat().st_mode & 0o777 == 0o640
    assert err.startswith("mgf-sqlalchemy audit: not ok: 1 critical")
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_stays_one(
    url: str, correct: Correct, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    outcome(capsys, url, "--role", correct.role, "--output", str(link))

    assert link.is_symlink()
    assert target.read_text().startswith("Tenant isolation")


def test_a_file_that_was_there_survives_a_run_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report"
    file.write_text("yesterday's")
    refused(capsys, "postgresql://nowhere.invalid/", "--output", str(file))

    assert file.read_text() == "yesterday's"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["no/such/folder/report", ".", "/proc/report"])
def test_a_file_that_cannot_be_written_is_told_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, "postgresql://nowhere.invalid/", "--output", name)

    assert f"cannot write {name!r}" in message


def test_a_pipe_is_written_to(
    url: str, correct: Correct, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        # A writer that stays, so that the reader does not end with the trial.
        held = os.open(pipe, os.O_RDWR)
        code, _, _ = outcome(capsys, url, "--role", correct.role, *ALLOWED, "--output", str(pipe))
        os.close(held)
        said, _ = reader.communicate(timeout=60)

    assert code == 0
    assert said.startswith("Tenant isolation")
    assert pipe.is_fifo()


# What statements are indented by; they are not wrapped.
SQL = " " * 14
PROGRAM = [str(Path(sys.executable).with_name("mgf-sqlalchemy"))]
MODULE = [sys.executable, "-W", "error", "-m", "mgf.sqlalchemy"]


@contextmanager
def on_a_terminal(
    *command: str, **environment: str
) -> Generator[tuple[int, subprocess.Popen[str]]]:
    """Start a program whose output is a terminal, and yield that with the process."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=clean_environment(TERM="xterm", COLUMNS="70", **environment),
        text=True,
    ) as process:
        os.close(theirs)
        try:
            yield ours, process
        finally:
            process.kill()
            os.close(ours)


def everything(terminal: int) -> str:
    read = b""
    while True:
        try:
            more = os.read(terminal, 65536)
        except OSError:  # Linux says so when the other end is closed
            more = b""
        if not more:
            return read.decode()
        read += more


@pytest.mark.parametrize("command", [PROGRAM, MODULE], ids=["program", "module"])
def test_the_command_is_installed_and_a_module(
    open_door: str, correct: Correct, command: list[str]
) -> None:
    result = subprocess.run(
        [*command, "audit", "--role", correct.role],
        env=clean_environment(MGF_DATABASE_URL=open_door),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.returncode, result.stderr) == (1, "")
    assert "grant-truncate" in result.stdout


def test_a_terminal_gets_colour_progress_and_its_width(open_door: str, correct: Correct) -> None:
    with on_a_terminal(*PROGRAM, "audit", "--role", correct.role, MGF_DATABASE_URL=open_door) as (
        terminal,
        process,
    ):
        said = everything(terminal)
        assert process.wait(60) == 1

    assert "\x1b[1;31mcritical" in said
    assert "reading the catalogs" in said
    report = re.sub(r"\x1b\[[\d;]*[mK]", "", said[said.index("Tenant isolation") :])
    assert max(len(line) for line in report.split("\r\n") if SQL not in line) <= 70


def test_a_terminal_without_colour_is_respected(open_door: str, correct: Correct) -> None:
    with on_a_terminal(
        *PROGRAM, "audit", "--role", correct.role, MGF_DATABASE_URL=open_door, NO_COLOR="1"
    ) as (terminal, _):
        assert "\x1b[1;31m" not in everything(terminal)


# What a driver leaves behind depends on what it was at: without care one in four says more.
@pytest.mark.parametrize("attempt", range(5))
def test_ctrl_c_is_one_line_and_130(attempt: int) -> None:
    """The server takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://app:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/shop"
        with subprocess.Popen(
            [*MODULE, "audit"],
            env=clean_environment(MGF_DATABASE_URL=url),
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        connection.close()

    assert process.returncode == 130
    assert err == (
        "mgf-sqlalchemy audit: error: interrupted; nothing was changed in the database\n"
    )


def test_a_reader_that_leaves_early_is_no_error(open_door: str, correct: Correct) -> None:
    with subprocess.Popen(
        [*MODULE, "audit", "--role", correct.role],
        env=clean_environment(MGF_DATABASE_URL=open_door),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("closed", "code", "said"), [("2>&-", 1, "grant-truncate"), (">&-", 2, "output is closed")]
)
def test_an_output_that_is_closed_is_no_traceback(
    open_door: str, correct: Correct, closed: str, code: int, said: str
) -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *MODULE, "audit", "--role", correct.role],
        env=clean_environment(MGF_DATABASE_URL=open_door),
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == code
    assert said in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_an_encoding_without_a_names_letters_is_no_error(url: str, correct: Correct) -> None:
    result = subprocess.run(
        [*MODULE, "audit", "--role", "größe"],
        env=clean_environment(MGF_DATABASE_URL=url, PYTHONIOENCODING="ascii"),
        capture_output=True,
        check=False,
    )
    assert result.returncode == 2
    assert b"Traceback" not in result.stderr


def test_help_teaches_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = outcome(capsys, "--help")

    assert code == 0
    for taught in ("MGF_DATABASE_URL", "--output report.html", "--ignore '", "exit code"):
        assert taught in out
    assert max(map(len, out.splitlines())) <= 80
