"""A schema in which nothing is wrong gives no finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from mgf_sqlalchemy.audit.test_mistakes import CANONICAL, using

if TYPE_CHECKING:
    from mgf_sqlalchemy.audit.correct import Correct


def test_with_its_metadata_nothing_is_found(correct: Correct) -> None:
    assert correct.ids(metadata=correct.metadata) == set()


def test_without_metadata_nothing_is_found(correct: Correct) -> None:
    assert correct.ids() == set()


def test_without_metadata_a_child_table_is_not_proven(correct: Correct) -> None:
    assert {one.object for one in correct.audit().not_proven} == {"public.remark"}


def test_a_server_below_the_floor_is_told(correct: Correct) -> None:
    version = correct.database.owner.scalar(sa.text("SHOW server_version_num"))
    floors = {"15": 150019, "16": 160015, "17": 170011, "18": 180006}

    is_told = "server-cve-floor" in {one.id for one in correct.audit().findings}
    assert is_told == (int(version) < floors[version[:2]])


@pytest.mark.parametrize(
    "more",
    [
        "number IS NULL",
        f"id > 0 AND NOT (id = 7 OR {CANONICAL})",
        "number <> ') AND (' AND (number IS NULL OR number = 'it''s')",
        "CASE WHEN id > 0 AND number IS NULL THEN true ELSE number = 'x' END",
        "EXISTS (SELECT FROM line WHERE line.id = 1 AND line.tenant_id = invoice.tenant_id)",
    ],
)
def test_a_policy_that_narrows_the_canonical_one_down_is_clean(correct: Correct, more: str) -> None:
    correct.change(using(f"{CANONICAL} AND {more}"))

    assert correct.ids() == set()


@pytest.mark.parametrize(
    "predicate",
    [
        f"({CANONICAL} AND number IS NULL) OR number = 'x'",
        f"NOT ({CANONICAL} AND number IS NULL)",
        f"NOT (number IS NULL AND {CANONICAL})",
        f"(number IS NULL AND {CANONICAL}) IS UNKNOWN",
        f"(number IS NULL AND {CANONICAL}) = false",
        f"CASE WHEN number IS NULL AND {CANONICAL} THEN true ELSE (id > 0 AND {CANONICAL}) END",
        f"({CANONICAL} AND number IS NULL) IS NOT TRUE",
        f"CASE WHEN {CANONICAL} AND number IS NULL THEN true ELSE number = 'x' END",
        f"({CANONICAL} OR id = 1) AND (number IS NULL OR {CANONICAL})",
        f"'(' <> number AND ({CANONICAL} OR number = ')')",
        f"COALESCE({CANONICAL} AND number IS NULL, true)",
        f"EXISTS (SELECT FROM line WHERE line.{CANONICAL} AND line.id = 1)",
    ],
)
def test_a_policy_in_which_the_canonical_one_decides_not_alone_is_told(
    correct: Correct, predicate: str
) -> None:
    correct.change(using(predicate))

    assert any(one.startswith("policy-") for one in correct.ids())


@pytest.mark.parametrize(
    ("base", "tenant"),
    [
        ("uuid", "NULLIF(current_setting('app.current_tenant', true), '')::uuid"),
        ("uuid", "NULLIF(current_setting('app.current_tenant', true), '')::whose"),
        ("text", "NULLIF(current_setting('app.current_tenant', true), '')"),
        ("varchar(40)", "NULLIF(current_setting('app.current_tenant', true), '')"),
    ],
)
def test_a_tenant_of_a_domain_is_compared_as_what_that_is_made_of(
    correct: Correct, base: str, tenant: str
) -> None:
    correct.change(
        f"CREATE DOMAIN whose AS {base}; CREATE TABLE own (tenant_id whose NOT NULL)",
        "CREATE INDEX ON own (tenant_id)",
        "ALTER TABLE own ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY p ON own TO {{role}} USING (tenant_id = (SELECT {tenant}))",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON own TO {role}",
    )

    assert correct.ids() == set()
    assert correct.probe().ok
