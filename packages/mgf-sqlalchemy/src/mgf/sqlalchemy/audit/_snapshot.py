"""The facts that checks are made on, as the catalogs tell them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Row

    from mgf.sqlalchemy.rls import Policy, Protection, ViewProtection
    from mgf.sqlalchemy.rls._names import RelationName

Kind = Literal["tenant", "child", "other"]


@dataclass(frozen=True)
class Column:
    """A column: its type as PostgreSQL writes it, that of a domain, and its default as SQL."""

    name: str
    type: str
    not_null: bool
    default: str | None
    identity: bool
    base: str | None = None


@dataclass(frozen=True, eq=False)
class Relation:
    """A table, partition, foreign table or view.

    Args:
        oid: of the relation.
        schema: of the relation.
        name: of the relation.
        sql: both as they stand in SQL.
        kind: ``relkind``: r, p, f, v or m.
        owner: its owner's name.
        owner_exempt: no policy holds the owner, FORCE or not.
        enabled: ENABLE ROW LEVEL SECURITY.
        forced: FORCE ROW LEVEL SECURITY.
        privileges: of the audited role, by grant, by membership or by PUBLIC.
        public: privileges of PUBLIC.
        columns: by number, those in keys and those that may say whose a row is.
        reached: privileges of roles that it can become, and whose rights it has not before.
        policies: on the relation.
        indexed: columns that lead an index.
        parents: oids of what it is a partition or child of.
    """

    oid: int
    schema: str
    name: str
    sql: str
    kind: str
    owner: str
    owner_exempt: bool
    enabled: bool
    forced: bool
    privileges: frozenset[str]
    public: frozenset[str]
    columns: Mapping[int, Column]
    policies: tuple[Policy, ...] = ()
    indexed: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()
    reached: frozenset[str] = frozenset()

    @property
    def within_reach(self) -> frozenset[str]:
        """What the role may do, also after SET ROLE."""
        return self.privileges | self.reached

    @property
    def label(self) -> str:
        """Schema and name, as a report has them."""
        return f"{self.schema}.{self.name}"

    def column(self, name: str) -> Column | None:
        """Return a column by its name."""
        return next((one for one in self.columns.values() if one.name == name), None)


@dataclass(frozen=True)
class Snapshot:
    """What the catalogs say, about one role and one database.

    Rows are as `_catalog` asks for them; `exempt` are the roles that no policy holds,
    `login_roles` those that the connection's login is or can become, `definers` those owners of
    SECURITY DEFINER functions that policies hold, `domains` those that the role owns.
    """

    database: str
    version: int
    session_user: str
    current_user: str
    exempt: frozenset[str]
    login_roles: frozenset[str]
    role: Row[Any]
    reachable: Mapping[str, Row[Any]]
    protection: Protection
    default_schema: str | None
    relations: Mapping[int, Relation]
    unique_keys: tuple[Row[Any], ...]
    foreign_keys: tuple[Row[Any], ...]
    policy_functions: tuple[Row[Any], ...]
    functions: tuple[Row[Any], ...]
    domains: tuple[Row[Any], ...]
    definers: Mapping[str, Row[Any]]
    triggers: tuple[Row[Any], ...]
    rules: tuple[Row[Any], ...]
    settings: tuple[Row[Any], ...]
    default_privileges: tuple[Row[Any], ...]
    publications: tuple[Row[Any], ...]
    schemas: tuple[Row[Any], ...]

    def key(self, relation: Relation) -> RelationName:
        """Return schema and name as `mgf.sqlalchemy.rls` has them."""
        schema = None if relation.schema == self.default_schema else relation.schema
        return schema, relation.name

    def label(self, name: RelationName) -> str:
        """Return a name of `mgf.sqlalchemy.rls` as a report has it."""
        return f"{name[0] or self.default_schema or 'public'}.{name[1]}"

    @cached_property
    def by_key(self) -> Mapping[RelationName, Relation]:
        """The relations by schema and name."""
        return {self.key(one): one for one in self.relations.values()}

    @cached_property
    def views(self) -> Mapping[RelationName, ViewProtection]:
        """The views by schema and name."""
        return {one.key: one for one in self.protection.views}


@dataclass(frozen=True)
class Subject:
    """A snapshot, and what is to be held there.

    Args:
        snapshot: of the catalogs.
        setting: that holds the tenant.
        tenant_column: the usual name of the column that says whose a row is.
        tenants: the tenant column of each relation that has tenants' rows, None for a child
            table; partitions and children are among them.
        canonical: for each relation, what its predicates may be.
        declared: names of relations that the metadata has; None where no metadata was given.
        recorded: predicates were not printed by this server, and those of the metadata could
            not be compared.
        expected: policies that the metadata declares, by relation.
    """

    snapshot: Snapshot
    setting: str
    tenant_column: str
    tenants: Mapping[int, str | None]
    canonical: Mapping[int, frozenset[str]]
    declared: frozenset[RelationName] | None = None
    recorded: bool = False
    expected: Mapping[int, tuple[Policy, ...]] = field(
        default_factory=dict[int, "tuple[Policy, ...]"]
    )

    @cached_property
    def relations(self) -> tuple[Relation, ...]:
        """The relations that have tenants' rows."""
        return tuple(self.snapshot.relations[oid] for oid in self.tenants)

    def is_partition(self, relation: Relation) -> bool:
        """Say whether a relation is a partition or child of another one with tenants' rows."""
        return any(parent in self.tenants for parent in relation.parents)

    def is_inherited(self, relation: Relation) -> bool:
        """Say whether a table without a tenant column shows the rows of tables that inherit it."""
        return (
            relation.kind == "r"
            and self.tenants[relation.oid] is None
            and any(relation.oid in one.parents for one in self.relations)
        )

    def applies(self, policy: Policy) -> bool:
        """Say whether a policy is for the role, or for one that it can become."""
        return any(to == "PUBLIC" or to in self.snapshot.reachable for to in policy.to)
