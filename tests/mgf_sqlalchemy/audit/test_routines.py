"""Functions of every kind: their remedies run as they stand, and their number costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mgf.sqlalchemy.audit._checks import doors
from mgf.sqlalchemy.audit._checks.policies import is_canonical

if TYPE_CHECKING:
    from mgf_sqlalchemy.audit.correct import Correct

DEFINER = "LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'"
SETS = "AS $$ SELECT set_config('app.current_tenant', $1, true) $$"
WINDOW = "CREATE FUNCTION \"R\"() RETURNS bigint LANGUAGE internal WINDOW {} AS 'window_rank'"


@pytest.mark.parametrize(
    ("made", "checks"),
    [
        (f'CREATE FUNCTION "R"(a int) RETURNS int {DEFINER}', {"definer", "search-path"}),
        (f'CREATE PROCEDURE "R"(a int) {DEFINER}', {"definer", "search-path"}),
        (f'CREATE PROCEDURE "R"(a int, OUT b int) {DEFINER}', {"definer", "search-path"}),
        (WINDOW.format("SECURITY DEFINER"), {"definer", "search-path"}),
        (WINDOW.format("LEAKPROOF"), {"leakproof"}),
        ('CREATE FUNCTION "R"() RETURNS int LEAKPROOF LANGUAGE sql AS $$SELECT 1$$', {"leakproof"}),
        (f'CREATE FUNCTION "R"(text) RETURNS text LANGUAGE sql {SETS}', {"sets-tenant"}),
        (f'CREATE PROCEDURE "R"(text) LANGUAGE sql {SETS}', {"sets-tenant"}),
        (
            # An aggregate has no rights of its own, its functions may have.
            (
                f'CREATE FUNCTION "R"(int, int) RETURNS int {DEFINER};'
                'CREATE AGGREGATE "S" (int) (sfunc = "R", stype = int, initcond = 0)'
            ),
            {"definer", "search-path"},
        ),
    ],
)
def test_a_remedy_is_for_the_kind_of_function(
    correct: Correct, made: str, checks: set[str]
) -> None:
    correct.change(made)
    findings = [one for one in correct.audit().findings if one.object == "public.R"]
    assert {one.id for one in findings} == {f"function-{one}" for one in checks}

    correct.change(*(one.remedy for one in findings))

    assert correct.ids() == set()


def test_owners_are_looked_at_once_whatever_the_number_of_functions(
    correct: Correct, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = list[str]()

    def count(*arguments: Any) -> bool:
        looked_at.append(arguments[1].label)
        return is_canonical(*arguments)

    monkeypatch.setattr(doors, "is_canonical", count)
    correct.change(
        "CREATE ROLE {role}_r; GRANT CREATE ON SCHEMA public TO {role}_r",
        "CREATE POLICY r ON invoice TO {role}_r USING (true)",
    )
    for number in range(20):
        correct.change(
            f"CREATE FUNCTION f{number}() RETURNS int {DEFINER}",
            f"ALTER FUNCTION f{number} OWNER TO {{role}}_r",
        )

    assert "function-search-path" in correct.ids()
    assert looked_at == ["public.invoice"]
