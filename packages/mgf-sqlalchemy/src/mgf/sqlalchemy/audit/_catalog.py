# ruff: noqa: S608 - what is put into the queries are constants of this module
"""The catalogs, read in a fixed number of queries, however many tables there are."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.audit._snapshot import Column, Relation, Snapshot
from mgf.sqlalchemy.rls import read_protection

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection, Row

    from mgf.sqlalchemy.rls import TableProtection
    from mgf.sqlalchemy.rls._names import RelationName

# What PostgreSQL made itself is left out, and what extensions made.
_IS_OURS = r"n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'"
_NO_EXTENSION = """
    NOT EXISTS (SELECT FROM pg_depend AS x WHERE x.classid = '{catalog}'::regclass
                AND x.objid = {alias}.oid AND x.deptype = 'e')
"""

# Names by which programs know a tenant: a regular expression, in PostgreSQL and in Python.
TENANT_LIKE = (
    "((tenant|org|organi[sz]ation|account|workspace|company|team|client|customer)_?(id|uuid)"
    "|tenant)"
)
# asyncpg has bytes for the one-byte type "char": hence the casts to text.
_SERVER = """
    SELECT current_database() AS database, session_user::text AS session_user,
           current_user::text AS "current_user",
           CAST(current_setting('server_version_num') AS int) AS version,
           ARRAY(SELECT rolname::text FROM pg_roles WHERE rolsuper OR rolbypassrls) AS exempt,
           ARRAY(SELECT rolname::text FROM pg_roles
                 WHERE pg_has_role(session_user, oid, 'MEMBER')) AS login_roles
"""
_ROLE = """
    SELECT oid, rolname, rolsuper, rolbypassrls, rolcreaterole, rolreplication
    FROM pg_roles WHERE rolname = :role
"""
# SET ROLE needs an option of its own since PostgreSQL 16. Who administers a role may grant it to
# itself with all options.
_REACHABLE = """
    WITH RECURSIVE reached AS (
        SELECT oid FROM pg_roles
        WHERE pg_has_role(:role, oid, 'USAGE') OR pg_has_role(:role, oid, '{set_option}')
        UNION
        SELECT more.oid FROM reached
        JOIN pg_auth_members AS m ON m.member = reached.oid AND m.admin_option
        JOIN pg_roles AS more ON pg_has_role(m.roleid, more.oid, 'USAGE')
                              OR pg_has_role(m.roleid, more.oid, '{set_option}')
    )
    SELECT oid, rolname, rolsuper, rolbypassrls, rolcreaterole, rolreplication,
           pg_has_role(:role, oid, 'USAGE') AS inherited,
           NOT rolsuper
               AND (has_any_column_privilege(oid, 'pg_catalog.pg_statistic', 'SELECT')
                    OR has_any_column_privilege(oid, 'pg_catalog.pg_statistic_ext_data', 'SELECT'))
               AS reads_samples,
           ARRAY(SELECT p.oid::regprocedure::text FROM pg_proc AS p
                 WHERE p.pronamespace = 'pg_catalog'::regnamespace
                 AND p.proname IN ('pg_read_file', 'pg_read_binary_file', 'lo_import', 'lo_export')
                 AND has_function_privilege(pg_roles.oid, p.oid, 'EXECUTE')
                 AND NOT rolsuper) AS file_functions,
           NOT rolsuper AND has_database_privilege(oid, current_database(), 'CREATE')
               AS creates_schemas,
           has_database_privilege(oid, current_database(), 'TEMPORARY') AS makes_temporary,
           {parameters} AS parameters
    FROM pg_roles WHERE oid IN (SELECT oid FROM reached) ORDER BY rolname
"""
# Since PostgreSQL 15.
_PARAMETERS = """
    ARRAY(SELECT ARRAY[one, a.parname] FROM pg_parameter_acl AS a
          CROSS JOIN unnest(ARRAY['SET', 'ALTER SYSTEM']) AS one
          WHERE has_parameter_privilege(pg_roles.oid, a.parname, one) AND NOT rolsuper
          ORDER BY a.parname, one)
