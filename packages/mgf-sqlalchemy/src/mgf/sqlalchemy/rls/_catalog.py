"""What protects the tables that are there, read from PostgreSQL's catalogs."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import bindparam, text

from mgf.sqlalchemy.rls._scratch import EMPTY_SEARCH_PATH, scratch
from mgf.sqlalchemy.rls._state import Grant, Policy, Protection, TableProtection, ViewProtection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Connection, Row, TextClause

    from mgf.sqlalchemy.rls._names import RelationName

_T = TypeVar("_T")


def _query(sql: str) -> TextClause:
    return text(sql).bindparams(bindparam("schemas", expanding=True))


_RELATIONS = _query(
    """
    SELECT n.nspname, c.relname, c.relkind IN ('v', 'm') AS is_view, c.relkind = 'm' AS is_copy,
           c.relrowsecurity, c.relforcerowsecurity, pg_get_userbyid(c.relowner) AS owner,
           COALESCE((
               SELECT bool_or(option_value::boolean) FROM pg_options_to_table(c.reloptions)
               WHERE option_name = 'security_invoker'
           ), false) AS security_invoker
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname IN :schemas AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
    ORDER BY n.nspname, c.relname
    """
)
_PARENTS = _query(
    """
    SELECT n.nspname, c.relname, pn.nspname AS parent_schema, p.relname AS parent
    FROM pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid AND c.relkind IN ('r', 'p', 'f')
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_class AS p ON p.oid = i.inhparent
    JOIN pg_namespace AS pn ON pn.oid = p.relnamespace
    WHERE n.nspname IN :schemas
    """
)
_POLICIES = _query(
    """
    SELECT n.nspname, c.relname, o.polname, NOT o.polpermissive AS restrictive,
           CASE o.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
                         WHEN 'd' THEN 'DELETE' ELSE 'ALL' END AS command,
           ARRAY(SELECT CASE one WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(one) END
                 FROM unnest(o.polroles) AS one)::text[] AS roles,
           pg_get_expr(o.polqual, o.polrelid) AS using,
           pg_get_expr(o.polwithcheck, o.polrelid) AS with_check
    FROM pg_policy AS o
    JOIN pg_class AS c ON c.oid = o.polrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname IN :schemas
    ORDER BY n.nspname, c.relname, o.polname
    """
)
# A sequence that belongs to a column counts as part of the column's table. What may be granted on
# is told a second time, as that.
_GRANTS = _query(
    """
    SELECT n.nspname, c.relname, s.is_sequence, a.attname, given.on_column,
           CASE one.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(one.grantee) END AS role,
           option.grantable, array_agg(DISTINCT one.privilege_type::text) AS privileges
    FROM pg_class AS o
    CROSS JOIN LATERAL (
        SELECT o.relacl AS acl, CAST(NULL AS name) AS on_column
        UNION ALL
        SELECT attacl, attname FROM pg_attribute WHERE attrelid = o.oid AND NOT attisdropped
    ) AS given
    CROSS JOIN aclexplode(given.acl) AS one
    JOIN (VALUES (false), (true)) AS option (grantable) ON one.is_grantable OR NOT grantable
    CROSS JOIN LATERAL (SELECT o.relkind = 'S' AS is_sequence) AS s
    LEFT JOIN pg_depend AS d ON is_sequence AND d.objid = o.oid AND d.refobjsubid > 0
         AND d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
         AND d.deptype IN ('a', 'i')
    JOIN pg_class AS c ON c.oid = COALESCE(d.refobjid, o.oid)
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
    WHERE n.nspname IN :schemas AND one.grantee <> o.relowner
      AND o.relkind IN ('r', 'p', 'f', 'v', 'm', 'S')
    GROUP BY n.nspname, c.relname, s.is_sequence, a.attname, given.on_column, role,
             option.grantable
    ORDER BY s.is_sequence, n.nspname, c.relname, a.attname, given.on_column, role,
             option.grantable
    """
)
_SCHEMA_GRANTS = _query(
    """
    SELECT n.nspname,
           CASE one.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(one.grantee) END AS role,
           option.grantable, array_agg(DISTINCT one.privilege_type::text) AS privileges
    FROM pg_namespace AS n CROSS JOIN aclexplode(n.nspacl) AS one
    JOIN (VALUES (false), (true)) AS option (grantable) ON one.is_grantable OR NOT grantable
    WHERE n.nspname IN :schemas AND one.grantee <> n.nspowner
    GROUP BY n.nspname, role, option.grantable
    ORDER BY n.nspname, role, option.grantable
    """
)
_INDEXES = _query(
    """
    SELECT DISTINCT n.nspname, c.relname, a.attname
    FROM pg_index AS i
    JOIN pg_class AS c ON c.oid = i.indrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_class AS x ON x.oid = i.indexrelid
    JOIN pg_am AS m ON m.oid = x.relam
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
    WHERE n.nspname IN :schemas AND m.amname = 'btree' AND i.indisvalid AND i.indpred IS NULL
    ORDER BY n.nspname, c.relname, a.attname
    """
)
_VIEWS_READ = _query(
    """
    SELECT DISTINCT n.nspname, c.relname, rn.nspname AS read_schema, r.relname AS read
    FROM pg_rewrite AS w
    JOIN pg_class AS c ON c.oid = w.ev_class AND c.relkind IN ('v', 'm')
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
         AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> c.oid
    JOIN pg_class AS r ON r.oid = d.refobjid AND r.relkind IN ('r', 'p', 'f', 'v', 'm')
    JOIN pg_namespace AS rn ON rn.oid = r.relnamespace
    WHERE n.nspname IN :schemas
    ORDER BY n.nspname, c.relname, read_schema, read
    """
)


def read_protection(
    connection: Connection, *, schemas: Iterable[str | None] = (None,)
) -> Protection:
    """Return what protects the tables and views of some schemas.

    Takes a handful of queries, however many tables there are, and any role may ask. Of async
    code: ``await connection.run_sync(read_protection)``.

    Args:
        connection: to PostgreSQL, not in AUTOCOMMIT; a transaction that is open stays open.
        schemas: names of schemas; None is the connection's default schema, and what is found
            there has the schema None, as in SQLAlchemy.

    Raises:
        AppConfigError: the database is not PostgreSQL, or the connection is in AUTOCOMMIT.
    """
    with scratch(connection):
        connection.execute(EMPTY_SEARCH_PATH)
        return Reader(connection, schemas).read()


class Reader:
    """Reads some schemas; predicates are printed for the search path in force."""

    def __init__(self, connection: Connection, schemas: Iterable[str | None]) -> None:
        self._connection = connection
        self._default = connection.dialect.default_schema_name
        self._schemas = sorted({one or self._default or "public" for one in schemas})
        self._policies = self._group(_POLICIES, self._policy)
        self._grants = self._group(_GRANTS, self._grant)
        self._parents = self._group(_PARENTS, lambda row: self._name(row.parent_schema, row.parent))
        self._indexed = self._group(_INDEXES, lambda row: str(row.attname))
        self._reads = self._group(_VIEWS_READ, lambda row: self._name(row.read_schema, row.read))

    def read(self) -> Protection:
        """Return what is there."""
        relations = self._rows(_RELATIONS)
        loose = [
            grant
            for grants in self._grants.values()
            for grant in grants
            if grant.kind == "SEQUENCE" and grant.column is None
        ]
        return Protection(
            tables=tuple(self._table(row) for row in relations if not row.is_view),
            views=tuple(self._view(row) for row in relations if row.is_view),
            grants=(*loose, *(self._schema_grant(row) for row in self._rows(_SCHEMA_GRANTS))),
        )

    def _table(self, row: Row[Any]) -> TableProtection:
        schema, name = key = self._name(row.nspname, row.relname)
        return TableProtection(
            name,
            schema=schema,
            enabled=row.relrowsecurity,
            forced=row.relforcerowsecurity,
            policies=tuple(self._policies[key]),
            grants=tuple(self._grants[key]),
            indexed=tuple(self._indexed[key]),
            parents=tuple(self._parents[key]),
            owner=row.owner,
        )

    def _view(self, row: Row[Any]) -> ViewProtection:
        schema, name = key = self._name(row.nspname, row.relname)
        return ViewProtection(
            name,
            schema=schema,
            security_invoker=row.security_invoker,
            materialized=row.is_copy,
            reads=tuple(self._reads[key]),
            grants=tuple(self._grants[key]),
        )

    def _policy(self, row: Row[Any]) -> Policy:
        schema, table = self._name(row.nspname, row.relname)
        return Policy(
            row.polname,
            table,
            schema=schema,
            for_=row.command,
            to=row.roles,
            using=row.using,
            with_check=row.with_check,
            restrictive=row.restrictive,
        )

    def _grant(self, row: Row[Any]) -> Grant:
        schema, name = self._name(row.nspname, row.relname)
        return Grant(
            row.privileges,
            name,
            schema=schema,
            to=row.role,
            kind="SEQUENCE" if row.is_sequence else "TABLE",
            column=row.attname,
            columns=() if row.on_column is None else row.on_column,
            grantable=row.grantable,
        )

    def _schema_grant(self, row: Row[Any]) -> Grant:
        return Grant(
            row.privileges, row.nspname, to=row.role, kind="SCHEMA", grantable=row.grantable
        )

    def _name(self, schema: str, name: str) -> RelationName:
        return (None if schema == self._default else schema), name

    def _rows(self, query: TextClause) -> Sequence[Row[Any]]:
        return self._connection.execute(query, {"schemas": self._schemas}).all()

    def _group(
        self, query: TextClause, make: Callable[[Row[Any]], _T]
    ) -> defaultdict[RelationName, list[_T]]:
        groups: defaultdict[RelationName, list[_T]] = defaultdict(list)
        for row in self._rows(query):
            groups[self._name(row.nspname, row.relname)].append(make(row))
        return groups
