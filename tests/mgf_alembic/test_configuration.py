"""The configuration and the URL that a program gives to `await upgrade(...)` and its like."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from alembic.config import Config

from harness.migrations import ACCOUNT, SHORT_ENV, Project, text_of
from harness.servers import run_sql
from mgf.alembic import current, is_at_head, upgrade
from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import URL

DRIVERS = ["postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2"]
OWN_ENV = """
from alembic import context
from sqlalchemy import create_engine

with create_engine("sqlite://").connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""


@pytest.fixture
def project(project: Project) -> Project:
    project.write("migrations/env.py", SHORT_ENV)
    return project


@pytest.fixture
def ini(project: Project) -> Path:
    return project.folder / "alembic.ini"


class TestConfiguration:
    @pytest.fixture(params=["ini", "text", "Config", "folder", "toml"])
    def config(self, request: pytest.FixtureRequest, project: Project) -> Any:
        folder, ini = project.folder, project.folder / "alembic.ini"
        toml = folder / "pyproject.toml"
        toml.write_text('[tool.alembic]\nscript_location = "%(here)s/migrations"\n')
        forms: dict[str, Callable[[], Any]] = {
            "ini": lambda: ini,
            "text": lambda: str(ini),
            "Config": lambda: Config(ini),
            "folder": lambda: folder / "migrations",
            "toml": lambda: toml,
        }
        return forms[request.param]()

    async def test_every_form_serves(self, project: Project, config: Any, database: URL) -> None:
        project.add(ACCOUNT)

        await upgrade(config, database_url=database)

        assert await is_at_head(config, database_url=database)

    async def test_a_folder_may_hold_a_percent_sign(self, tmp_path: Path) -> None:
        (tmp_path / "50%(here)s").mkdir()
        project = Project(tmp_path / "50%(here)s")
        project.write("migrations/env.py", SHORT_ENV)

        assert await is_at_head(project.folder / "migrations", database_url="sqlite://")

    async def test_a_config_is_not_changed(self, project: Project, ini: Path) -> None:
        config = Config(ini)
        config.attributes["mine"] = 1

        await upgrade(config, database_url="sqlite://")

        assert config.attributes == {"mine": 1}
        assert config.config_file_name == str(ini)

    async def test_what_was_set_on_a_config_is_used(self, project: Project, database: URL) -> None:
        project.add(ACCOUNT)
        config = Config()
        config.set_main_option("script_location", str(project.folder / "migrations"))

        await upgrade(config, database_url=database)

        assert await current(config, database_url=database) == ("r1",)

    @pytest.mark.parametrize("name", ["nosuch.ini", "nosuch/alembic.ini", "."])
    async def test_one_that_does_not_exist_is_named(self, name: str) -> None:
        with pytest.raises(AppConfigError, match=f"no Alembic configuration '{name}', seen from"):
            await upgrade(name)

    async def test_what_is_none_at_all_is_named_by_its_type(self) -> None:
        with pytest.raises(AppConfigError, match="of type int, expected the path"):
            await upgrade(5)  # type: ignore[arg-type]

    async def test_the_search_path_does_not_grow(self, project: Project, ini: Path) -> None:
        project.append("alembic.ini", "prepend_sys_path = %(here)s\n")
        before = list(sys.path)
        try:
            for _ in range(3):
                await is_at_head(ini, database_url="sqlite://")
            assert sys.path == [str(project.folder), *before]
        finally:
            sys.path[:] = before


class TestUrl:
    async def test_it_wins_over_the_one_of_env(
        self, project: Project, ini: Path, database: URL, tmp_path: Path
    ) -> None:
        env = SHORT_ENV.replace('os.environ.get("NO_URL")', f'"sqlite:///{tmp_path}/other.db"')
        project.write("migrations/env.py", env)
        project.add(ACCOUNT)

        await upgrade(ini, database_url=database)

        assert await is_at_head(ini, database_url=database)
        assert not await is_at_head(ini)

    async def test_without_one_env_is_asked(self, project: Project, ini: Path) -> None:
        project.add(ACCOUNT)

        with pytest.raises(AppConfigError, match="database_url=None; pass it in migrations/env"):
            await upgrade(ini)

    @pytest.mark.parametrize("driver", DRIVERS)
    @pytest.mark.parametrize("as_text", [False, True])
    async def test_a_password_may_hold_any_character(
        self, project: Project, ini: Path, database: URL, driver: str, as_text: bool
    ) -> None:
        password = "50%s:@/?#%(here)s &"
        role = f"role_{database.database}"
        await run_sql(database, f"CREATE ROLE {role} LOGIN PASSWORD '{password}' SUPERUSER")
        project.add(ACCOUNT)
        url = database.set(drivername=driver, username=role, password=password)

        await upgrade(ini, database_url=text_of(url) if as_text else url)

        assert await is_at_head(ini, database_url=url)

    @pytest.mark.parametrize("driver", [*DRIVERS, "mysql+pymysql"])
    async def test_an_error_shows_no_password(self, ini: Path, driver: str) -> None:
        with pytest.raises(Exception, match=r"(?i)connect") as caught:
            await upgrade(ini, database_url=f"{driver}://me:sec%25ret@127.0.0.1:1/db")

        shown = "".join(traceback.TracebackException.from_exception(caught.value, limit=0).format())
        assert "sec" not in shown

    async def test_an_env_that_does_not_look_at_it_is_an_error(
        self, project: Project, ini: Path, tmp_path: Path
    ) -> None:
        project.write("migrations/env.py", OWN_ENV)

        with pytest.raises(AppConfigError, match="database_url was not looked at"):
            await is_at_head(ini, database_url=f"sqlite:///{tmp_path}/a.db")
