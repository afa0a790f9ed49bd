"""Each statement stands for itself: it can be printed, run in a migration, and undone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls import (
    AlterRowSecurity,
    CreatePolicy,
    DropPolicy,
    Grant,
    GrantPrivileges,
    Policy,
    RevokePrivileges,
)

if TYPE_CHECKING:
    from sqlalchemy import ExecutableDDLElement

ROW_SECURITY = "ROW LEVEL SECURITY"


@pytest.mark.parametrize(
    ("statement", "sql"),
    [
        (
            CreatePolicy(Policy("own", "invoice", for_="INSERT", to="app", with_check="id > 0")),
            "CREATE POLICY own ON invoice AS PERMISSIVE FOR INSERT TO app\n    WITH CHECK (id > 0)",
        ),
        (
            CreatePolicy(Policy("Own", "order", schema="s", restrictive=True, using="a LIKE '%'")),
            """CREATE POLICY "Own" ON s."order" AS RESTRICTIVE FOR ALL TO PUBLIC
    USING (a LIKE '%')""",
        ),
        (DropPolicy(Policy("own", "invoice")), "DROP POLICY own ON invoice"),
        (
            DropPolicy(Policy("own", "invoice", schema="S"), if_exists=True),
            'DROP POLICY IF EXISTS own ON "S".invoice',
        ),
        (
            AlterRowSecurity("invoice"),
            f"ALTER TABLE invoice ENABLE {ROW_SECURITY}, FORCE {ROW_SECURITY}",
        ),
        (
            AlterRowSecurity("invoice", enabled=False, forced=False),
            f"ALTER TABLE invoice DISABLE {ROW_SECURITY}, NO FORCE {ROW_SECURITY}",
        ),
        (
            AlterRowSecurity("invoice", schema="s", enabled=None, forced=True),
            f"ALTER TABLE s.invoice FORCE {ROW_SECURITY}",
        ),
        (
            GrantPrivileges(Grant(["INSERT", "SELECT"], "invoice", to="App")),
            'GRANT SELECT, INSERT ON TABLE invoice TO "App"',
        ),
        (
            RevokePrivileges(Grant("ALL", "billing", to="PUBLIC", kind="SCHEMA")),
            "REVOKE ALL ON SCHEMA billing FROM PUBLIC",
        ),
        (
            GrantPrivileges(Grant("USAGE", "numbers", schema="s", to="app", kind="SEQUENCE")),
            "GRANT USAGE ON SEQUENCE s.numbers TO app",
        ),
        (
            GrantPrivileges(Grant("SELECT", "invoice", to="app", grantable=True)),
            "GRANT SELECT ON TABLE invoice TO app WITH GRANT OPTION",
        ),
        (
            RevokePrivileges(Grant("SELECT", "invoice", to="app", grantable=True)),
            "REVOKE GRANT OPTION FOR SELECT ON TABLE invoice FROM app",
        ),
        (
            GrantPrivileges(Grant(["UPDATE", "SELECT"], "invoice", to="app", columns=["id", "%B"])),
            'GRANT SELECT (id, "%B"), UPDATE (id, "%B") ON TABLE invoice TO app',
        ),
        (
            RevokePrivileges(Grant("SELECT", "invoice", to="app", columns="id", grantable=True)),
            "REVOKE GRANT OPTION FOR SELECT (id) ON TABLE invoice FROM app",
        ),
        (
            RevokePrivileges(Grant("SELECT", "invoice", to="app", columns="id").whole),
            "REVOKE ALL ON TABLE invoice FROM app",
        ),
        (
            GrantPrivileges(Grant("USAGE", "invoice", to="app", column="id", grantable=True)),
            """DO $$ BEGIN EXECUTE format('GRANT USAGE ON SEQUENCE %s TO %I WITH GRANT OPTION', \
pg_get_serial_sequence('invoice', 'id'), 'app'); END $$""",
        ),
        (
            RevokePrivileges(Grant("USAGE", "In'voice", to="PUBLIC", column="id")),
            """DO $$ BEGIN EXECUTE format('REVOKE USAGE ON SEQUENCE %s FROM PUBLIC', \
pg_get_serial_sequence('"In''voice"', 'id')); END $$""",
        ),
    ],
)
def test_it_can_be_printed(statement: ExecutableDDLElement, sql: str) -> None:
    assert str(statement) == sql


def test_a_statement_that_changes_nothing_is_refused() -> None:
    with pytest.raises(AppConfigError, match="say enabled= or forced="):
        AlterRowSecurity("invoice", enabled=None, forced=None)
