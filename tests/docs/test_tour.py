"""The tour of the example: it succeeds, it fails when a tenant is not isolated, it clears up."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import jwt
import pytest
from app import create_app
from architecture.workspace import ROOT, clean_environment
from database import run_sql
from models import Base
from sqlalchemy import create_engine
from tour import PAGE, make_settings, prove, report, serving, take_tour

from mgf.common.exceptions import OperationError
from mgf.sqlalchemy.rls import compare_protection, expected_protection, read_protection

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from sqlalchemy import URL

EXAMPLES = ROOT / "docs/examples"
ADDRESS = re.compile(r"127\.0\.0\.1:(\d+)")
# The tour makes a role, which belongs to a whole server: it takes one of its own, not this.
OTHER_SERVER = {"MGF_TEST_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}
KEY = "a key that is as long as one has to be"
EVERYTHING = "POLICY everything ON invoice"
FLOOR = "POLICY tenant_floor ON invoice"


def leaks_of(owner: URL, app: URL, *mistakes: str) -> str:
    """Take the tour on a database and return what it reports as leaks, line by line.

    The service starts before the mistakes are made: it would not serve a database with some of
    them.
    """
    with serving(create_app(make_settings(app, KEY))) as address:
        for mistake in mistakes:
            run_sql(owner, mistake)
        return "\n".join(take_tour(owner, app, address, KEY))


def test_an_intact_policy_passes(owner: URL, app: URL) -> None:
    assert leaks_of(owner, app) == ""


def test_another_policy_beside_the_floor_leaks_nothing(owner: URL, app: URL) -> None:
    assert leaks_of(owner, app, f"CREATE {EVERYTHING} FOR SELECT USING (true)") == ""


def test_a_policy_that_shows_everything_is_a_leak(owner: URL, app: URL) -> None:
    leaks = leaks_of(owner, app, f"DROP {FLOOR}", f"CREATE {EVERYTHING} FOR SELECT USING (true)")

    assert "Acme against Bolt, read Bolt's 4: 200, invoice 4" in leaks
    assert "Bolt against Acme, export all: 200, invoices 1, 2, 4, 5" in leaks
    assert "No tenant, by mistake, select all: 00000, rows: 1, 2, 4, 5" in leaks
    assert "the database holds other rows" not in leaks


def test_a_policy_that_lets_everything_be_written_is_a_leak(owner: URL, app: URL) -> None:
    leaks = leaks_of(owner, app, f"DROP {FLOOR}", f"CREATE {EVERYTHING} USING (true)")

    assert "Acme against Bolt, delete Bolt's 4: 204" in leaks
    assert "Bolt, by mistake, insert for Acme: 00000" in leaks
    assert "the database holds other rows" in leaks


def test_row_security_switched_off_is_a_leak(owner: URL, app: URL) -> None:
    leaks = leaks_of(owner, app, "ALTER TABLE invoice DISABLE ROW LEVEL SECURITY")

    assert leaks.startswith("row-level security of the table invoice does not hold the role")
    assert "Acme against Bolt, delete Bolt's 4: 204" in leaks


def test_a_dropped_policy_is_reported_too(owner: URL, app: URL) -> None:
    """PostgreSQL then lets nobody see anything, which is not what the tour expects either."""
    leaks = leaks_of(owner, app, "DROP POLICY tenant_isolation ON invoice")

    assert "Acme, own rows, create, for Ann: 403" in leaks


def test_a_service_that_does_not_verify_tokens_is_a_leak(
    owner: URL, app: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    unverified = partial(jwt.decode, options={"verify_signature": False})
    monkeypatch.setattr(jwt, "decode", lambda token, *_args, **_options: unverified(token))

    leaks = leaks_of(owner, app)

    assert "forged: 200, invoices" in leaks
    assert "expired: 200, invoices" in leaks


def test_a_service_that_connects_as_superuser_does_not_start(owner: URL, app: URL) -> None:
    with (
        pytest.raises(OperationError, match="did not start"),
        serving(create_app(make_settings(owner, KEY))),
    ):
        pass


def test_the_library_s_own_examination_is_a_page(
    owner: URL, app: URL, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"

    assert prove(app, page) == []
    assert "every attack was held off" in capsys.readouterr().out
    assert "public.invoice, read: held" in page.read_text()


def test_what_the_examination_finds_is_a_leak(owner: URL, app: URL, tmp_path: Path) -> None:
    run_sql(owner, "GRANT TRUNCATE ON invoice TO invoices_app")

    assert len(prove(app, tmp_path / "page.html")) == 1


def test_a_leak_ends_with_exit_code_1_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(["Acme read Bolt's"]) == 1
    assert capsys.readouterr().out == "\nLEAK:\n  Acme read Bolt's\n"
    assert report([]) == 0


def test_the_protection_of_the_models_is_what_the_migrations_make(owner: URL, app: URL) -> None:
    engine = create_engine(owner.set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        expected = expected_protection(connection, Base.metadata)
        there = read_protection(connection)
    engine.dispose()

    assert list(compare_protection(expected, there)) == []


@pytest.fixture
def temporary() -> Iterator[Path]:
    """An empty folder for what a program leaves in TMPDIR; PostgreSQL's account may enter it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def running(
    temporary: Path, *arguments: str, **environment: str
) -> Generator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-W", "error", EXAMPLES / "tour/tour.py", *arguments],
        env=clean_environment(
            TMPDIR=str(temporary),
            PYTHONPATH=str(EXAMPLES / "invoices"),
            **OTHER_SERVER,
            **environment,
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def outcome(temporary: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    with running(temporary, *arguments, **environment) as process:
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def assert_nothing_is_left(out: str, temporary: Path) -> None:
    ports = [int(port) for port in ADDRESS.findall(out)]
    assert len(ports) >= 2
    for port in ports:
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            pass
    assert list(temporary.iterdir()) == []


def test_the_tour_succeeds_and_leaves_nothing_but_a_page_over_the_last_one(
    temporary: Path,
) -> None:
    PAGE.write_text("of the last tour")
    code, out, err = outcome(temporary)

    assert (code, err) == (0, "")
    assert f"\nThe same as a page: {PAGE}\n" in out
    assert PAGE.read_text().startswith("<!DOCTYPE html>")
    assert out.endswith("\nNothing leaked.\n")
    assert max(len(line) for line in out.replace(str(PAGE), "").splitlines()) <= 100
    assert_nothing_is_left(out, temporary)


def read_until(text: str, process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    out = ""
    while text not in out:
        line = process.stdout.readline()
        assert line, out
        out += line
    return out


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_serve_runs_until_it_is_told_to_stop(temporary: Path, signal_: signal.Signals) -> None:
    page = temporary / "page.html"
    with running(temporary, "--serve", "--report", str(page)) as process:
        out = read_until("Ctrl-C", process)
        process.send_signal(signal_)
        rest, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    page.unlink()
    assert_nothing_is_left(out + rest, temporary)


def test_what_serve_prints_can_be_called(temporary: Path) -> None:
    page = temporary / "page.html"
    with running(temporary, "--serve", "--report", str(page)) as process:
        out = read_until("Ctrl-C", process)
        documentation = re.search(r"http://\S+/docs", out)
        assert documentation
        assert "Invoices" in httpx.get(documentation[0]).text
        commands = re.search(r"  # as Acme.*/invoices/1\n", out, re.DOTALL)
        assert commands
        script = commands[0].replace("curl", "curl --silent")
        answers = subprocess.run(
            ["bash", "-ec", script], stdout=subprocess.PIPE, text=True, check=True
        )
    acme, bolt = answers.stdout.split("Dora")
    assert (acme.count('"id"'), bolt.count('"id"')) == (2, 2)
    assert answers.stdout.count("no such invoice") == 2


def test_a_signal_in_the_middle_leaves_nothing(temporary: Path) -> None:
    with running(temporary) as process:
        assert process.stdout is not None
        while not list(temporary.iterdir()):
            assert process.poll() is None
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert list(temporary.iterdir()) == []


def test_a_port_that_is_taken_is_said_in_one_line(temporary: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, out, err = outcome(temporary, "--port", port)
    assert (code, out) == (2, "")
    assert err.startswith("The tour could not be made: ")
    assert "in use" in err
    assert err.count("\n") == 1
    assert list(temporary.iterdir()) == []


def test_missing_binaries_are_said_in_one_line(temporary: Path) -> None:
    code, out, err = outcome(temporary, MGF_PG_BINDIR=str(temporary))
    assert (code, out) == (2, "")
    assert err.startswith("The tour could not be made: no program 'initdb'")
    assert err.count("\n") == 1
