"""What it takes to write a row: columns with their types, and the conditions on them."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection

# Domains over domains end at a type that is none.
_COLUMNS = text(
    """
    WITH RECURSIVE base AS (
        SELECT t.oid AS domain, t.typbasetype AS type, t.typtypmod AS mod, t.typnotnull AS not_null
        FROM pg_type AS t WHERE t.typtype = 'd'
        UNION ALL
        SELECT base.domain, t.typbasetype, t.typtypmod, base.not_null OR t.typnotnull
        FROM base JOIN pg_type AS t ON t.oid = base.type AND t.typtype = 'd'
    )
    SELECT a.attrelid, a.attname, quote_ident(a.attname) AS sql,
           format_type(COALESCE(base.type, a.atttypid),
                       CASE WHEN base.type IS NULL THEN a.atttypmod ELSE base.mod END) AS type,
           t.typname, t.typcategory::text AS category, t.typtype::text AS kind,
           a.attnotnull OR COALESCE(base.not_null, false) AS not_null,
           a.attidentity::text AS identity,
           CASE WHEN a.attgenerated <> '' THEN pg_get_expr(f.adbin, f.adrelid) END AS formula,
           a.atthasdef AS has_default,
           t.typname = 'citext' OR NOT COALESCE(l.collisdeterministic, true) AS lax,
           has_column_privilege(:role, a.attrelid, a.attnum, 'SELECT') AS readable,
           has_column_privilege(:role, a.attrelid, a.attnum, 'INSERT') AND is_written AS insertable,
           has_column_privilege(:role, a.attrelid, a.attnum, 'UPDATE') AND is_written AS updatable,
           ARRAY(SELECT e.enumlabel::text FROM pg_enum AS e WHERE e.enumtypid = t.oid
                 ORDER BY e.enumsortorder) AS labels
    FROM pg_attribute AS a
    LEFT JOIN base ON base.domain = a.atttypid
        AND NOT EXISTS (SELECT FROM pg_type AS d WHERE d.oid = base.type AND d.typtype = 'd')
    JOIN pg_type AS t ON t.oid = COALESCE(base.type, a.atttypid)
    JOIN pg_class AS c ON c.oid = a.attrelid
    LEFT JOIN pg_collation AS l ON l.oid = a.attcollation
    LEFT JOIN pg_attrdef AS f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
    -- A view with triggers or rules of its own takes what it likes.
    CROSS JOIN LATERAL (SELECT c.relkind <> 'v' OR c.relhastriggers
        OR EXISTS (SELECT FROM pg_rewrite AS w WHERE w.ev_class = c.oid AND w.ev_type <> '1')
        OR pg_column_is_updatable(c.oid, a.attnum, false) AS is_written) AS writing
    WHERE a.attrelid = ANY(CAST(:oids AS oid[])) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attrelid, a.attnum
    """
)
# A domain's condition is about VALUE, a table's about its columns.
_CHECKS = text(
    """
    SELECT k.conrelid AS oid, pg_get_expr(k.conbin, k.conrelid) AS condition, NULL AS value,
           ARRAY(SELECT a.attname::text FROM pg_attribute AS a
                 WHERE a.attrelid = k.conrelid AND a.attnum = ANY(k.conkey)) AS columns
    FROM pg_constraint AS k
    WHERE k.contype = 'c' AND k.conrelid = ANY(CAST(:oids AS oid[])) AND k.conkey IS NOT NULL
    UNION ALL
    SELECT a.attrelid, pg_get_expr(k.conbin, 0), quote_ident(a.attname), ARRAY[a.attname::text]
    FROM pg_attribute AS a
    JOIN pg_constraint AS k ON k.contypid = a.atttypid AND k.contype = 'c'
    WHERE a.attrelid = ANY(CAST(:oids AS oid[])) AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT c.oid, pg_get_partition_constraintdef(c.oid), NULL,
           ARRAY(SELECT a.attname::text FROM pg_attribute AS a
                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                 AND strpos(pg_get_partition_constraintdef(c.oid), quote_ident(a.attname)) > 0)
    FROM pg_class AS c
    WHERE c.oid = ANY(CAST(:oids AS oid[])) AND c.relispartition
      AND pg_get_partition_constraintdef(c.oid) IS NOT NULL
    """
)
_PARTITIONS = text(
    "SELECT c.oid FROM pg_class AS c WHERE c.oid = ANY(CAST(:oids AS oid[])) AND c.relispartition"
)
# Of a key all of whose columns are plain, and which holds for every row.
_KEYS = text(
    """
    SELECT i.indrelid AS oid,
           ARRAY(SELECT a.attname::text
                 FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
                 JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                 WHERE k.place <= i.indnkeyatts ORDER BY k.place) AS columns
    FROM pg_index AS i
    WHERE i.indrelid = ANY(CAST(:oids AS oid[])) AND i.indisunique AND i.indimmediate
      AND NOT i.indisexclusion
      AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
    ORDER BY i.indrelid, i.indisprimary DESC, i.indexrelid
    """
)


_QUOTED = re.compile(r"""(?P<name>"(?:[^"]|"")*")|'(?:[^']|'')*'""")