"""
_SCHEMAS = f"""
    SELECT n.nspname, quote_ident(n.nspname) AS sql, o.rolname AS owner,
           ARRAY(SELECT CAST(one AS text) FROM unnest(CAST(:callers AS name[])) AS one
                 WHERE has_schema_privilege(one, n.oid, 'CREATE')) AS creators
    FROM pg_namespace AS n JOIN pg_roles AS o ON o.oid = n.nspowner
    WHERE {_IS_OURS} ORDER BY n.nspname
"""
# With the tables that have a column of a domain, or of one that is made of it.
_DOMAINS = """
    WITH RECURSIVE based AS (
        SELECT t.oid AS owned, t.oid FROM pg_type AS t JOIN pg_roles AS o ON o.oid = t.typowner
        WHERE t.typtype = 'd' AND o.rolname = ANY(CAST(:owners AS name[]))
        UNION
        SELECT based.owned, t.oid FROM based JOIN pg_type AS t ON t.typbasetype = based.oid
    )
    SELECT n.nspname || '.' || t.typname AS label,
           quote_ident(n.nspname) || '.' || quote_ident(t.typname) AS sql, o.rolname AS owner,
           ARRAY(SELECT DISTINCT a.attrelid::bigint FROM based
                 JOIN pg_attribute AS a ON a.atttypid = based.oid AND a.attnum > 0
                 WHERE based.owned = t.oid) AS relations
    FROM pg_type AS t
    JOIN pg_namespace AS n ON n.oid = t.typnamespace
    JOIN pg_roles AS o ON o.oid = t.typowner
    WHERE t.oid IN (SELECT owned FROM based) ORDER BY label
"""
_RELATIONS = f"""
    SELECT c.oid, n.nspname, c.relname, c.relkind::text, o.rolname AS owner,
           quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS sql,
           o.rolsuper OR o.rolbypassrls AS owner_exempt,
           c.relrowsecurity, c.relforcerowsecurity,
           ARRAY(SELECT p FROM unnest(CAST(:privileges AS text[])) AS p
                 WHERE has_table_privilege(:role, c.oid, p)
                 OR p IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
                    AND has_any_column_privilege(:role, c.oid, p)) AS privileges,
           ARRAY(SELECT DISTINCT p FROM unnest(CAST(:privileges AS text[])) AS p
                 CROSS JOIN unnest(CAST(:others AS name[])) AS other
                 WHERE has_table_privilege(other, c.oid, p)
                 OR p IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
                    AND has_any_column_privilege(other, c.oid, p)) AS reached,
           ARRAY(SELECT DISTINCT one.privilege_type::text
                 FROM (SELECT c.relacl UNION ALL
                       SELECT a.attacl FROM pg_attribute AS a
                       WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL) AS granted (acl)
                 CROSS JOIN aclexplode(granted.acl) AS one
                 WHERE one.grantee = 0) AS public,
           ARRAY(SELECT inhparent::bigint FROM pg_inherits WHERE inhrelid = c.oid) AS parents
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_roles AS o ON o.oid = c.relowner
    WHERE {_IS_OURS} AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
      AND {_NO_EXTENSION.format(catalog="pg_class", alias="c")}
    ORDER BY n.nspname, c.relname
"""
# Those that are in keys, or may say whose a row is: of most tables that is a few out of many.
_COLUMNS = f"""
    SELECT a.attrelid, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod) AS type,
           CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END AS base,
           a.attnotnull, a.attidentity <> '' AS identity,
           pg_get_expr(d.adbin, d.adrelid) AS default
    FROM pg_attribute AS a
    JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                              AND a.attgenerated = ''
    WHERE {_IS_OURS} AND a.attnum > 0 AND NOT a.attisdropped
      AND (a.attname = ANY(CAST(:names AS name[])) OR a.attname ~* '^{TENANT_LIKE}$'
           OR (a.attrelid, a.attnum) IN (
               SELECT conrelid, unnest(conkey) FROM pg_constraint WHERE contype = 'f'
               UNION ALL
               SELECT confrelid, unnest(confkey) FROM pg_constraint WHERE contype = 'f'
               UNION ALL
               SELECT indrelid, unnest(indkey) FROM pg_index WHERE indisunique OR indisexclusion))
    ORDER BY a.attrelid, a.attnum
