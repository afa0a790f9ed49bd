"""What protects a table is plain data, which says what is wrong with it at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls import Grant, Policy, Protection, TableProtection

INVOICE = sa.Table("invoice", sa.MetaData(schema="billing"), sa.Column("id", sa.Integer))


def test_a_policy_takes_a_table_for_its_name_and_schema() -> None:
    assert Policy("own", INVOICE) == Policy("own", "invoice", schema="billing")


def test_the_roles_of_a_policy_are_a_set() -> None:
    assert Policy("own", "invoice", to=["b", "a", "b"]).to == ("a", "b")
    assert Policy("own", "invoice", to="app").to == ("app",)


def test_public_is_every_role_however_it_is_written() -> None:
    assert Policy("own", "invoice", to="public") == Policy("own", "invoice")
    assert Policy("own", "invoice", to=["app", "Public"]) == Policy("own", "invoice")


def test_a_policy_reads_as_the_call_that_makes_it() -> None:
    policy = Policy("own", "invoice", for_="select", to="app", using="id > 0", restrictive=True)

    written = (
        "Policy('own', 'invoice', for_='SELECT', to=('app',), using='id > 0', restrictive=True)"
    )
    assert repr(policy) == written
    assert eval(written) == policy


def test_a_grant_reads_as_the_call_that_makes_it() -> None:
    grant = Grant({"insert", "SELECT"}, "invoice", to="app")

    assert repr(grant) == "Grant(('SELECT', 'INSERT'), 'invoice', to='app')"
    assert eval(repr(grant)) == grant


def test_protection_reads_as_the_call_that_makes_it() -> None:
    protection = TableProtection("invoice", forced=False, policies=(Policy("a", "invoice"),))

    written = "TableProtection('invoice', forced=False, policies=(Policy('a', 'invoice'),))"
    assert repr(protection) == written
    assert eval(written) == protection


def test_a_policy_can_be_copied_with_a_change() -> None:
    policy = Policy("own", INVOICE, using="true", to="app")

    assert replace(policy, table="line") == Policy(
        "own", "line", schema="billing", using="true", to="app"
    )


def test_the_order_of_what_is_listed_does_not_count() -> None:
    one, two = Policy("one", "invoice"), Policy("two", "invoice")

    assert TableProtection("invoice", policies=(two, one)) == TableProtection(
        "invoice", policies=(one, two)
    )


def test_a_sequence_grant_may_name_the_column_that_it_is_behind() -> None:
    assert Grant("USAGE", "invoice", to="app", column="id").kind == "SEQUENCE"


def test_one_table_of_many_is_found_by_its_name() -> None:
    invoice, line = TableProtection("invoice", schema="billing"), TableProtection("line")
    protection = Protection(tables=(line, invoice))

    assert protection.table("invoice", "billing") == invoice
    assert protection.table("line") == line
    assert protection.table("invoice") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"for_": "TRUNCATE"}, "is for 'TRUNCATE'; say one of"),
        ({"for_": "INSERT", "using": "true"}, "is for INSERT, which has no 'using'"),
        ({"for_": "SELECT", "with_check": "true"}, "is for SELECT, which has no 'with_check'"),
        ({"for_": "DELETE", "with_check": "true"}, "is for DELETE, which has no 'with_check'"),
        ({"using": " "}, "has an empty predicate"),
        ({"to": ()}, "no role was named"),
        ({"to": ""}, "a role's name is ''"),
        ({"to": "a\0b"}, "not blank"),
    ],
)
def test_what_postgresql_does_not_take_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AppConfigError, match=message):
        Policy("own", "invoice", **arguments)


@pytest.mark.parametrize("name", ["", " ", "a\0b"])
def test_a_policy_needs_a_name(name: str) -> None:
    with pytest.raises(
        AppConfigError, match=r"a policy's name is .* give it one that is not blank"
    ):
        Policy(name, "invoice")


def test_a_name_that_postgresql_would_cut_is_refused() -> None:
    """Cut after 63 bytes, two policies could get the same one."""
    Policy("é" * 31 + "x", "invoice")
    with pytest.raises(AppConfigError, match="cut after 63 bytes"):
        Policy("é" * 32, "invoice")


def test_an_unknown_privilege_is_refused() -> None:
    with pytest.raises(AppConfigError, match="'READ' is no privilege; name some of"):
        Grant("read", "invoice", to="app")


@pytest.mark.parametrize("options", [{"kind": "SCHEMA"}, {"column": "id"}])
def test_columns_of_what_is_no_table_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(AppConfigError, match=r"is about a S\w+, which has no columns"):
        Grant("USAGE", "invoice", to="app", columns="id", **options)


@pytest.mark.parametrize("name", [" ", "a\0b", "é" * 32])
def test_a_column_needs_a_name_that_postgresql_keeps(name: str) -> None:
    with pytest.raises(AppConfigError, match="a column's name is"):
        Grant("SELECT", "invoice", to="app", columns=name)


def test_something_that_is_no_table_is_refused() -> None:
    with pytest.raises(AppConfigError, match="no Table, and no mapped class"):
        Policy("own", dict)
