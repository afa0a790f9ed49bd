"""`--sql` writes a script, and needs neither a server nor a driver."""

from __future__ import annotations

import re

import pytest
from alembic import command

from harness.migrations import ACCOUNT, Project
from mgf.common.exceptions import AppConfigError

# Nothing listens on port 1.
POSTGRESQL = [
    "postgres://u:p@127.0.0.1:1/d",
    "postgresql://u:p@127.0.0.1:1/d?sslmode=require",
    "postgresql+asyncpg://u:p@h1:1,h2:2/d",
    "postgresql+psycopg://u:p@127.0.0.1:1/d",
    "postgresql+psycopg2://u:p@127.0.0.1:1/d",
]
# Among them drivers that are not installed: mysqldb, aioodbc, oracledb.
OTHERS = {
    "mariadb+asyncmy": "AUTO_INCREMENT",
    "mssql+aioodbc": "IDENTITY",
    "mysql": "AUTO_INCREMENT",
    "mysql+aiomysql": "AUTO_INCREMENT",
    "mysql+pymysql": "AUTO_INCREMENT",
    "oracle+oracledb": "VARCHAR2",
    "sqlite": "PRIMARY KEY (id)",
    "sqlite+aiosqlite": "PRIMARY KEY (id)",
}
ROWS = """
account = op.create_table(
    "account",
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(30)),
)
op.bulk_insert(account, [{"id": 1, "name": "it's 50%"}])
op.execute(sa.update(account).where(account.c.name.like("it%")).values(name=sa.func.upper("x:y")))
op.execute("DELETE FROM account WHERE name LIKE '5%'")
"""


@pytest.mark.parametrize("url", POSTGRESQL)
def test_every_postgresql_url_gives_one_and_the_same_script(project: Project, url: str) -> None:
    project.add(ROWS)

    script = project.sql(url)

    assert script == project.sql("postgresql+asyncpg://")
    assert "INSERT INTO account (id, name) VALUES (1, 'it''s 50%');" in script
    assert "UPDATE account SET name=upper('x:y') WHERE account.name LIKE 'it%';" in script
    assert "DELETE FROM account WHERE name LIKE '5%';" in script
    assert script.startswith("BEGIN;")


@pytest.mark.parametrize("scheme", OTHERS)
def test_every_dialect_writes_its_own(project: Project, scheme: str) -> None:
    project.add(ROWS)

    script = project.sql(f"{scheme}://")

    assert OTHERS[scheme] in script
    assert "VALUES (1, 'it''s 50%')" in script


def test_the_script_goes_downwards_too(project: Project) -> None:
    project.add(ACCOUNT, 'op.drop_table("account")')

    script = project.script(command.downgrade, "r1:base", database_url="postgresql+asyncpg://")

    assert "DROP TABLE account" in script


def test_a_connection_that_was_handed_over_is_not_needed(project: Project) -> None:
    project.add(ACCOUNT)

    assert "CREATE TABLE account" in project.sql("postgresql://", connection=object())


def test_literal_binds_can_be_turned_off(project: Project) -> None:
    project.add('op.execute(sa.select(sa.literal("x")))')

    assert "SELECT 'x'" in project.sql("postgresql://")
    assert "SELECT :param_1" in project.sql("postgresql://", literal_binds=False)


@pytest.mark.parametrize("name", ["nosuch", "postgresql+nosuch"])
def test_an_unknown_dialect_is_named(project: Project, name: str) -> None:
    project.add(ACCOUNT)

    with pytest.raises(AppConfigError, match=f"knows no dialect or driver '{re.escape(name)}'"):
        project.sql(f"{name}://h/d")