"""
# What partitions have of their parents is told once. Rows of other tenants are out of the question
# where the tenant is compared for equality, which an exclusion constraint need not do.
_UNIQUE_KEYS = f"""
    SELECT i.indrelid, x.relname, i.indisprimary, k.conname,
           CAST(string_to_array(i.indkey::text, ' ') AS int[]) AS columns, i.indnkeyatts AS count,
           k.contype = 'x' AS is_exclusion,
           CASE WHEN k.oid IS NULL THEN pg_get_indexdef(i.indexrelid)
                ELSE pg_get_constraintdef(k.oid) END AS definition,
           ARRAY(SELECT CAST(one.attnum AS int)
                 FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS one (attnum, place)
                 WHERE one.place <= i.indnkeyatts AND (k.conexclop IS NULL OR EXISTS (
                     SELECT FROM pg_amop AS o JOIN pg_am AS m ON m.oid = o.amopmethod
                     WHERE o.amopopr = k.conexclop[one.place]
                     AND m.amname = 'btree' AND o.amopstrategy = 3))) AS equal
    FROM pg_index AS i
    JOIN pg_class AS x ON x.oid = i.indexrelid AND NOT x.relispartition
    JOIN pg_namespace AS n ON n.oid = x.relnamespace
    LEFT JOIN pg_constraint AS k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x')
    WHERE {_IS_OURS} AND (i.indisunique OR i.indisexclusion)
    ORDER BY i.indrelid, x.relname
"""
_FOREIGN_KEYS = f"""
    SELECT k.conname, quote_ident(k.conname) AS sql, k.conrelid, k.confrelid,
           k.conkey, k.confkey, k.confdeltype::text, k.confupdtype::text
    FROM pg_constraint AS k JOIN pg_namespace AS n ON n.oid = k.connamespace
    WHERE {_IS_OURS} AND k.contype = 'f' AND k.conparentid = 0
    ORDER BY k.conrelid, k.conname
"""
# PostgreSQL's own functions and operators are pinned, and so in no pg_depend.
_POLICY_FUNCTIONS = """
    SELECT DISTINCT o.polrelid, o.polname, p.provolatile::text, p.prosecdef,
           fn.nspname || '.' || p.proname AS function, p.oid::regprocedure::text AS sql,
           fn.nspname AS function_schema, COALESCE(pg_get_function_sqlbody(p.oid), p.prosrc) AS body
    FROM pg_policy AS o
    JOIN pg_depend AS d ON d.classid = 'pg_policy'::regclass AND d.objid = o.oid
    LEFT JOIN pg_operator AS w ON d.refclassid = 'pg_operator'::regclass AND w.oid = d.refobjid
    JOIN pg_proc AS p ON p.oid = COALESCE(
        w.oprcode::oid, CASE WHEN d.refclassid = 'pg_proc'::regclass THEN d.refobjid END)
    JOIN pg_namespace AS fn ON fn.oid = p.pronamespace
    ORDER BY o.polrelid, o.polname, function
"""
# For what an aggregate is made of PostgreSQL asks the privilege on the aggregate, and none for what
# compares in an operator class.
_IS_UNASKED = """
    EXISTS (SELECT FROM unasked AS u WHERE u.oid = p.oid AND (
        u.aggregate IS NULL OR has_function_privilege(caller, u.aggregate, 'EXECUTE')))
