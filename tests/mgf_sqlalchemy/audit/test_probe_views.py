"""What is written through views: those that PostgreSQL updates, with triggers, or with rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mgf_sqlalchemy.audit.test_mistakes import BESIDE, CANONICAL, INSTEAD, TENANT
from mgf_sqlalchemy.audit.test_probe_rows import protect

if TYPE_CHECKING:
    from mgf_sqlalchemy.audit.correct import Correct

WRITING = ["own-write", "insert", "insert-unscoped", "move", "blind-update", "blind-delete"]
ALL = "GRANT SELECT, INSERT, UPDATE, DELETE ON v TO {role}"
HELD = "held"
NONE = "not_applicable"
JOINED = """
    CREATE VIEW v WITH (security_invoker) AS
        SELECT i.tenant_id, i.code || '' AS code FROM item AS i
"""
# Does as it is told, with the rights of whoever it is given.
DOING = """
    CREATE FUNCTION g() RETURNS trigger LANGUAGE plpgsql {options} AS $$ BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO item VALUES (NEW.tenant_id, 'new'); RETURN NEW;
        ELSIF TG_OP = 'UPDATE' THEN
            UPDATE item SET tenant_id = NEW.tenant_id WHERE tenant_id = OLD.tenant_id; RETURN NEW;
        END IF;
        DELETE FROM item WHERE tenant_id = OLD.tenant_id; RETURN OLD;
    END $$;
    CREATE TRIGGER t INSTEAD OF INSERT OR UPDATE OR DELETE ON v FOR EACH ROW EXECUTE FUNCTION g()
"""
FILTERED = f"CREATE VIEW v AS SELECT * FROM item WHERE {CANONICAL} WITH CHECK OPTION"
COSTLY = f"""
    CREATE FUNCTION f(whose uuid) RETURNS bool LANGUAGE plpgsql STABLE COST 10000 AS
        $$ BEGIN RETURN whose = {TENANT}; END $$;
    CREATE VIEW v AS SELECT * FROM item WHERE f(tenant_id) WITH CHECK OPTION
