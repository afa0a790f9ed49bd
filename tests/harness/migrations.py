"""Real Alembic projects in a folder, run by the command and by `alembic.command`."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, NullPool, create_engine, text

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

ALEMBIC = str(Path(sys.executable).with_name("alembic"))

INI = "[alembic]\nscript_location = %(here)s/migrations\npath_separator = os\n"

# What the tests that run in this process hand over; the command takes it from its environment.
ENV = """
import os
from alembic import context
from mgf.alembic import configure_env

arguments = {"database_url": os.environ.get("DATABASE_URL"), "target_metadata": None}
configure_env(**arguments | context.config.attributes.get("arguments", {}))
"""

# As users write it, with no URL in the environment of the tests.
SHORT_ENV = """
import os
from sqlalchemy import MetaData
from mgf.alembic import configure_env

configure_env(database_url=os.environ.get("NO_URL"), target_metadata=MetaData())
"""

TEMPLATE = '''"""${message}"""
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = None


def upgrade():
    ${upgrades if upgrades else "pass"}


def downgrade():
    ${downgrades if downgrades else "pass"}
'''

ACCOUNT = 'op.create_table("account", sa.Column("id", sa.Integer, primary_key=True))'
# Calls what a test handed over: Alembic keeps options that it does not know.
PROBE = 'op.get_context().opts["probe"]()'

# In a revision, and seen from outside of it. Only in this database: of another test a statement may
# still go on whose client is gone.
SLEEP = 'op.execute("SELECT pg_sleep(60)")'
SLEEPING = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND query = 'SELECT pg_sleep(60)'
"""
# The connections that hold the lock against other migrators, or wait for it.
MIGRATORS = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'mgf-alembic on %'
"""
OTHERS = """
    SELECT query FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@dataclass
class Project:
    """An Alembic project, with no revision yet."""

    folder: Path
    revisions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "migrations" / "versions").mkdir(parents=True)
        self.write("alembic.ini", INI)
        self.write("migrations/env.py", ENV)
        self.write("migrations/script.py.mako", TEMPLATE)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def append(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(path.read_text() + text)
        return path

    def add(self, upgrade: str, downgrade: str = "pass") -> str:
        """Add a revision after the last one, and return its id."""
        revision = f"r{len(self.revisions) + 1}"
        down = repr(self.revisions[-1]) if self.revisions else "None"
        lines = ["from alembic import op", "import sqlalchemy as sa"]
        lines += [f"revision = {revision!r}", f"down_revision = {down}"]
        for name, body in (("upgrade", upgrade), ("downgrade", downgrade)):
            lines += [f"def {name}():", textwrap.indent(textwrap.dedent(body).strip(), "    ")]
        self.write(f"migrations/versions/{revision}.py", "\n".join(lines) + "\n")
        self.revisions.append(revision)
        return revision

    def config(self, connection: Any = None, **arguments: Any) -> Config:
        """Return a configuration whose `env.py` gets these arguments."""
        config = Config(self.folder / "alembic.ini", stdout=io.StringIO())
        config.output_buffer = io.StringIO()
        config.attributes["arguments"] = arguments
        if connection is not None:
            config.attributes["connection"] = connection
        return config

    def run(self, function: Callable[..., Any], *parameters: Any, **arguments: Any) -> str:
        """Run a function of `alembic.command` in this process; return what it printed."""
        config = self.config(**arguments)
        function(config, *parameters)
        assert isinstance(config.stdout, io.StringIO)
        return config.stdout.getvalue()

    def upgrade(self, database_url: str | URL | None, **arguments: Any) -> None:
        self.run(command.upgrade, "head", database_url=database_url, **arguments)

    def autogenerate(self, database_url: str | URL, metadata: Any, **arguments: Any) -> str:
        """Let Alembic write a revision after the last one, upgrade to it, and return it."""
        arguments |= {"database_url": database_url, "target_metadata": metadata}
        folder = self.folder / "migrations" / "versions"
        known = set(folder.glob("*.py"))
        command.revision(self.config(**arguments), autogenerate=True)
        (script,) = set(folder.glob("*.py")) - known
        self.run(command.upgrade, "head", **arguments)
        return script.read_text()

    def check(self, database_url: str | URL, metadata: Any, **arguments: Any) -> None:
        """Raise unless autogenerate finds nothing to do."""
        arguments |= {"database_url": database_url, "target_metadata": metadata}
        self.run(command.check, **arguments)

    def sql(self, database_url: str | URL | None, **arguments: Any) -> str:
        """Return the script of `alembic upgrade head --sql`."""
        return self.script(command.upgrade, "head", database_url=database_url, **arguments)

    def script(self, function: Callable[..., Any], span: str, **arguments: Any) -> str:
        """Return the script that a function of `alembic.command` writes for these revisions."""
        config = self.config(**arguments)
        function(config, span, sql=True)
        assert isinstance(config.output_buffer, io.StringIO)
        return config.output_buffer.getvalue()

    def alembic(self, *words: str, database_url: str | URL = "") -> str:
        """Run the command, and return what it printed; it must succeed."""
        result = subprocess.run(
            [ALEMBIC, *words],
            cwd=self.folder,
            env=environment(database_url),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    @contextmanager
    def started(
        self, *words: str, database_url: str | URL, stderr: int = subprocess.PIPE
    ) -> Generator[subprocess.Popen[str]]:
        """Start the command, and kill it in the end if it still runs."""
        with subprocess.Popen(
            [ALEMBIC, *words],
            cwd=self.folder,
            env=environment(database_url),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def rows(url: URL, sql: str) -> list[Any]:
    """Return the first column of a query, by a synchronous driver and a connection of its own."""
    if url.get_backend_name() == "postgresql":
        url = url.set(drivername="postgresql+psycopg2")
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        return list(connection.scalars(text(sql)))


def wait_for(database: URL, sql: str) -> None:
    """Wait until a query has a row."""
    deadline = time.monotonic() + 30
    while not rows(database, sql):
        assert time.monotonic() < deadline, f"nothing in 30 s: {sql}"
        time.sleep(0.05)


def open_connections(database: URL) -> list[Any]:
    """Return what others last did on a PostgreSQL database, when it does not become nothing.

    A server process ends a moment after its client has closed the connection.
    """
    deadline = time.monotonic() + 5
    while (others := rows(database, OTHERS)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return others


def environment(database_url: str | URL) -> dict[str, str]:
    """Return an environment in which a warning is an error."""
    return os.environ | {"DATABASE_URL": text_of(database_url), "PYTHONWARNINGS": "error"}


def text_of(url: str | URL) -> str:
    return url.render_as_string(hide_password=False) if isinstance(url, URL) else url
