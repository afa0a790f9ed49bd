"""Every mistake, made alone in a schema without any, is found by the id that names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mgf_sqlalchemy.audit.correct import counted

from mgf.sqlalchemy.audit._titles import TITLES

if TYPE_CHECKING:
    from mgf_sqlalchemy.audit.correct import Correct

TENANT = "NULLIF(current_setting('app.current_tenant', true), '')::uuid"
CANONICAL = f"tenant_id = (SELECT {TENANT})"
TEXT = "NULLIF(current_setting('app.current_tenant', true), '')"
ID = "b4ad0c8c-0c0f-4e3c-8d5e-0c9d0f6e1a11"


def using(predicate: str) -> str:
    """Put a predicate into the permissive policy, without the restrictive one beside it."""
    return (
        "DROP POLICY tenant_floor ON invoice;"
        f"ALTER POLICY tenant_isolation ON invoice USING ({predicate}) WITH CHECK ({predicate})"
    )


def function(options: str, body: str = "SELECT 1", returns: str = "int") -> str:
    return f"CREATE FUNCTION f() RETURNS {returns} LANGUAGE sql {options} AS $$ {body} $$"


def tenant_function(options: str) -> str:
    return f"{function(options, f'SELECT {TENANT}', 'uuid')};" + using("tenant_id = f()")


TRIGGER = """
    CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = '' AS 'BEGIN RETURN NEW; END';
    CREATE TRIGGER t AFTER INSERT ON invoice FOR EACH ROW EXECUTE FUNCTION f()
"""
FOREIGN = """
    CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
    CREATE FOREIGN TABLE far (tenant_id uuid) SERVER files OPTIONS (filename '/dev/null');
    GRANT SELECT ON far TO {role}
"""
# Who owns a domain may add a CHECK to it, a function that is called for every value there is.
OWNED = """
    CREATE DOMAIN below AS text; CREATE DOMAIN code AS below; ALTER TABLE line ADD code code;
    ALTER DOMAIN {} OWNER TO {{role}}
"""
OTHER = """
    CREATE TABLE other (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, invoice_id int NOT NULL
        REFERENCES invoice)
"""
# A role that the application can become, and whose rights it has not before.
BESIDE = "ALTER ROLE {role} NOINHERIT; CREATE ROLE {role}_r; GRANT {role}_r TO {role}"
DEFINER = """
    CREATE FUNCTION f() RETURNS SETOF invoice LANGUAGE sql STABLE SECURITY DEFINER
        SET search_path = '' AS 'SELECT * FROM public.invoice'
"""
# Its owner inherits from the role that a policy opens the table for.
INHERITING = f"""
    CREATE ROLE {{role}}_r; CREATE ROLE {{role}}_s IN ROLE {{role}}_r; {DEFINER};
    ALTER FUNCTION f OWNER TO {{role}}_s; DROP POLICY tenant_floor ON invoice;
    CREATE POLICY r ON invoice TO {{role}}_r USING (true)
"""
# The floor holds what is written, and not what is read.
UNFLOORED = f"""
    CREATE ROLE {{role}}_r; {DEFINER}; ALTER FUNCTION f OWNER TO {{role}}_r;
    DROP POLICY tenant_floor ON invoice; CREATE POLICY r ON invoice TO {{role}}_r USING (true);
    CREATE POLICY tenant_floor ON invoice AS RESTRICTIVE WITH CHECK ({CANONICAL})
"""
# Its owner, whom policies hold, reads a copy that they do not.
COPYING = """
    CREATE ROLE {role}_r; CREATE MATERIALIZED VIEW copy AS SELECT * FROM invoice;
    GRANT SELECT ON copy TO {role}_r;
    CREATE FUNCTION f() RETURNS SETOF copy LANGUAGE sql SECURITY DEFINER SET search_path = ''
        AS 'SELECT * FROM public.copy';
    ALTER FUNCTION f OWNER TO {role}_r
"""
HIDDEN = f"""
    CREATE SCHEMA hidden; {DEFINER.replace("f()", "hidden.f()")};
    CREATE VIEW v WITH (security_invoker) AS SELECT * FROM hidden.f(); GRANT SELECT ON v TO {{role}}
"""
# Called by a function with the rights of a role that may use the schema, and that policies hold.
UNSEEN = f"""
    CREATE SCHEMA hidden; {DEFINER.replace("f()", "hidden.f()")}; CREATE ROLE {{role}}_o;
    GRANT USAGE ON SCHEMA hidden TO {{role}}_o; {DEFINER.replace("f()", "g()")};
    ALTER FUNCTION g OWNER TO {{role}}_o
"""
OPERATOR = f"""
    CREATE SCHEMA hidden; {DEFINER.replace("f()", "hidden.f(int)")};
    CREATE OPERATOR @@@ (rightarg = int, function = hidden.f)