"""
RULE = "CREATE RULE r AS ON UPDATE TO v DO INSTEAD UPDATE item SET code = code"


def invoker(select: str) -> str:
    return f"CREATE VIEW v WITH (security_invoker) AS SELECT {select}; {ALL}"


@pytest.fixture(autouse=True)
def item(correct: Correct) -> None:
    default = f"DEFAULT {TENANT}"
    correct.change(f"CREATE TABLE item (tenant_id uuid NOT NULL {default}, code text NOT NULL)")
    protect(correct, "item")


@pytest.mark.parametrize(
    ("made", "outcomes"),
    [
        (invoker("* FROM item"), [HELD] * 6),
        (invoker("* FROM event"), [HELD] * 6),
        (invoker("tenant_id AS org, number AS n FROM invoice"), [HELD] * 6),
        (invoker("* FROM account"), [HELD] * 6),
        # Without a column that says whose a row is: its default does.
        (invoker("id, number FROM invoice"), [HELD, HELD, HELD, NONE, HELD, HELD]),
        # Nobody writes a row of a tenant there that has no default.
        (invoker("code FROM item") + "; ALTER TABLE item ALTER tenant_id DROP DEFAULT",
         [NONE, NONE, NONE, NONE, HELD, HELD]),
        (invoker("tenant_id, count(*) AS n FROM invoice GROUP BY 1"), [NONE] * 6),
        (f"REVOKE INSERT, UPDATE, DELETE ON invoice FROM {{role}}; {invoker('* FROM invoice')}",
         [NONE] * 6),
        (f"{FILTERED}; {ALL}", [HELD] * 6),
        (f"{JOINED}; {ALL}; {DOING.replace('{options}', '')}", [HELD] * 6),
    ],
)  # fmt: skip
def test_a_view_that_holds_is_written_through_by_its_tenant(
    correct: Correct, made: str, outcomes: list[str]
) -> None:
    correct.change(made)

    report = correct.probe()

    found = report.probed["relations"]["public.v"]
    assert {name: found[name] for name in WRITING} == dict(zip(WRITING, outcomes, strict=True))
    assert (report.findings, report.not_proven) == ((), ())


@pytest.mark.parametrize(
    ("made", "where", "attacks"),
    [
        (f"CREATE VIEW v AS SELECT * FROM item; {ALL}", "public.v", WRITING[1:]),
        (f"CREATE VIEW v AS SELECT tenant_id AS org, code AS c FROM item; {ALL}", "public.v",
         WRITING[1:]),
        (f"CREATE VIEW v AS SELECT id, number FROM invoice; {ALL}", "public.v", WRITING[4:]),
        ("CREATE VIEW v AS SELECT * FROM item; GRANT INSERT ON v TO {role}", "public.v",
         ["insert", "insert-unscoped"]),
        (f"{FILTERED.partition('WITH')[0]}; {ALL}", "public.v",
         ["insert", "insert-unscoped", "move"]),
        (f"{JOINED}; {ALL}; {DOING.replace('{options}', 'SECURITY DEFINER')}", "public.v",
         ["insert", "insert-unscoped", "move"]),
        (INSTEAD, "public.numbers", ["blind-update"]),
        (f"{invoker('* FROM item')}; {RULE}", "public.v", ["move"]),
        (f"{BESIDE}; CREATE VIEW v AS SELECT * FROM item; GRANT SELECT, UPDATE ON v TO {{role}}_r",
         "role {role}_r", ["read", "blind-update"]),
    ],
)  # fmt: skip
def test_rows_of_others_that_are_written_through_a_view_are_found(
    correct: Correct, made: str, where: str, attacks: list[str]
) -> None:
    correct.change(made)

    report = correct.probe()

    found = report.probed["relations"][where.replace("{role}", correct.role)]
    assert {name for name in (*WRITING, *attacks) if found.get(name) == "leaked"} == {*attacks}


@pytest.mark.parametrize(
    ("made", "attack", "reason"),
    [
        (f"{COSTLY}; {ALL}", "blind-delete", "asked after"),
        ("CREATE VIEW v AS SELECT * FROM item; GRANT UPDATE ON v TO {role}", "move", "reading"),
        (f"{JOINED}; {ALL}; CREATE RULE r AS ON INSERT TO v DO INSTEAD NOTHING", "insert",
         "made no row"),
        (f"{JOINED}; {ALL}; CREATE RULE r AS ON DELETE TO v DO INSTEAD NOTHING", "blind-delete",
         "does not reach a tenant's own rows"),
        (f"CREATE VIEW v AS SELECT invoice_id + 0 AS i FROM remark; {ALL}", "read",
         "could be told from others"),
    ],
)  # fmt: skip
def test_what_a_view_does_not_show_is_not_proven(
    correct: Correct, made: str, attack: str, reason: str
) -> None:
    correct.change(made)

    report = correct.probe()

    reasons = {(one.object, one.attack): one.reason for one in report.not_proven}
    assert reason in reasons["public.v", attack]
    assert report.findings == ()


KEYED = "CREATE VIEW v {} AS SELECT id AS n, tenant_id AS org, number, country FROM invoice {}"
MINE = f"WHERE {CANONICAL} WITH CHECK OPTION"


@pytest.mark.parametrize(
    ("made", "outcome"),
    [
        # ON CONFLICT finds the row that neither the condition nor its CHECK OPTION lets through.
        (f"{KEYED.format('', MINE)}; {ALL}", "leaked"),
        (f"{KEYED.format('WITH (security_invoker)', '')}; {ALL}", HELD),
        (f"{KEYED.format('WITH (security_invoker)', MINE)}; {ALL}", HELD),
        (f"{KEYED.format('', MINE)}; GRANT SELECT, INSERT ON v TO {{role}}", NONE),
        (invoker("number, country FROM invoice"), NONE),
        (f"{JOINED}; {ALL}; {DOING.replace('{options}', '')}", NONE),
    ],
)
def test_a_row_is_written_over_through_a_view(correct: Correct, made: str, outcome: str) -> None:
    correct.change(made)

    report = correct.probe()

    assert report.probed["relations"]["public.v"]["upsert"] == outcome
    assert [one.id for one in report.findings] == ["probe-upsert"] * (outcome == "leaked")
    assert report.not_proven == ()