"""
# A body in standard SQL is no text in the catalog. A function in a schema that the role may not
# use is called all the same by what names it, such as a view, a default or an operator, and by
# functions that run with the rights of who may use that schema.
_FUNCTIONS = f"""
    WITH RECURSIVE unasked AS (
        SELECT amproc::oid AS oid, CAST(NULL AS oid) AS aggregate FROM pg_amproc
        UNION
        SELECT d.refobjid, d.objid FROM pg_aggregate AS a
        JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = a.aggfnoid
                            AND d.refclassid = 'pg_proc'::regclass
    ), callers AS (
        SELECT unnest(CAST(:callers AS name[])) AS caller
        UNION
        SELECT o.rolname FROM callers
        JOIN pg_proc AS p ON p.prosecdef
            AND (p.prorettype = 'trigger'::regtype
                 OR has_function_privilege(caller, p.oid, 'EXECUTE')
                    AND has_schema_privilege(caller, p.pronamespace, 'USAGE')
                 OR {_IS_UNASKED})
        JOIN pg_roles AS o ON o.oid = p.proowner AND NOT (o.rolsuper OR o.rolbypassrls)
    )
    SELECT p.oid, n.nspname || '.' || p.proname AS label, p.oid::regprocedure::text AS sql,
           CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END AS kind,
           p.prosecdef, p.proleakproof, p.proconfig, o.rolname AS owner,
           COALESCE(pg_get_function_sqlbody(p.oid), p.prosrc) AS body,
           p.prorettype IN ('trigger'::regtype, 'event_trigger'::regtype) AS is_trigger,
           EXISTS (
               SELECT FROM callers
               WHERE has_function_privilege(caller, p.oid, 'EXECUTE')
               AND (has_schema_privilege(caller, n.oid, 'USAGE') OR EXISTS (
                   SELECT FROM pg_depend AS d
                   WHERE d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid
                   AND d.classid <> 'pg_trigger'::regclass))
               OR {_IS_UNASKED}
           ) AS executable
    FROM pg_proc AS p
    JOIN pg_namespace AS n ON n.oid = p.pronamespace
    JOIN pg_roles AS o ON o.oid = p.proowner
    WHERE {_IS_OURS} AND {_NO_EXTENSION.format(catalog="pg_proc", alias="p")}
      AND (p.prosecdef OR p.proleakproof OR p.proconfig IS NOT NULL
           OR strpos(lower(COALESCE(pg_get_function_sqlbody(p.oid), p.prosrc)),
                     lower(:setting)) > 0)
    ORDER BY label, sql
"""
# Whose rights SECURITY DEFINER gives away: few have many functions.
_DEFINERS = """
    SELECT o.rolname,
           ARRAY(SELECT r.rolname::text FROM pg_roles AS r
                 WHERE pg_has_role(o.oid, r.oid, 'USAGE')) AS roles,
           ARRAY(SELECT c.oid::bigint FROM pg_class AS c WHERE c.relkind IN ('v', 'm', 'f')
                 AND (has_table_privilege(o.oid, c.oid, 'SELECT')
                      OR has_any_column_privilege(o.oid, c.oid, 'SELECT'))) AS reads
    FROM pg_roles AS o
    WHERE o.rolname = ANY(CAST(:owners AS name[])) ORDER BY o.rolname
"""
_TRIGGERS = f"""
    SELECT t.tgrelid, t.tgname, quote_ident(t.tgname) AS sql, p.oid AS function_oid, p.prosecdef,
           CAST(t.tgtype AS int) AS type, t.tgenabled::text AS enabled,
           fn.nspname || '.' || p.proname AS function, p.oid::regprocedure::text AS function_sql,
           fn.nspname AS function_schema
    FROM pg_trigger AS t
    JOIN pg_class AS c ON c.oid = t.tgrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_proc AS p ON p.oid = t.tgfoid
    JOIN pg_namespace AS fn ON fn.oid = p.pronamespace
    WHERE {_IS_OURS} AND NOT t.tgisinternal AND t.tgparentid = 0
    ORDER BY t.tgrelid, t.tgname