@dataclass(frozen=True)
class Slot:
    """A column that a row has to fill.

    Args:
        name: of the column.
        sql: as it stands in SQL.
        type: as PostgreSQL writes it; of a domain, what it is made of.
        base: that type's name alone.
        category: ``typcategory``: N for numbers, S for strings, and so on.
        kind: ``typtype``: b, c, e, r or m.
        not_null: NULL is refused.
        identity: ``attidentity``: a for ALWAYS, d for BY DEFAULT.
        formula: that it is computed by from other columns, in SQL; None of others.
        has_default: may be left out.
        readable: the role may SELECT it.
        insertable: the role may INSERT it.
        updatable: the role may UPDATE it.
        labels: of an enumeration.
        lax: values that are not the same compare as equal, such as those that differ in case.
    """

    name: str
    sql: str
    type: str
    base: str
    category: str
    kind: str
    not_null: bool
    identity: str
    formula: str | None
    has_default: bool
    readable: bool
    insertable: bool
    updatable: bool
    labels: tuple[str, ...]
    lax: bool

    @property
    def generated(self) -> bool:
        """Whether it is computed from other columns."""
        return self.formula is not None


@dataclass(frozen=True)
class Condition:
    """A condition that rows of a table fulfil, and the columns that it is about."""

    sql: str
    columns: frozenset[str]


@dataclass(frozen=True)
class Shape:
    """Columns of a relation by name, conditions on its rows, and its plain unique keys."""

    slots: Mapping[str, Slot]
    conditions: tuple[Condition, ...] = ()
    keys: tuple[tuple[str, ...], ...] = ()
    is_partition: bool = False

    def named_in(self, sql: str) -> frozenset[str]:
        """Return the columns that may stand in a condition."""
        bare = _QUOTED.sub(lambda found: found["name"] or "''", sql)
        return frozenset(
            name
            for name, slot in self.slots.items()
            if re.search(rf'(?<![\w"]){re.escape(slot.sql)}(?![\w"])', bare)
        )


def read_shapes(connection: Connection, oids: Collection[int], *, role: str) -> dict[int, Shape]:
    """Return the shapes of relations, in four queries."""
    parameters = {"oids": sorted(oids)}
    slots: defaultdict[int, dict[str, Slot]] = defaultdict(dict)
    for row in connection.execute(_COLUMNS, {**parameters, "role": role}):
        slots[row.attrelid][row.attname] = Slot(
            name=row.attname,
            sql=row.sql,
            type=row.type,
            base=row.typname,
            category=row.category,
            kind=row.kind,
            not_null=row.not_null,
            identity=row.identity,
            formula=row.formula,
            has_default=row.has_default,
            readable=row.readable,
            insertable=row.insertable,
            updatable=row.updatable,
            labels=tuple(row.labels),
            lax=row.lax,
        )
    conditions: defaultdict[int, list[Condition]] = defaultdict(list)
    for row in connection.execute(_CHECKS, parameters):
        sql = row.condition if row.value is None else _about(row.condition, row.value)
        conditions[row.oid].append(Condition(sql, frozenset(row.columns)))
    keys: defaultdict[int, list[tuple[str, ...]]] = defaultdict(list)
    for row in connection.execute(_KEYS, parameters):
        keys[row.oid].append(tuple(row.columns))
    partitions = set(connection.execute(_PARTITIONS, parameters).scalars())
    return {
        oid: Shape(slots[oid], tuple(conditions[oid]), tuple(keys[oid]), oid in partitions)
        for oid in oids
    }


def _about(condition: str, column: str) -> str:
    """Return a domain's condition as one on a column; VALUE in a literal stays what it is."""
    parts = condition.split("'")
    parts[::2] = [re.sub(r"\bVALUE\b", lambda _: column, part) for part in parts[::2]]
    return "'".join(parts)