"""
# PostgreSQL asks whether the role may call the aggregate, not whether it may call what that calls.
COUNTS = """
    CREATE FUNCTION f({args}) RETURNS {returns} LANGUAGE sql SECURITY DEFINER
        SET search_path = '' AS 'SELECT count(*)::{returns} FROM public.invoice';
    REVOKE EXECUTE ON FUNCTION f FROM PUBLIC
"""
AGGREGATE = f"""
    {COUNTS.format(args="bigint, int", returns="bigint")};
    CREATE AGGREGATE total (int) (sfunc = f, stype = bigint)
"""
# Nor whether it may call what compares, wherever rows are sorted.
SORTED = f"""
    CREATE TYPE pair AS (a int); {COUNTS.format(args="pair, pair", returns="int")};
    CREATE FUNCTION less(pair, pair) RETURNS bool LANGUAGE sql AS 'SELECT ($1).a < ($2).a';
    CREATE OPERATOR <<< (leftarg = pair, rightarg = pair, function = less);
    CREATE OPERATOR CLASS pairs FOR TYPE pair USING btree
        AS OPERATOR 1 <<<, FUNCTION 1 f(pair, pair)
"""
# A function's text names its tables, and no catalog does.
CALLED = """
    CREATE FUNCTION f() RETURNS TABLE (tenant_id uuid) LANGUAGE sql
        AS 'SELECT tenant_id FROM public.invoice';
    CREATE MATERIALIZED VIEW copy AS SELECT * FROM f(); GRANT SELECT ON copy TO {role}
"""
ATOMIC = """
    CREATE FUNCTION f(whose uuid) RETURNS text
        BEGIN ATOMIC SELECT set_config('app.current_tenant', whose::text, true); END
"""
WRITER = """
    CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
        AS 'BEGIN UPDATE public.invoice SET number = NEW.number; RETURN NEW; END'
"""
INSTEAD = f"""
    {WRITER}; GRANT UPDATE ON numbers TO {{role}};
    CREATE TRIGGER t INSTEAD OF UPDATE ON numbers FOR EACH ROW EXECUTE FUNCTION f()
"""
COMMAND = f"""
    {WRITER}; CREATE TABLE command (number text); GRANT INSERT ON command TO {{role}};
    CREATE TRIGGER t AFTER INSERT ON command FOR EACH ROW EXECUTE FUNCTION f()
"""
# What others write calls a function that the role may replace, if it is its own.
LIB = """
    CREATE FUNCTION lib.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    ALTER FUNCTION lib.f OWNER TO {role};
    CREATE TRIGGER t BEFORE INSERT ON invoice FOR EACH ROW EXECUTE FUNCTION lib.f()
"""
# Written by a view, a rule or a partitioned table alone: the role has no privilege on it.
BEHIND = [
    "{command}; CREATE VIEW v AS SELECT * FROM command; GRANT INSERT ON v TO {{role}}",
    (
        "{command}; CREATE TABLE start (note text); GRANT INSERT ON start TO {{role}};"
        "CREATE RULE r AS ON INSERT TO start DO ALSO INSERT INTO command VALUES (NEW.note)"
    ),
    (
        "CREATE TABLE start (number text) PARTITION BY LIST (number);"
        "GRANT INSERT ON start TO {{role}};"
        "{command}; ALTER TABLE start ATTACH PARTITION command DEFAULT"
    ),
]
CALLING = COMMAND.replace("GRANT INSERT ON command TO {role};", "")
RULED = """
    CREATE TABLE command (number text);
    CREATE RULE r AS ON INSERT TO command DO ALSO DELETE FROM invoice
"""
PARENT = """
    CREATE TABLE parent (note text); CREATE TABLE heir (tenant_id uuid NOT NULL) INHERITS (parent);
    GRANT SELECT, INSERT, DELETE ON parent TO {role}
"""
UNPINNED = "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'"

ROOM = "CREATE EXTENSION btree_gist; ALTER TABLE line ADD room int4range"

SHORT = """
    CREATE TABLE other (tenant_id varchar(8) NOT NULL);
    CREATE INDEX ON other (tenant_id);
    ALTER TABLE other ENABLE ROW LEVEL SECURITY; ALTER TABLE other FORCE ROW LEVEL SECURITY;
    GRANT SELECT ON other TO {role};
    CREATE POLICY one ON other TO {role}
        USING (tenant_id = NULLIF(current_setting('app.current_tenant', true), '')::varchar(8))