"""
_RULES = f"""
    SELECT w.ev_class, w.rulename, quote_ident(w.rulename) AS sql,
           CASE w.ev_type WHEN '2' THEN 'UPDATE' WHEN '3' THEN 'INSERT' ELSE 'DELETE' END AS event,
           ARRAY(SELECT DISTINCT d.refobjid::bigint FROM pg_depend AS d
                 WHERE d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
                 AND d.refclassid = 'pg_class'::regclass) AS names
    FROM pg_rewrite AS w
    JOIN pg_class AS c ON c.oid = w.ev_class
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE {_IS_OURS} AND w.rulename <> '_RETURN' ORDER BY w.ev_class, w.rulename
"""
_SETTINGS = """
    SELECT r.rolname, d.datname, quote_ident(r.rolname) AS role_sql,
           quote_ident(d.datname) AS database_sql, split_part(one, '=', 1) AS name,
           substr(one, strpos(one, '=') + 1) AS value
    FROM pg_db_role_setting AS s
    CROSS JOIN unnest(s.setconfig) AS one
    LEFT JOIN pg_roles AS r ON r.oid = s.setrole
    LEFT JOIN pg_database AS d ON d.oid = s.setdatabase
    WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
      AND (s.setrole = 0 OR r.rolname = :role)
    ORDER BY r.rolname, d.datname, one
"""
_DEFAULT_PRIVILEGES = """
    SELECT o.rolname AS owner, quote_ident(o.rolname) AS owner_sql, n.nspname,
           quote_ident(n.nspname) AS schema_sql, COALESCE(g.rolname, 'PUBLIC') AS grantee,
           COALESCE(quote_ident(g.rolname), 'PUBLIC') AS grantee_sql,
           array_agg(one.privilege_type::text ORDER BY one.privilege_type) AS privileges
    FROM pg_default_acl AS a
    CROSS JOIN aclexplode(a.defaclacl) AS one
    JOIN pg_roles AS o ON o.oid = a.defaclrole
    LEFT JOIN pg_namespace AS n ON n.oid = a.defaclnamespace
    LEFT JOIN pg_roles AS g ON g.oid = one.grantee
    WHERE a.defaclobjtype = 'r' AND one.grantee <> a.defaclrole
    GROUP BY o.rolname, n.nspname, g.rolname ORDER BY o.rolname, n.nspname, g.rolname
"""
# A table is sent with all, with its schema, or because it, or what it is a partition of, is named.
_PUBLICATIONS = """
    SELECT t.pubname, quote_ident(t.pubname) AS sql, t.schemaname, t.tablename,
           {filter} AS filter, p.puballtables, quote_ident(t.schemaname) AS schema_sql,
           (SELECT r.prrelid::regclass::text FROM pg_publication_rel AS r
            WHERE r.prpubid = p.oid
            AND (r.prrelid = c.oid OR r.prrelid IN (SELECT pg_partition_ancestors(c.oid)))
            LIMIT 1) AS named
    FROM pg_publication_tables AS t
    JOIN pg_publication AS p ON p.pubname = t.pubname
    JOIN pg_namespace AS n ON n.nspname = t.schemaname
    JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = t.tablename
    ORDER BY t.pubname, t.schemaname, t.tablename
