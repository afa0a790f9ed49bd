"""Logs that triggers and rules fill are found, if they show tenants' rows to others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mgf_sqlalchemy.audit.correct import make_metadata
from mgf_sqlalchemy.audit.test_mistakes import BESIDE
from mgf_sqlalchemy.audit.test_probe_rows import protect
from sqlalchemy import Column, Table, Uuid

from mgf.sqlalchemy.rls import shared_table

if TYPE_CHECKING:
    from mgf_sqlalchemy.audit.correct import Correct

LOG = """
    CREATE TABLE log (id int GENERATED ALWAYS AS IDENTITY, doc jsonb,
        at timestamptz DEFAULT clock_timestamp())
"""
PARTED = """
    CREATE TABLE log (doc jsonb, at timestamptz DEFAULT now()) PARTITION BY RANGE (at);
    CREATE TABLE log_1 PARTITION OF log DEFAULT
"""


def filled(
    value: str = "to_jsonb(NEW)", log: str = LOG, event: str = "INSERT", on: str = "invoice"
) -> str:
    return f"""
        {log};
        CREATE FUNCTION g() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
            $$ BEGIN INSERT INTO public.log (doc) VALUES ({value}); RETURN NULL; END $$;
        CREATE TRIGGER t AFTER {event} ON {on} FOR EACH ROW EXECUTE FUNCTION g()
    """


READ = "GRANT SELECT ON log TO {role}"
VIEW = "CREATE VIEW v AS SELECT doc FROM log {where}; GRANT SELECT ON v TO {{role}}"
OWN = "WHERE doc ->> 'tenant_id' = current_setting('app.current_tenant', true)"
# A function's text names its tables, and no catalog does.
COPY = "CREATE MATERIALIZED VIEW copy AS SELECT doc AS said {}"
CALLED = f"""
    CREATE FUNCTION c() RETURNS SETOF text LANGUAGE sql AS 'SELECT number FROM public.invoice';
    {COPY.format("FROM c() AS c (doc)")}
"""
RULE = """
    CREATE TABLE log (whose uuid);
    CREATE RULE r AS ON INSERT TO line DO ALSO INSERT INTO log VALUES (NEW.tenant_id)
