"""What cannot work is refused with the cure, and without any part of the password."""

from __future__ import annotations

import re
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command, op
from sqlalchemy import URL, MetaData

from harness.migrations import PROBE, text_of
from mgf.alembic import configure_env
from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from harness.migrations import Project

OUTSIDE = """
from mgf.alembic import configure_env
configure_env(database_url="sqlite://", target_metadata=None)
"""
SYNC_DRIVERS = ["postgresql+psycopg2", "mysql+pymysql"]
# Passxyzs of "sec", "ret" and "xyz", not percent-encoded.
MALFORMED = [
    "{}://me:sec@ret@host/db",
    "{}://me:sec@ret/xyz@host/db",
    "{}://me:sec@/ret@host/db",
    "{}://me:sec@ret?xyz@host/db",
    "{}://me@sec:ret@host/db",
    "{}://me:secret@host:xyz/db",
    "{}//me:secret@host/db",
    "me:secret@host/db",
    "secret",
]


def refusal(project: Project, database_url: Any) -> AppConfigError:
    project.add("pass")
    with pytest.raises(AppConfigError) as caught:
        project.upgrade(database_url)
    return caught.value


def shown(error: BaseException) -> str:
    """What a traceback says beside the lines of source, the tests' own among them."""
    return "".join(traceback.TracebackException.from_exception(error, limit=0).format())


@pytest.mark.parametrize("url", [None, "", "  ", "''"])
@pytest.mark.parametrize("offline", [False, True])
def test_no_url_says_where_to_put_it(project: Project, url: str | None, offline: bool) -> None:
    project.add("pass")

    with pytest.raises(AppConfigError, match=r"pass it in migrations/env\.py.*DATABASE_URL"):
        (project.sql if offline else project.upgrade)(url)


@pytest.mark.parametrize("url", [b"sqlite://", 5, object()])
def test_what_is_no_url_at_all_is_named_by_its_type(project: Project, url: Any) -> None:
    assert f"of type {type(url).__name__}, expected str" in str(refusal(project, url))


@pytest.mark.parametrize("driver", SYNC_DRIVERS)
@pytest.mark.parametrize("template", MALFORMED)
def test_a_malformed_url_shows_no_part_of_the_password(
    project: Project, driver: str, template: str
) -> None:
    error = refusal(project, template.format(driver))

    assert "percent-encode" in str(error)
    assert [part for part in ("sec", "ret", "xyz") if part in shown(error)] == []


def test_the_value_of_a_parameter_may_hold_an_at_sign(project: Project, database: URL) -> None:
    found: list[Any] = []
    project.add(PROBE)

    project.upgrade(
        text_of(database.set(drivername="postgresql+psycopg2")) + "?application_name=me@shop",
        probe=lambda: found.append(op.get_bind().exec_driver_sql("SHOW application_name").scalar()),
    )

    assert found == ["me@shop"]


def test_a_path_may_hold_an_at_sign(project: Project, tmp_path: Path) -> None:
    project.add("pass")

    project.upgrade(f"sqlite:///{tmp_path}/a@b@c.db?timeout=5")

    assert (tmp_path / "a@b@c.db").exists()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql+pymysql://me:secret@h/db?connect_timeout=soon", r"invalid literal.*'soon'"),
        ("mysql+pymysql://me:secret@127.0.0.1:1/db?nosuch=1", r"argument 'nosuch'"),
        ("sqlite:///:memory:?timeout=soon", r"'soon'"),
        ("sqlite:///:memory:?check_same_thread=perhaps", r"perhaps"),
    ],
)
def test_a_parameter_that_the_driver_does_not_take_is_named(
    project: Project, url: str, reason: str
) -> None:
    error = refusal(project, url)

    assert re.search(f"does not take the parameters of the database URL: .*{reason}", str(error))
    assert "what stands behind its '?'" in str(error)
    assert "secret" not in shown(error)


@pytest.mark.parametrize("query", ["connect_timeout=xyz@h", "passwd=sec&ret=1", "password=a&xyz=1"])
def test_a_parameter_that_may_be_part_of_a_password_is_not_named(
    project: Project, query: str
) -> None:
    error = refusal(project, f"mysql+pymysql://me:sec@127.0.0.1:1/db?{query}")

    assert [part for part in ("sec", "ret", "xyz") if part in shown(error)] == []


@pytest.mark.parametrize("drivername", ["nosuch", "postgresql+nosuch", "postgres+nosuch", ""])
def test_an_unknown_dialect_is_named(project: Project, drivername: str) -> None:
    error = refusal(project, URL.create(drivername, password="secret", username="me", host="h"))

    assert f"knows no dialect or driver {drivername!r}" in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("driver", "package"),
    [
        ("mysql+mysqldb", "MySQLdb"),
        ("mssql+aioodbc", "aioodbc"),
        ("postgresql+pg8000", "pg8000"),
        ("mssql+pyodbc", "pyodbc"),
    ],
)
def test_a_driver_that_is_not_installed_is_named(
    project: Project, driver: str, package: str
) -> None:
    error = str(refusal(project, f"{driver}://me:secret@host/db"))

    assert f"driver of {driver}:// cannot be imported (No module named '{package}')" in error
    assert "install" in error
    assert "secret" not in error


def test_without_a_driver_the_async_one_is_named(project: Project) -> None:
    assert "no async driver for mssql:// is installed; install aioodbc" in str(
        refusal(project, "mssql://h/db")
    )


def test_outside_alembic_it_says_where_to_call_it() -> None:
    result = subprocess.run(
        [sys.executable, "-c", OUTSIDE], capture_output=True, text=True, check=False
    )

    assert "AppConfigError: configure_env() was called outside Alembic" in result.stderr
    assert "NameError" not in result.stderr


def test_outside_alembic_after_a_command_it_says_the_same(project: Project) -> None:
    """The proxy exists by then, and points to nothing."""
    project.run(command.current, database_url="sqlite://")

    with pytest.raises(AppConfigError, match="called outside Alembic"):
        configure_env(database_url="sqlite://", target_metadata=MetaData())


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "postgresql+psycopg2", "mysql+pymysql"])
def test_a_refused_connection_shows_no_password(project: Project, driver: str) -> None:
    project.add("pass")

    with pytest.raises(Exception, match=r"(?i)connect") as caught:
        project.upgrade(f"{driver}://me:secret@127.0.0.1:1/db")
    assert "secret" not in shown(caught.value)
