"""On a hot standby nothing can be written: the audit says what it lacks, the probe does not run."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from mgf_sqlalchemy.audit.correct import Correct, counted

from harness.schemas import Database
from harness.servers import bindirs, name_of, new_database
from harness.standby import catch_up, pg_basebackup, standby_of
from harness.tenants import APP_PASSWORD
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import create_engine
from mgf.sqlalchemy.audit import (
    RlsNotActiveError,
    audit,
    audit_connection,
    probe,
    require_rls,
)
from mgf.sqlalchemy.audit._command import main
from mgf.sqlalchemy.testing import TemporaryPostgres
from mgf.sqlalchemy.testing._binaries import URL_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgf.sqlalchemy.audit import Report


class Replicated:
    """A database in which nothing is wrong, and its copy on a standby."""

    def __init__(self, correct: Correct, standby: Database) -> None:
        self.correct = correct
        self.standby = standby
        self.app_url = standby.url.set(username=correct.role, password=APP_PASSWORD)
        self.run(f"ALTER ROLE {correct.role} PASSWORD '{APP_PASSWORD}'")

    def run(self, *statements: str) -> None:
        """Run statements on the primary, and wait for the standby."""
        self.correct.database.run(*statements)
        catch_up(self.correct.database.owner, self.standby.owner)

    def audit(self) -> Report:
        report = audit_connection(
            self.standby.owner, role=self.correct.role, metadata=self.correct.metadata
        )
        self.standby.owner.rollback()
        return report

    def ids(self) -> set[str]:
        """Return the ids of what counts."""
        return {one.id for one in counted(self.audit())}


@pytest.fixture(scope="module", params=bindirs(), ids=name_of)
def replicated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicated]:
    if os.environ.get(URL_VARIABLE):
        pytest.skip(f"{URL_VARIABLE} names a server, and a standby is made of one's own")
    program = pg_basebackup(request.param)
    if program is None:
        pytest.skip("there is no pg_basebackup beside this PostgreSQL")
    folder = tmp_path_factory.mktemp("standby") / "data"
    with TemporaryPostgres(bindir=request.param) as primary:
        correct = Correct(Database(asyncio.run(new_database(primary.url))))
        with standby_of(primary, request.param, program, folder) as standby:
            copy = Database(standby.url.set(database=correct.database.url.database))
            yield Replicated(correct, copy)
            asyncio.run(copy.dispose())
        asyncio.run(correct.database.dispose())


def test_the_standby_is_one(replicated: Replicated) -> None:
    assert replicated.standby.ask("SELECT pg_is_in_recovery()") is True


def test_the_audit_says_that_it_compared_with_recorded_predicates(replicated: Replicated) -> None:
    report = replicated.audit()

    assert replicated.ids() == set()
    assert "server-recorded-deparse" in {one.id for one in report.findings}
    assert [one.object for one in report.not_proven] == ["public.remark"] * 2


async def test_the_application_s_own_engine_is_audited(replicated: Replicated) -> None:
    engine = create_engine(replicated.app_url)
    try:
        report = await audit(engine, metadata=replicated.correct.metadata)
    finally:
        await engine.dispose()

    assert {one.id for one in report.findings} - {"server-cve-floor"} == {"server-recorded-deparse"}


@pytest.mark.parametrize(
    ("mistake", "undone", "check"),
    [
        (
            "ALTER TABLE line DISABLE ROW LEVEL SECURITY",
            "ALTER TABLE line ENABLE ROW LEVEL SECURITY",
            "rls-off-with-policies",
        ),
        (
            "CREATE POLICY more ON line TO {role} USING (true)",
            "DROP POLICY more ON line",
            "policy-always-true",
        ),
        (
            "GRANT TRUNCATE ON line TO {role}",
            "REVOKE TRUNCATE ON line FROM {role}",
            "grant-truncate",
        ),
    ],
)
def test_a_mistake_is_found(replicated: Replicated, mistake: str, undone: str, check: str) -> None:
    replicated.run(mistake.replace("{role}", replicated.correct.role))
    try:
        assert check in replicated.ids()
    finally:
        replicated.run(undone.replace("{role}", replicated.correct.role))


async def test_a_program_may_start_on_a_standby(replicated: Replicated) -> None:
    engine = create_engine(replicated.app_url)
    try:
        await require_rls(engine, metadata=replicated.correct.metadata)

        replicated.run("ALTER TABLE line DISABLE ROW LEVEL SECURITY")
        with pytest.raises(RlsNotActiveError, match=r"public\.line"):
            await require_rls(engine, metadata=replicated.correct.metadata)
    finally:
        replicated.run("ALTER TABLE line ENABLE ROW LEVEL SECURITY")
        await engine.dispose()


async def test_the_probe_refuses_to_start(replicated: Replicated) -> None:
    engine = create_engine(replicated.app_url)
    try:
        with pytest.raises(AppConfigError, match="is a standby"):
            await probe(engine)
    finally:
        await engine.dispose()


def test_the_command_s_probe_is_2_and_says_why(
    replicated: Replicated, capsys: pytest.CaptureFixture[str]
) -> None:
    url = replicated.app_url.render_as_string(hide_password=False)
    arguments = ["audit", url, "--ignore", "server-cve-floor=the machine's own"]
    assert main(arguments) == 0
    capsys.readouterr()

    assert main([*arguments, "--probe"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "is a standby" in err
    assert "the primary" in err


def test_the_probe_refuses_a_read_only_transaction(correct: Correct) -> None:
    correct.change("SET LOCAL transaction_read_only = on")

    with pytest.raises(AppConfigError, match="is read-only"):
        correct.probe()