"""

ROLES = [
    ("ALTER ROLE {role} SUPERUSER", "role-superuser"),
    ("ALTER ROLE {role} BYPASSRLS", "role-bypassrls"),
    ("ALTER ROLE {role} CREATEROLE", "role-createrole"),
    ("ALTER ROLE {role} REPLICATION", "role-replication"),
    ("CREATE ROLE {role}_a SUPERUSER; GRANT {role}_a TO {role}", "role-reaches-superuser"),
    (
        (
            "CREATE ROLE {role}_a BYPASSRLS; CREATE ROLE {role}_b NOINHERIT;"
            "GRANT {role}_a TO {role}_b;"
            "GRANT {role}_b TO {role}"
        ),
        "role-reaches-bypassrls",
    ),
    ("CREATE ROLE {role}_a REPLICATION; GRANT {role}_a TO {role}", "role-reaches-replication"),
    ("CREATE ROLE {role}_a CREATEROLE; GRANT {role}_a TO {role}", "role-reaches-createrole"),
    ("GRANT pg_read_server_files TO {role}", "role-server-files"),
    ("GRANT pg_write_server_files TO {role}", "role-server-files"),
    ("GRANT pg_execute_server_program TO {role}", "role-server-files"),
    ("GRANT pg_monitor TO {role}", "role-reads-statistics"),
    ("GRANT EXECUTE ON FUNCTION pg_read_binary_file(text) TO {role}", "role-server-files"),
    (f"{BESIDE}; GRANT EXECUTE ON FUNCTION lo_import(text) TO {{role}}_r", "role-server-files"),
    ("GRANT pg_read_all_data TO {role}", "role-reads-samples"),
    ("GRANT SELECT ON pg_statistic TO {role}", "role-reads-samples"),
    ("ALTER TABLE invoice OWNER TO {role}", "role-owns-table"),
    (
        "CREATE ROLE {role}_a; GRANT {role}_a TO {role}; ALTER TABLE invoice OWNER TO {role}_a",
        "role-reaches-owner",
    ),
    (OWNED.format("code"), "role-owns-domain"),
    (OWNED.format("below"), "role-owns-domain"),
    (f"{BESIDE}; {OWNED.format('code').rstrip()}_r", "role-owns-domain"),
    (
        "ALTER SCHEMA public OWNER TO {role}; REVOKE CREATE ON SCHEMA public FROM {role}",
        "role-owns-schema",
    ),
    (
        (
            "ALTER SCHEMA public OWNER TO pg_database_owner; DO $$ BEGIN EXECUTE "
            "format('ALTER DATABASE %I OWNER TO {role}', current_database()); END $$"
        ),
        "role-owns-schema",
    ),
    (f"ALTER ROLE {{role}} SET app.current_tenant = '{ID}'", "setting-default"),
    (
        (
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET app.current_tenant = %L', "
            f"current_database(), '{ID}'); END $$"
        ),
        "setting-default",
    ),
    ("ALTER ROLE {role} SET row_security = off", "role-setting"),
    ("ALTER ROLE {role} SET role = postgres", "role-setting"),
    ("ALTER ROLE {role} SET session_replication_role = replica", "role-setting"),
    ("GRANT SET ON PARAMETER session_replication_role TO {role}", "role-sets-parameters"),
    ("GRANT SET ON PARAMETER session_replication_role TO PUBLIC", "role-sets-parameters"),
    (
        f"{BESIDE}; GRANT SET ON PARAMETER session_preload_libraries TO {{role}}_r",
        "role-sets-parameters",
    ),
    ("GRANT ALTER SYSTEM ON PARAMETER work_mem TO {role}", "role-sets-parameters"),
    ("GRANT CREATE ON SCHEMA public TO {role}", "role-creates-objects"),
    (f"{BESIDE}; GRANT CREATE ON SCHEMA public TO {{role}}_r", "role-creates-objects"),
    (f"CREATE SCHEMA lib; GRANT CREATE ON SCHEMA lib TO {{role}}; {LIB}", "role-creates-objects"),
    (
        (
            "DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {role}', "
            "current_database()); END $$"
        ),
        "role-creates-objects",
    ),
    ("SET LOCAL ROLE {role}", "login-resets-role"),
    (
        (
            "CREATE ROLE {role}_o; GRANT {role} TO {role}_o; ALTER TABLE invoice OWNER TO {role}_o;"
            "SET LOCAL SESSION AUTHORIZATION {role}_o; SET LOCAL ROLE {role}"
        ),
        "login-resets-role",
    ),
]
TABLES = [
    (
        (
            "DROP POLICY tenant_floor ON invoice; DROP POLICY tenant_isolation ON invoice;"
            "ALTER TABLE invoice DISABLE ROW LEVEL SECURITY"
        ),
        "rls-off",
    ),
    ("ALTER TABLE invoice DISABLE ROW LEVEL SECURITY", "rls-off-with-policies"),
    ("ALTER TABLE account DISABLE ROW LEVEL SECURITY", "rls-off-with-policies"),
    ("ALTER TABLE invoice NO FORCE ROW LEVEL SECURITY", "rls-not-forced"),
    (
        "DROP POLICY tenant_floor ON invoice; DROP POLICY tenant_isolation ON invoice",
        "rls-no-policy",
    ),
    ("ALTER TABLE event_1 DISABLE ROW LEVEL SECURITY", "partition-rls-off"),
    ("CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM (100) TO (200)", "partition-rls-off"),
    (
        "CREATE TABLE heir () INHERITS (invoice); GRANT SELECT ON heir TO {role}",
        "partition-rls-off",
    ),
    (FOREIGN, "foreign-table"),
    (FOREIGN.replace("tenant_id uuid", "note text"), "foreign-table"),
    ("ALTER TABLE line ALTER tenant_id DROP NOT NULL", "tenant-column-nullable"),
    (f"ALTER TABLE line ALTER tenant_id SET DEFAULT '{ID}'", "tenant-column-constant"),
    ("DROP INDEX ix_line_tenant_id", "tenant-column-no-index"),
    ("GRANT TRUNCATE ON invoice TO {role}", "grant-truncate"),
    ("GRANT TRUNCATE ON invoice TO PUBLIC", "grant-truncate"),
    ("GRANT TRIGGER ON invoice TO {role}", "grant-trigger"),
    ("GRANT REFERENCES ON invoice TO {role}", "grant-references"),
    (f"{BESIDE}; GRANT TRUNCATE ON line TO {{role}}_r", "grant-truncate"),
    ("GRANT SELECT ON invoice TO PUBLIC", "grant-public"),
    ("GRANT SELECT (number) ON invoice TO PUBLIC", "grant-public"),
    ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC", "default-privileges"),
    ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {role}", "default-privileges"),
    (OTHER, "child-rls-off"),
    (PARENT, "parent-rls-off"),
    ("CREATE TABLE other (org_id int)", "table-tenant-like"),
    ("CREATE TABLE other (tenantid uuid, PRIMARY KEY (tenantid))", "table-tenant-like"),
    ("CREATE PUBLICATION p FOR TABLE invoice", "table-published"),
    ("CREATE PUBLICATION p FOR ALL TABLES", "table-published"),
    ("CREATE PUBLICATION p FOR TABLE invoice WHERE (id > 0)", "table-published"),
    ("CREATE PUBLICATION p FOR TABLES IN SCHEMA public", "table-published"),
    (
        "DROP TABLE account, country, invoice, line, event, remark CASCADE",
        "nothing-protected",
    ),
]
POLICIES = [
    (using("true"), "policy-always-true"),
    (using("tenant_id = tenant_id"), "policy-always-true"),
    (using(f"{CANONICAL} OR true"), "policy-always-true"),
    ("ALTER POLICY tenant_isolation ON invoice WITH CHECK (true)", "policy-always-true"),
    (using(f"{TENANT} IS NULL OR {CANONICAL}"), "policy-fail-open"),
    (using(f"tenant_id = COALESCE({TENANT}, tenant_id)"), "policy-fail-open"),
    (using(f"tenant_id IS NOT DISTINCT FROM {TENANT}"), "policy-fail-open"),
    (using(f"{CANONICAL} OR number = 'public'"), "policy-widened"),
    (using(CANONICAL.replace("app.current_tenant", "app.tenant")), "policy-wrong-setting"),
    (
        using(f"{CANONICAL} OR current_setting('app.admin', true) = 'on'"),
        "policy-second-setting",
    ),
    (using("tenant_id = current_setting('app.current_tenant', true)::uuid"), "policy-no-nullif"),
    (
        using("tenant_id::text = NULLIF(current_setting('app.current_tenant', true), '')"),
        "policy-column-cast",
    ),
    (using(f"tenant_id = '{ID}'"), "policy-not-canonical"),
    (SHORT, "policy-column-cast"),  # as PostgreSQL prints it, the column is cast, too
    (using(f"tenant_id <> {TENANT}"), "policy-not-canonical"),
    (using("tenant_id = (SELECT md5(current_user)::uuid)"), "policy-not-canonical"),
    (using("tenant_id IN (SELECT id FROM account)"), "policy-not-canonical"),
    (using("false"), "policy-not-canonical"),
    (
        (
            "DROP POLICY tenant_floor ON invoice;"
            "CREATE POLICY more ON invoice FOR DELETE TO {role} USING (true)"
        ),
        "policy-always-true",
    ),
    ("CREATE POLICY more ON invoice TO {role} USING (true)", "policy-permissive-beside"),
    (
        (
            "DROP POLICY tenant_floor ON invoice;"
            "CREATE POLICY more ON invoice FOR SELECT TO {role} USING (number = 'public')"
        ),
        "policy-permissive-beside",
    ),
    ("ALTER POLICY tenant_isolation ON invoice TO PUBLIC", "policy-to-public"),
    (
        "CREATE ROLE {role}_e BYPASSRLS; ALTER POLICY tenant_isolation ON invoice TO {role}_e",
        "policy-to-exempt",
    ),
    ("ALTER POLICY tenant_isolation ON invoice TO pg_monitor", "policy-not-for-role"),
    ("DROP POLICY tenant_isolation ON invoice", "policy-not-for-role"),
    (tenant_function("IMMUTABLE"), "policy-function-immutable"),
    (tenant_function("VOLATILE"), "policy-function-volatile"),
    (tenant_function("STABLE SECURITY DEFINER SET search_path = ''"), "policy-function-definer"),
]
POLICIES += [
    ("ALTER POLICY tenant_isolation ON remark USING (true)", "policy-always-true"),
    ("ALTER TABLE remark NO FORCE ROW LEVEL SECURITY", "rls-not-forced"),
    ("ALTER TABLE remark DISABLE ROW LEVEL SECURITY", "child-rls-off"),
]
KEYS = [
    ("ALTER TABLE remark ADD note text UNIQUE", "unique-without-tenant"),
    ("ALTER TABLE remark ADD other_id int REFERENCES invoice (id)", "fk-without-tenant"),
    (
        "ALTER TABLE remark ADD other_id int REFERENCES invoice (id) ON DELETE CASCADE",
        "fk-cascade",
    ),
    ("ALTER TABLE invoice ADD UNIQUE (number)", "unique-without-tenant"),
    ("CREATE UNIQUE INDEX ON invoice (lower(number))", "unique-without-tenant"),
    ("ALTER TABLE invoice ADD EXCLUDE (number WITH =)", "unique-without-tenant"),
    (f"{ROOM}, ADD EXCLUDE USING gist (room WITH &&)", "unique-without-tenant"),
    (f"{ROOM}, ADD EXCLUDE USING gist (room WITH =, invoice_id WITH <>)", "unique-without-tenant"),
    (f"{ROOM}, ADD EXCLUDE USING gist (room WITH =, tenant_id WITH <>)", "unique-without-tenant"),
    (
        "ALTER TABLE line ADD FOREIGN KEY (invoice_id) REFERENCES invoice (id)",
        "fk-without-tenant",
    ),
    (
        "ALTER TABLE line ADD FOREIGN KEY (invoice_id) REFERENCES invoice (id) ON DELETE CASCADE",
        "fk-cascade",
    ),
    (
        (
            "GRANT DELETE ON country TO {role}; ALTER TABLE invoice ADD FOREIGN KEY (country)"
            "REFERENCES country ON DELETE CASCADE"
        ),
        "fk-cascade",
    ),
    (
        (
            "CREATE TABLE part (code text PRIMARY KEY); GRANT DELETE ON part TO {role};"
            "ALTER TABLE country ADD part text REFERENCES part ON DELETE CASCADE;"
            "ALTER TABLE invoice ADD FOREIGN KEY (country) REFERENCES country ON DELETE SET NULL"
        ),
        "fk-cascade",
    ),
    (
        (
            "CREATE VIEW countries AS SELECT * FROM country; GRANT DELETE ON countries TO {role};"
            "ALTER TABLE invoice ADD FOREIGN KEY (country) REFERENCES country ON DELETE CASCADE"
        ),
        "fk-cascade",
    ),
]
DOORS = [
    ("ALTER VIEW numbers RESET (security_invoker)", "view-not-invoker"),
    ("ALTER VIEW numbers RESET (security_invoker)", "view-chain"),
    (
        "CREATE MATERIALIZED VIEW copy AS SELECT * FROM numbers; GRANT SELECT ON copy TO {role}",
        "view-materialized",
    ),
    (
        (
            "CREATE MATERIALIZED VIEW copy AS SELECT * FROM numbers;"
            "CREATE VIEW v WITH (security_invoker) AS SELECT * FROM copy;"
            "GRANT SELECT ON v TO {role}"
        ),
        "view-chain",
    ),
    (f"{UNPINNED}; ALTER FUNCTION f SET search_path = ''", "function-definer"),
    (
        (
            f"{UNPINNED}; ALTER FUNCTION f SET search_path = ''; CREATE ROLE {{role}}_r;"
            "ALTER FUNCTION f OWNER TO {role}_r; DROP POLICY tenant_floor ON invoice;"
            "CREATE POLICY r ON invoice TO {role}_r USING (true)"
        ),
        "function-definer",
    ),
    (UNPINNED, "function-search-path"),
    (f"{UNPINNED}; ALTER FUNCTION f SET search_path = public", "function-search-path"),
    (f"{UNPINNED}; ALTER FUNCTION f SET search_path = pg_temp, public", "function-search-path"),
    (
        (
            f'{UNPINNED}; ALTER FUNCTION f SET search_path = pg_catalog, "My lib", pg_temp;'
            'CREATE SCHEMA "My lib"; GRANT CREATE ON SCHEMA "My lib" TO {role}'
        ),
        "function-search-path",
    ),
    (
        (
            f"{UNPINNED}; CREATE ROLE {{role}}_o; CREATE SCHEMA AUTHORIZATION {{role}}_o;"
            "ALTER FUNCTION f OWNER TO {role}_o; GRANT CREATE ON SCHEMA {role}_o TO {role};"
            'ALTER FUNCTION f SET search_path = "$user", pg_temp'
        ),
        "function-search-path",
    ),
    (UNPINNED.replace("FUNCTION f() RETURNS int", "PROCEDURE f()"), "function-definer"),
    (
        function("", f"SELECT set_config('app.current_tenant', '{ID}', true)", "text"),
        "function-sets-tenant",
    ),
    (function(f"SET app.current_tenant = '{ID}'"), "function-sets-tenant"),
    (function("LEAKPROOF"), "function-leakproof"),
    (TRIGGER, "trigger-definer"),
    ("CREATE RULE r AS ON INSERT TO invoice DO ALSO NOTIFY x", "table-rule"),
    (INHERITING, "function-definer"),
    (UNFLOORED, "function-definer"),
    (COPYING, "function-definer"),
    (HIDDEN, "function-definer"),
    (UNSEEN, "function-definer"),
    (OPERATOR, "function-definer"),
    (AGGREGATE, "function-definer"),
    (SORTED, "function-definer"),
    (CALLED, "view-materialized"),
    (
        (
            f"{BESIDE}; {DEFINER}; REVOKE EXECUTE ON FUNCTION f FROM PUBLIC;"
            "GRANT EXECUTE ON FUNCTION f TO {role}_r"
        ),
        "function-definer",
    ),
    (ATOMIC, "function-sets-tenant"),
    (INSTEAD, "trigger-definer"),
    (COMMAND, "trigger-definer"),
    *((one.format(command=CALLING), "trigger-definer") for one in BEHIND),
    *((one.format(command=RULED), "table-rule") for one in BEHIND[:2]),
    (
        (
            "GRANT UPDATE ON numbers TO {role};"
            "CREATE RULE r AS ON UPDATE TO numbers DO INSTEAD SELECT * FROM invoice"
        ),
        "table-rule",
    ),
    (
        (
            f"{BESIDE}; CREATE MATERIALIZED VIEW copy AS SELECT * FROM invoice;"
            "GRANT SELECT ON copy TO {role}_r"
        ),
        "view-materialized",
    ),
    (
        f"{BESIDE}; CREATE VIEW v AS SELECT * FROM invoice; GRANT SELECT ON v TO {{role}}_r",
        "view-not-invoker",
    ),
]


@pytest.mark.parametrize(("mistake", "check"), [*ROLES, *TABLES, *POLICIES, *KEYS, *DOORS])
def test_a_mistake_is_found_by_its_id(correct: Correct, mistake: str, check: str) -> None:
    correct.change(mistake)

    remedies = [one.remedy for one in counted(correct.audit()) if one.id == check]
    assert remedies
    # Those that leave nothing to fill in are run as they stand.
    correct.change(*dict.fromkeys(one for one in remedies if "..." not in one))


@pytest.mark.parametrize(
    ("mistake", "check"),
    [
        (FOREIGN, "foreign-table"),
        (CALLED, "view-materialized"),
        ("GRANT pg_read_all_data TO {role}", "role-reads-samples"),
        ("GRANT SELECT ON pg_statistic TO {role}", "role-reads-samples"),
        ("GRANT EXECUTE ON FUNCTION pg_read_file(text) TO {role}", "role-server-files"),
        ("GRANT SET ON PARAMETER session_replication_role TO {role}", "role-sets-parameters"),
        (
            f"{ROOM}, ADD EXCLUDE USING gist (room WITH &&) WHERE (room IS NOT NULL) DEFERRABLE",
            "unique-without-tenant",
        ),
        ("ALTER TABLE invoice ADD EXCLUDE (number WITH =)", "unique-without-tenant"),
        ("ALTER TABLE invoice ADD UNIQUE (number) INCLUDE (country)", "unique-without-tenant"),
        (
            "CREATE UNIQUE INDEX ON invoice (lower(number)) WHERE number <> ''",
            "unique-without-tenant",
        ),
    ],
)
def test_a_remedy_clears_the_finding(correct: Correct, mistake: str, check: str) -> None:
    correct.change(mistake)
    found = counted(correct.audit())
    assert {one.id for one in found} == {check}

    correct.change(*(one.remedy for one in found))

    assert correct.ids() == set()
    assert correct.probe(metadata=correct.metadata).ok


DECLARED = [
    ("DROP VIEW all_numbers, numbers; DROP TABLE line, remark, invoice", "table-missing"),
    ("DROP VIEW all_numbers, numbers", "view-missing"),
    ("DROP POLICY tenant_floor ON invoice", "policy-no-floor"),
    ("DROP POLICY tenant_isolation ON invoice", "policy-missing"),
    ("ALTER POLICY tenant_isolation ON invoice USING (true)", "policy-differs"),
    ("CREATE POLICY more ON invoice TO pg_monitor USING (true)", "policy-undeclared"),
    ("ALTER POLICY tenant_isolation ON remark USING (true)", "policy-always-true"),
    ("REVOKE SELECT ON invoice FROM {role}", "grant-missing"),
    ("GRANT TRUNCATE ON country TO {role}", "grant-undeclared"),
    ("CREATE TABLE other (tenant_id uuid)", "table-undeclared"),
    ("CREATE TABLE other (note text); GRANT SELECT (note) ON other TO {role}", "table-undeclared"),
    (
        (
            f"{OTHER}; ALTER TABLE other ENABLE ROW LEVEL SECURITY;"
            "CREATE POLICY p ON other TO {role} USING (true)"
        ),
        "policy-always-true",
    ),
    ("ALTER TABLE country ENABLE ROW LEVEL SECURITY", "table-not-shared"),
    ("ALTER TABLE remark DISABLE ROW LEVEL SECURITY", "rls-off-with-policies"),
    ("ALTER TABLE event_1 DISABLE ROW LEVEL SECURITY", "partition-rls-off"),
    (OTHER, "child-rls-off"),
    (
        (
            "DROP POLICY tenant_floor ON line; DROP POLICY tenant_isolation ON line;"
            "ALTER TABLE line DROP COLUMN tenant_id CASCADE"
        ),
        "tenant-column-missing",
    ),
    (
        (
            "DROP POLICY tenant_floor ON line; DROP POLICY tenant_isolation ON line;"
            "ALTER TABLE line DROP CONSTRAINT line_tenant_id_invoice_id_fkey,"
            "ALTER tenant_id DROP DEFAULT, ALTER tenant_id TYPE text;"
            f"CREATE POLICY tenant_isolation ON line TO {{role}} USING (tenant_id = {TEXT})"
        ),
        "policy-differs",
    ),
]


@pytest.mark.parametrize(("mistake", "check"), DECLARED)
def test_what_is_not_as_declared_is_found_by_its_id(
    correct: Correct, mistake: str, check: str
) -> None:
    correct.change(mistake)

    assert check in correct.ids(metadata=correct.metadata)


def test_what_came_with_postgresql_17_is_found(correct: Correct) -> None:
    has_it = correct.database.owner.exec_driver_sql("SHOW server_version_num").scalar_one() >= "17"
    if has_it:
        correct.change("GRANT MAINTAIN ON invoice TO {role}")

    assert ("grant-maintain" in correct.ids()) == has_it


def test_a_role_that_may_be_granted_to_itself_is_found(correct: Correct) -> None:
    """It is no member in any sense of pg_has_role(), since PostgreSQL 16, until it grants that."""
    option = "ADMIN OPTION"
    if correct.database.owner.exec_driver_sql("SHOW server_version_num").scalar_one() >= "16":
        option = "ADMIN TRUE, INHERIT FALSE, SET FALSE"
    correct.change(
        "CREATE ROLE {role}_a BYPASSRLS; CREATE ROLE {role}_b NOINHERIT",
        "GRANT {role}_a TO {role}_b",
        f"GRANT {{role}}_b TO {{role}} WITH {option}",
    )

    assert "role-reaches-bypassrls" in correct.ids()


@pytest.mark.parametrize(
    ("login", "is_told"),
    [
        ("CREATE ROLE {role}_l", False),
        ("CREATE ROLE {role}_l BYPASSRLS", True),
        ("CREATE ROLE {role}_s SUPERUSER; CREATE ROLE {role}_l NOINHERIT IN ROLE {role}_s", True),
        ("CREATE ROLE {role}_l; ALTER TABLE line OWNER TO {role}_l", True),
    ],
)
def test_a_login_that_may_more_is_told_where_it_only_asks(
    correct: Correct, login: str, is_told: bool
) -> None:
    correct.change(login, "GRANT {role} TO {role}_l", "SET LOCAL SESSION AUTHORIZATION {role}_l")

    report = correct.audit()
    found = [one.severity for one in report.findings if one.id == "login-resets-role"]
    assert found == ["warning"] * is_told
    assert report.ok == (not is_told) or "server-cve-floor" in {one.id for one in report.findings}


def test_a_remedy_does_not_cut_tenants_off(correct: Correct) -> None:
    correct.change(SHORT)
    remedy = next(one for one in correct.audit().findings if one.object == "public.other").remedy

    correct.change(remedy)

    assert correct.ids() == set()


@pytest.mark.parametrize(
    "harmless",
    [
        f"{ROOM}, ADD EXCLUDE USING gist (tenant_id WITH =, room WITH &&)",
        "ALTER ROLE {role} SET session_replication_role = origin",
        "GRANT SET ON PARAMETER log_statement TO {role}",
        f"{AGGREGATE}; REVOKE EXECUTE ON FUNCTION total FROM PUBLIC",
        "GRANT SELECT ON alembic_version TO {role}",
        "CREATE TABLE other (note text)",
        "CREATE DOMAIN free AS text; ALTER DOMAIN free OWNER TO {role}",
        "CREATE SCHEMA lib; GRANT CREATE ON SCHEMA lib TO {role}",
        f"CREATE PUBLICATION p FOR TABLE invoice WHERE (tenant_id = '{ID}')",
        FOREIGN.replace("tenant_id uuid", "note text").replace("GRANT", "--"),
    ],
)
def test_what_harms_nobody_is_not_named(correct: Correct, harmless: str) -> None:
    correct.change(harmless)

    assert correct.ids() == correct.ids(metadata=correct.metadata) == set()


@pytest.mark.parametrize("options", [{}, {"metadata": True}])
def test_a_function_in_the_place_of_postgresql_s_own_is_found(
    correct: Correct, options: dict[str, bool]
) -> None:
    """Policies that are made and compared on such a path look the same."""
    correct.change(
        "CREATE FUNCTION current_setting(text, bool) RETURNS text LANGUAGE sql STABLE"
        f" AS $$ SELECT '{ID}' $$",
        "SET LOCAL search_path = public, pg_catalog",
        using(CANONICAL),
    )

    given = {"metadata": correct.metadata} if options else {}
    found = {one.object for one in counted(correct.audit(**given)) if one.id.startswith("policy-")}
    assert found == {"public.invoice"}


def test_a_trigger_that_reaches_no_tenant_is_not_named(correct: Correct) -> None:
    correct.change(
        COMMAND,
        "CREATE ROLE {role}_r; GRANT CREATE ON SCHEMA public TO {role}_r",
        "ALTER FUNCTION f OWNER TO {role}_r",
    )

    assert correct.ids() == set()


@pytest.mark.parametrize(
    "made",
    [
        CALLING,
        RULED,
        BEHIND[0].format(command=RULED).replace("AS SELECT", "WITH (security_invoker) AS SELECT"),
        BEHIND[0].format(command=RULED).replace("GRANT INSERT", "GRANT SELECT, UPDATE"),
        BEHIND[1].format(command=RULED).replace("GRANT INSERT", "GRANT SELECT"),
    ],
)
def test_what_the_role_does_not_write_is_not_named(correct: Correct, made: str) -> None:
    correct.change(made)

    assert correct.ids() == set()


@pytest.mark.parametrize(
    "path",
    [
        "''",
        "pg_catalog",
        "public, pg_temp",
        '"My lib", public, pg_temp',
        '"$user", pg_temp',
    ],
)
def test_a_path_that_its_caller_has_no_hand_in_is_not_named(correct: Correct, path: str) -> None:
    correct.change(
        'CREATE SCHEMA "My lib"; CREATE ROLE {role}_o',
        UNPINNED,
        f"ALTER FUNCTION f OWNER TO {{role}}_o; ALTER FUNCTION f SET search_path = {path}",
    )

    assert correct.ids() == set()


def test_without_temporary_objects_they_need_not_come_last(correct: Correct) -> None:
    correct.change(
        "CREATE ROLE {role}_o",
        UNPINNED,
        "ALTER FUNCTION f OWNER TO {role}_o; ALTER FUNCTION f SET search_path = public",
        "DO $$ BEGIN EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', "
        "current_database()); END $$",
    )

    assert correct.ids() == set()


def test_a_rule_that_reaches_no_tenant_is_not_named(correct: Correct) -> None:
    correct.change("CREATE RULE r AS ON INSERT TO country DO ALSO NOTIFY x")

    assert correct.ids() == set()


def test_what_is_worth_knowing_is_told(correct: Correct) -> None:
    correct.change(using("tenant_id = NULLIF(current_setting('app.current_tenant'), '')::uuid"))
    correct.change("SET LOCAL transaction_read_only = on")

    found = {one.id for one in correct.audit().findings if one.severity == "info"}
    assert found >= {"policy-setting-required", "policy-no-floor", "server-recorded-deparse"}


def test_every_check_has_a_mistake_that_it_finds() -> None:
    """test_correct.py has the age of the server, and the last tests here what they name."""
    seeded = {check for _, check in (*ROLES, *TABLES, *POLICIES, *KEYS, *DOORS, *DECLARED)}
    elsewhere = {
        "grant-maintain",
        "policy-setting-required",
        "server-cve-floor",
        "server-recorded-deparse",
    }
    assert seeded | elsewhere == TITLES.keys()
