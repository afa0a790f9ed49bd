"""Whatever clause of the emitted protection is dropped or weakened, audit or probe tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgf_sqlalchemy.audit.correct import Correct

# A tenant table, one whose key is the tenant, a child table, and a partition.
TABLES = ["invoice", "account", "remark", "event_1"]
OF_A_TABLE = [
    "ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY",
    "ALTER TABLE {table} OWNER TO {role}",
    "GRANT TRUNCATE ON {table} TO {role}",
    "GRANT TRIGGER ON {table} TO {role}",
    "GRANT REFERENCES ON {table} TO {role}",
    "GRANT SELECT ON {table} TO PUBLIC",
    "CREATE POLICY more ON {table} TO {role} USING (true)",
    "CREATE POLICY more ON {table} USING (true)",
]
OF_A_POLICY = [
    "DROP POLICY {policy} ON {table}",
    "ALTER POLICY {policy} ON {table} USING (true)",
    "ALTER POLICY {policy} ON {table} WITH CHECK (true)",
    "ALTER POLICY {policy} ON {table} USING (true) WITH CHECK (true)",
    "ALTER POLICY {policy} ON {table} TO pg_monitor",
    "{again} AS {other_kind} FOR ALL TO {to} USING ({using}) WITH CHECK ({check})",
    "{again} AS {kind} FOR SELECT TO {to} USING ({using})",
    "{again} AS {kind} FOR INSERT TO {to} WITH CHECK ({check})",
    "{again} AS {kind} FOR UPDATE TO {to} USING ({using}) WITH CHECK ({check})",
    "{again} AS {kind} FOR DELETE TO {to} USING ({using})",
    "{again} AS {kind} FOR ALL TO {to} USING ({using}) WITH CHECK (true)",
]
KINDS = {"PERMISSIVE": "RESTRICTIVE", "RESTRICTIVE": "PERMISSIVE"}


def policies(correct: Correct) -> Iterator[dict[str, Any]]:
    rows = correct.database.owner.execute(
        sa.text(
            "SELECT tablename, policyname, permissive, roles::text[] AS roles, qual, with_check "
            "FROM pg_policies WHERE tablename = ANY(:tables) ORDER BY 1, 2"
        ),
        {"tables": TABLES},
    ).all()
    for row in rows:
        yield {
            "table": row.tablename,
            "policy": row.policyname,
            "again": (
                f"DROP POLICY {row.policyname} ON {row.tablename};"
                f"CREATE POLICY {row.policyname} ON {row.tablename}"
            ),
            "kind": row.permissive,
            "other_kind": KINDS[row.permissive],
            "to": ", ".join(row.roles),
            "using": row.qual,
            "check": row.with_check,
        }


def survivors(correct: Correct, mutations: list[str], **options: Any) -> list[str]:
    """Return the mutations that neither the audit nor the probe tells."""
    survived = list[str]()
    for one in mutations:
        with correct.database.owner.begin_nested() as savepoint:
            correct.change(one)
            if not correct.ids(**options) and correct.probe(**options).ok:
                survived.append(one)
            savepoint.rollback()
    return survived


@pytest.mark.parametrize("template", OF_A_TABLE)
def test_no_change_of_a_table_survives(correct: Correct, template: str) -> None:
    changes = [template.replace("{table}", table) for table in TABLES]

    assert survivors(correct, changes, metadata=correct.metadata) == []


@pytest.mark.parametrize("template", OF_A_POLICY)
def test_no_change_of_a_policy_survives(correct: Correct, template: str) -> None:
    changes = [template.format(**one) for one in policies(correct)]

    assert len(changes) >= 2 * len(TABLES) - 1
    assert survivors(correct, changes, metadata=correct.metadata) == []


def test_without_metadata_what_leaks_does_not_survive(correct: Correct) -> None:
    """The policies alone: which of them are missing is not known to anyone."""
    changes = ["DROP POLICY tenant_floor ON {table};DROP POLICY tenant_isolation ON {table}"]
    changes += [f"{changes[0]};CREATE POLICY more ON {{table}} TO {{role}} USING (true)"]

    assert survivors(correct, [one.replace("{table}", "invoice") for one in changes]) == []
