"""How far a run is: on the terminal that watches a long one, else in the log."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from alembic import command

from harness.migrations import ACCOUNT, Project

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import URL

DRIVERS = ["postgresql+asyncpg", "postgresql+psycopg2", "sqlite"]
SLOW = "import time\ntime.sleep(2.5)"
LOGGED = """
import logging, os
from mgf.alembic import configure_env

logging.basicConfig(level=logging.INFO)
configure_env(database_url=os.environ["DATABASE_URL"], target_metadata=None)
"""


@pytest.fixture(params=DRIVERS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL | str:
    if request.param.startswith("sqlite"):
        return f"{request.param}:///{tmp_path}/a.db"
    database: URL = request.getfixturevalue("database")
    return database.set(drivername=request.param)


def seen_on_a_terminal(project: Project, url: URL | str) -> str:
    """What `alembic upgrade head` writes when its standard error is a terminal."""
    reader, writer = os.openpty()
    with project.started("upgrade", "head", database_url=url, stderr=writer) as process:
        os.close(writer)
        seen = b""
        try:
            while part := os.read(reader, 1024):
                seen += part
        except OSError:  # Linux says so when the last writer has closed it
            pass
        process.communicate(timeout=30)
    os.close(reader)
    return seen.decode()


def lines(seen: str) -> list[str]:
    """The different texts that a terminal showed, one after the other, without seconds."""
    texts = [re.sub(r"\d+\.\d s", "N s", text.strip()) for text in re.split(r"[\r\n]+", seen)]
    return [text for text in dict.fromkeys(texts) if text]


class TestTerminal:
    def test_a_long_run_shows_which_step_of_how_many_and_the_seconds(
        self, project: Project, url: URL | str
    ) -> None:
        project.add(SLOW)
        project.add(ACCOUNT)

        seen = seen_on_a_terminal(project, url)

        assert lines(seen) == ["step 1 of 2, N s: upgrade  -> r1", "all 2 steps done, N s"]
        assert re.search(r"step 1 of 2, 1\.\d s.*step 1 of 2, 2\.\d s", seen)
        assert seen.endswith("\n")

    def test_a_short_run_shows_nothing(self, project: Project, url: URL | str) -> None:
        project.add(ACCOUNT)

        assert seen_on_a_terminal(project, url) == ""

    def test_a_run_that_has_nothing_to_do_shows_nothing(
        self, project: Project, url: URL | str
    ) -> None:
        assert seen_on_a_terminal(project, url) == ""

    def test_a_long_run_that_fails_leaves_the_step(self, project: Project, database: URL) -> None:
        project.add(ACCOUNT)
        project.add(f"{SLOW}\nraise LookupError('no account')")

        seen = lines(seen_on_a_terminal(project, database))

        assert seen[0] == "step 2 of 2, N s: upgrade r1 -> r2"
        assert seen[1].startswith("Traceback")

    def test_lines_of_the_log_stay_whole(self, project: Project, database: URL) -> None:
        project.write("migrations/env.py", LOGGED)
        project.add(SLOW)
        project.add(ACCOUNT)

        seen = lines(seen_on_a_terminal(project, database))

        assert "INFO:alembic.runtime.migration:Running upgrade r1 -> r2" in seen
        assert not [line for line in seen if line.startswith("INFO:mgf.alembic")]


class TestLog:
    def test_each_step_and_the_end_are_logged(self, project: Project, url: URL | str) -> None:
        project.write("migrations/env.py", LOGGED)
        project.add(ACCOUNT)
        project.add("pass")

        log = project.alembic("upgrade", "head", database_url=url)

        assert [
            re.sub(r"\d+\.\d s", "N s", one) for one in re.findall("mgf.alembic:(.*)", log)
        ] == [
            "step 1 of 2, N s: upgrade  -> r1",
            "step 2 of 2, N s: upgrade r1 -> r2",
            "all 2 steps done, N s",
        ]

    def test_without_logging_a_short_run_prints_nothing(
        self, project: Project, url: URL | str
    ) -> None:
        project.add(ACCOUNT)

        assert project.alembic("upgrade", "head", database_url=url) == ""

    @pytest.mark.parametrize("word", ["current", "heads", "revision"])
    def test_what_changes_nothing_has_no_steps(
        self, project: Project, database: URL, word: str
    ) -> None:
        project.write("migrations/env.py", LOGGED)
        project.add("pass")
        project.alembic("upgrade", "head", database_url=database)

        assert "mgf.alembic" not in project.alembic(word, database_url=database)

    def test_steps_that_are_tried_again_keep_their_number(
        self, project: Project, database: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        project.add('op.execute("CREATE SEQUENCE tries")')
        project.add(
            """
            op.execute('''DO $$ BEGIN
                IF nextval('tries') < 2 THEN RAISE 'as asked' USING ERRCODE = '55P03'; END IF;
            END $$''')
            """
        )
        caplog.set_level("INFO", "mgf.alembic")

        project.upgrade(database)

        said = [record.message.partition(",")[0] for record in caplog.records]
        steps = [text for text in said if text.startswith(("step", "all"))]
        assert steps == ["step 1 of 2", "step 2 of 2", "step 2 of 2", "all 2 steps done"]

    def test_downwards_too(
        self, project: Project, database: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        project.add("pass")
        project.add("pass")
        project.upgrade(database)
        caplog.set_level("INFO", "mgf.alembic")

        project.run(command.downgrade, "base", database_url=database)

        assert re.search(r"step 1 of 2, [\d.]+ s: downgrade r2 -> r1", caplog.text)