"""


@pytest.mark.parametrize(
    ("made", "where"),
    [
        (f"{filled()}; {READ}", "public.log"),
        (f"{filled('to_jsonb(NEW.number)')}; {READ}", "public.log"),
        (f"{filled()}; GRANT SELECT (doc) ON log TO {{role}}", "public.log"),
        (f"{filled(log=PARTED)}; {READ}", "public.log"),
        (f"{RULE}; {READ}", "public.log"),
        (f"{filled(event='UPDATE')}; {READ}", "public.log"),
        (f"{filled('to_jsonb(NEW.number)', event='UPDATE OF number')}; {READ}", "public.log"),
        (f"{filled('to_jsonb(OLD)', event='DELETE')}; {READ}", "public.log"),
        (f"{filled('to_jsonb(OLD)', event='DELETE', on='line')}; {READ}", "public.log"),
        (f"{filled('to_jsonb(NEW)', event='UPDATE', on='event')}; {READ}", "public.log"),
        (f"{RULE.replace('INSERT TO', 'UPDATE TO')}; {READ}", "public.log"),
        (
            f"{filled(event='UPDATE')}; {BESIDE}; GRANT SELECT ON log TO {{role}}_r",
            "role {role}_r",
        ),
        (f"{filled()}; {VIEW.format(where='')}", "public.v"),
        (f"{filled()}; {BESIDE}; GRANT SELECT ON log TO {{role}}_r", "role {role}_r"),
        (f"SET LOCAL track_counts = off; {filled()}; {READ}", "public.log"),
        (f"{filled()}; {COPY.format('FROM log')}; GRANT SELECT ON copy TO {{role}}", "public.copy"),
        (
            (
                f"{filled()}; {COPY.format('FROM log')};"
                "CREATE VIEW v AS SELECT * FROM copy; GRANT SELECT ON v TO {role}"
            ),
            "public.v",
        ),
        (f"{CALLED}; GRANT SELECT ON copy TO {{role}}", "public.copy"),
    ],
)
def test_a_log_that_shows_tenants_rows_is_found(correct: Correct, made: str, where: str) -> None:
    correct.change(made)

    report = correct.probe(metadata=correct.metadata)

    label = where.replace("{role}", correct.role)
    found = {(one.id, one.object): one.remedy for one in report.findings}
    assert found.keys() == {("probe-read", label)}
    if where == "public.log":
        assert found["probe-read", label].startswith("REVOKE SELECT ON public.log FROM")
    assert report.probed["relations"][label]["read"] == "leaked"


@pytest.mark.parametrize(
    "made",
    [
        filled(),
        f"{filled()}; GRANT INSERT ON log TO {{role}}",
        f"{filled()}; GRANT SELECT (id, at) ON log TO {{role}}",
        f"{filled('to_jsonb(NEW.id)')}; {READ}",
        filled(event="UPDATE OR DELETE"),
        f"{filled('to_jsonb(NEW.id)', event='UPDATE')}; {READ}",
        f"{filled(event='UPDATE')}; {VIEW.format(where=OWN)}",
        f"{filled()}; {VIEW.format(where=OWN)}",
        "SET LOCAL track_counts = off; GRANT SELECT ON alembic_version TO {role}",
        f"{filled()}; {COPY.format('FROM log')}",
        f"{filled()}; {COPY.format('FROM log LIMIT 0')}; GRANT SELECT ON copy TO {{role}}",
        CALLED,
        (
            f"{filled()}; CREATE ROLE {{role}}_o; {CALLED}; ALTER TABLE copy OWNER TO {{role}}_o;"
            "GRANT SELECT ON copy TO {role}; GRANT SELECT ON invoice TO {role}_o"
        ),
        f"{LOG}; INSERT INTO log (doc) SELECT to_jsonb(i) FROM invoice AS i; {READ}",
    ],
)
def test_a_log_that_shows_nothing_of_others_is_not_named(correct: Correct, made: str) -> None:
    correct.change(made)

    assert correct.probe(metadata=correct.metadata).ok


def test_a_log_that_is_protected_is_not_named(correct: Correct) -> None:
    correct.change(
        filled().replace("log (doc) VALUES (", "log (tenant_id, doc) VALUES (NEW.tenant_id, "),
        "ALTER TABLE log ADD tenant_id uuid NOT NULL",
    )
    protect(correct, "log")

    assert correct.probe().ok


def test_the_list_of_the_tenants_is_no_log(correct: Correct) -> None:
    """Triggers may write to the table whose key is the tenant, and all tenants may read it."""
    correct.change(
        "CREATE TABLE org (id uuid PRIMARY KEY)",
        "GRANT SELECT ON org TO {role}",
        "CREATE FUNCTION g() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        " INSERT INTO public.org VALUES (NEW.tenant_id) ON CONFLICT DO NOTHING; RETURN NEW; END $$",
        "CREATE TRIGGER t BEFORE INSERT ON line FOR EACH ROW EXECUTE FUNCTION g()",
        "ALTER TABLE line ADD FOREIGN KEY (tenant_id) REFERENCES org",
    )

    metadata = make_metadata(correct.role)
    shared_table(reason="all know all")(
        Table("org", metadata, Column("id", Uuid, primary_key=True))
    )

    report = correct.probe(metadata=metadata)

    assert report.findings == ()
    assert report.probed["relations"]["public.line"]["read"] == "held"


@pytest.mark.parametrize(
    ("made", "is_proven"),
    [
        (f"{CALLED}; GRANT SELECT ON copy TO {{role}}", False),
        (f"{CALLED}; REVOKE USAGE ON SCHEMA public FROM {{role}}, PUBLIC", True),
        (
            (
                f"{CALLED.replace('SETOF text LANGUAGE', 'text IMMUTABLE LANGUAGE')};"
                "GRANT SELECT ON copy TO {role}"
            ),
            True,
        ),
    ],
)
def test_a_copy_that_cannot_be_refreshed_is_not_proven(
    correct: Correct, made: str, *, is_proven: bool
) -> None:
    correct.change(made, "SET LOCAL SESSION AUTHORIZATION {role}")

    report = correct.probe()

    assert report.findings == ()
    found = [one.object for one in report.not_proven if one.object == "public.copy"]
    assert found == ([] if is_proven else ["public.copy"])


def test_a_log_that_cannot_be_read_through_is_not_proven(correct: Correct) -> None:
    view = "CREATE VIEW v AS SELECT doc, 1 / (id - id) AS failing FROM log"
    correct.change(filled(), view, "GRANT SELECT ON v TO {role}")

    report = correct.probe()

    assert [(one.object, one.attack, one.reason) for one in report.not_proven] == [
        ("public.v", "read", "22012")
    ]
    assert report.findings == ()