"""
_PRIVILEGES = ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"]


class _Reader:
    """Asks a connection about a role."""

    def __init__(
        self, connection: Connection, role: str, setting: str, names: Sequence[str]
    ) -> None:
        self._connection = connection
        self._parameters: dict[str, Any] = {"role": role, "setting": setting, "names": names}

    def rows(self, sql: str, **more: Any) -> tuple[Row[Any], ...]:
        query = text(sql)
        known = {**self._parameters, **more}
        asked = {name: known[name] for name in query.compile().params}
        return tuple(self._connection.execute(query, asked))


def read_snapshot(
    connection: Connection, *, role: str | None, setting: str, columns: Iterable[str]
) -> Snapshot:
    """Return what the catalogs say about a role, the current user unless given.

    Args:
        connection: with an empty search path.
        role: to ask about.
        setting: that holds the tenant.
        columns: names of tenant columns.

    Raises:
        AppConfigError: there is no such role.
    """
    server = connection.execute(text(_SERVER)).one()
    name = role or server.current_user
    reader = _Reader(connection, name, setting, sorted(set(columns)))
    roles = reader.rows(_ROLE)
    if not roles:
        raise AppConfigError(
            f"there is no role {name!r} in this server; name the one that the application "
            "connects as"
        )
    version = server.version
    reachable = _REACHABLE.format(
        set_option="SET" if version >= 160000 else "MEMBER",
        parameters=_PARAMETERS if version >= 150000 else "ARRAY[]::text[]",
    )
    publications = _PUBLICATIONS.format(filter="t.rowfilter" if version >= 150000 else "NULL::text")
    reached = reader.rows(reachable)
    # Of a superuser everything is said already.
    others = [] if roles[0].rolsuper else [one.rolname for one in reached if not one.inherited]
    default_schema = connection.dialect.default_schema_name
    callers = [name, *others]
    schemas = reader.rows(_SCHEMAS, callers=callers)
    functions = reader.rows(_FUNCTIONS, callers=callers)
    definers = {one.owner for one in functions if one.prosecdef} - set(server.exempt)
    protection = read_protection(connection, schemas=[one.nspname for one in schemas])
    return Snapshot(
        database=server.database,
        version=version,
        session_user=server.session_user,
        current_user=server.current_user,
        exempt=frozenset(server.exempt),
        login_roles=frozenset(server.login_roles),
        role=roles[0],
        reachable={one.rolname: one for one in reached},
        protection=protection,
        default_schema=default_schema,
        relations=_relations(
            reader, version, {one.key: one for one in protection.tables}, default_schema, others
        ),
        unique_keys=reader.rows(_UNIQUE_KEYS),
        foreign_keys=reader.rows(_FOREIGN_KEYS),
        policy_functions=reader.rows(_POLICY_FUNCTIONS),
        functions=functions,
        domains=reader.rows(_DOMAINS, owners=[one.rolname for one in reached]),
        definers={one.rolname: one for one in reader.rows(_DEFINERS, owners=sorted(definers))},
        triggers=reader.rows(_TRIGGERS),
        rules=reader.rows(_RULES),
        settings=reader.rows(_SETTINGS),
        default_privileges=reader.rows(_DEFAULT_PRIVILEGES),
        publications=reader.rows(publications),
        schemas=schemas,
    )


def _relations(
    reader: _Reader,
    version: int,
    tables: Mapping[RelationName, TableProtection],
    default_schema: str | None,
    others: Sequence[str],
) -> dict[int, Relation]:
    columns: defaultdict[int, dict[int, Column]] = defaultdict(dict)
    for row in reader.rows(_COLUMNS):
        columns[row.attrelid][row.attnum] = Column(
            row.attname, row.type, row.attnotnull, row.default, row.identity, row.base
        )
    privileges = [*_PRIVILEGES, "MAINTAIN"] if version >= 170000 else _PRIVILEGES
    found: dict[int, Relation] = {}
    for row in reader.rows(_RELATIONS, privileges=privileges, others=others):
        schema = None if row.nspname == default_schema else row.nspname
        protection = tables.get((schema, row.relname))
        found[row.oid] = Relation(
            oid=row.oid,
            schema=row.nspname,
            name=row.relname,
            sql=row.sql,
            kind=row.relkind,
            owner=row.owner,
            owner_exempt=row.owner_exempt,
            enabled=row.relrowsecurity,
            forced=row.relforcerowsecurity,
            privileges=frozenset(row.privileges),
            reached=frozenset(row.reached),
            public=frozenset(row.public),
            columns=columns[row.oid],
            policies=() if protection is None else protection.policies,
            indexed=() if protection is None else protection.indexed,
            parents=tuple(row.parents),
        )
    return found
