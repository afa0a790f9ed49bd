"""Let autogenerate see what protects tables."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from alembic.autogenerate import comparators
from alembic.operations import ops
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Column, MetaData, Table

from mgf.alembic._columns import convert_strings
from mgf.alembic._dependencies import TableKey, hindering_policies, table_key
from mgf.alembic._drops import drop_last
from mgf.alembic._operations import (
    AlterPolicyOp,
    CreatePolicyOp,
    DropPolicyOp,
    ProtectTableOp,
    UnprotectTableOp,
)
from mgf.alembic._partitions import falling_partitions
from mgf.alembic._privileges import AlterRowSecurityOp, GrantPrivilegesOp, RevokePrivilegesOp
from mgf.alembic._view_comparison import ViewComparison, secure_view
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import rls

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence, Set

    from alembic.autogenerate.api import AutogenContext
    from sqlalchemy import Connection

    from mgf.alembic._dependencies import PolicyKey

# Where mgf.sqlalchemy.rls keeps what a table was declared to be, in `Table.info`.
_DECLARATION = "mgf.sqlalchemy.rls"

# The tables that Alembic compares: those that include_name and include_object let through.
_compared: WeakKeyDictionary[AutogenContext, set[TableKey]] = WeakKeyDictionary()


# By the registry that Alembic keeps for extensions which are no plugin, and so whatever
# `autogenerate_plugins` names.
@comparators.dispatch_for("table", qualifier="postgresql")
def _note_table(
    context: AutogenContext,
    _operations: ops.ModifyTableOps,
    schema: str | None,
    name: str,
    _there: Table | None,
    _declared: Table | None,
) -> PriorityDispatchResult:
    _compared.setdefault(context, set()).add((schema, str(name)))
    return PriorityDispatchResult.CONTINUE


@comparators.dispatch_for("schema", qualifier="postgresql", priority=DispatchPriority.FIRST)
def _complete(
    context: AutogenContext, _upgrade: ops.UpgradeOps, _schemas: set[str | None]
) -> PriorityDispatchResult:
    """Give tables that were defined after ``protect_metadata`` their indexes, before any look."""
    for one in _protected(context):
        rls.declared_protection(one)
    return PriorityDispatchResult.CONTINUE


@comparators.dispatch_for("schema", qualifier="postgresql", priority=DispatchPriority.LAST)
def _compare(
    context: AutogenContext, upgrade: ops.UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    metadatas = _protected(context)
    if metadatas and context.connection is not None:
        comparison = Comparison(
            context.connection, metadatas, _compared.get(context, set()), schemas
        )
        upgrade.ops[:] = comparison.extend(upgrade.ops)
        for one in metadatas:
            rls.warn_of_views(context.connection, one)
    return PriorityDispatchResult.CONTINUE


def _protected(context: AutogenContext) -> list[MetaData]:
    given = context.metadata
    listed: Sequence[MetaData] = [given] if isinstance(given, MetaData) else given or []
    return [one for one in listed if rls.is_protected(one)]


@comparators.dispatch_for("schema", priority=DispatchPriority.LAST)
def _leave_out_declarations(
    _context: AutogenContext, upgrade: ops.UpgradeOps, _schemas: set[str | None]
) -> PriorityDispatchResult:
    """Keep out of scripts what models say about their tables, which Alembic would copy there."""
    for one in upgrade.ops:
        if isinstance(one, ops.CreateTableOp):
            one.info.pop(_DECLARATION, None)
    return PriorityDispatchResult.CONTINUE


class Comparison:
    """Compares what is declared with what is there.

    Args:
        connection: to PostgreSQL.
        metadatas: those that are protected.
        compared: schema and name of each table that counts.
        schemas: those that count.
    """

    def __init__(
        self,
        connection: Connection,
        metadatas: Sequence[MetaData],
        compared: Set[TableKey],
        schemas: Collection[str | None],
    ) -> None:
        self._connection = connection
        self._metadatas = metadatas
        self._default = connection.dialect.default_schema_name
        expected = _merge([rls.expected_protection(connection, one) for one in metadatas])
        self._declared = {one.key for one in expected.tables}
        self._expected = replace(
            expected,
            tables=tuple(
                one
                for one in expected.tables
                if one.key in compared or not compared.isdisjoint(one.parents)
            ),
            views=tuple(one for one in expected.views if one.schema in schemas),
            grants=tuple(one for one in expected.grants if self._schema_of(one) in schemas),
        )
        places = {(self._schema_of(one), "") for one in self._expected.grants}
        places.update(one.key for one in self._expected.tables)
        places.update(one.key for one in self._expected.views)
        self._there = rls.read_protection(
            connection, schemas={schema for schema, _ in chain(places, compared)}
        )
        self._views = ViewComparison(connection, metadatas, self._expected.views, self._there)

    def extend(self, operations: Sequence[ops.MigrateOperation]) -> list[ops.MigrateOperation]:
        """Return Alembic's operations with what has to come before and after them."""
        falling = falling_partitions(self._connection, operations)
        left_out = self._children() | falling
        kept = drop_last([one for one in operations if self._key(one) not in left_out])
        self._convert(kept)
        created = [self._key(one) for one in kept if isinstance(one, ops.CreateTableOp)]
        hindering = hindering_policies(self._connection, kept, falling, self._there.tables)
        before: list[ops.MigrateOperation] = list(self._unprotect(kept))
        after: list[ops.MigrateOperation] = []
        before += [DropPolicyOp(one) for one in self._policies(hindering)]
        for one in self._differences(created):
            if (
                one.aspect == "policy"
                and (one.table, (one.there or one.expected).name) in hindering
            ):
                continue
            if one.aspect == "policy" and one.expected is None:
                before.append(DropPolicyOp(one.there))
            elif one.aspect == "grant" and one.expected is None:
                if one.table not in self._views.changed:
                    again = list(self._taken_along(one))
                    # Before a column falls that it is on.
                    before += map(RevokePrivilegesOp, (*again, one.there))
                    after += map(GrantPrivilegesOp, again)
            elif one.aspect == "index":
                after += self._index(one, kept)
            elif one.table not in self._views.changed:
                after += self._repair(one)
        after = [*self._create_again(hindering), *after, *self._views.create()]
        new = [one for one in map(self._written, created) if one is not None]
        protect = [ProtectTableOp(_bare(one)) for one in new]
        return [*self._views.drop(), *before, *kept, *protect, *after]

    def _convert(self, operations: Sequence[ops.MigrateOperation]) -> None:
        tenant_columns = {one.key: one.indexed for one in self._expected.tables}
        for one in operations:
            if isinstance(one, ops.ModifyTableOps):
                convert_strings(one, tenant_columns.get(self._key(one) or (None, ""), ()))

    def _children(self) -> set[TableKey]:
        """Return the partitions, and other children, of tables that are declared.

        No model knows them, so that Alembic would drop them.
        """
        bare = {one.key for one in self._expected.tables if one.parents}
        declared = {one.key for one in self._expected.tables} - bare
        found = set(declared)
        while more := {one.key for one in self._there.tables if found & {*one.parents}} - found:
            found |= more
        return found - declared

    def _differences(self, created: Collection[TableKey | None]) -> Iterator[rls.Difference]:
        old = tuple(one for one in self._expected.tables if one.key not in created)
        return rls.compare_protection(replace(self._expected, tables=old), self._there)

    def _taken_along(self, one: rls.Difference) -> Iterator[rls.Grant]:
        schema, name = one.table or (None, "")
        expected, there = self._expected.table(name, schema), self._there.table(name, schema)
        if expected is not None and there is not None:
            yield from rls.taken_along(one.there, expected.grants, there.grants)

    def _unprotect(self, operations: Sequence[ops.MigrateOperation]) -> Iterator[UnprotectTableOp]:
        for one in operations:
            key = self._key(one)
            if key is not None and isinstance(one, ops.DropTableOp):
                table = self._there.table(key[1], key[0])
                if table and (table.policies or table.enabled or table.forced or table.grants):
                    yield UnprotectTableOp(_bare(table))

    def _policies(self, keys: Collection[PolicyKey]) -> Iterator[rls.Policy]:
        for table in self._there.tables:
            yield from (one for one in table.policies if (table.key, one.name) in keys)

    def _create_again(self, hindering: Collection[PolicyKey]) -> Iterator[CreatePolicyOp]:
        """Yield policies that stood in the way: as declared, or as they were on other tables."""
        concerned = {key for key, _ in hindering}
        declared = {one.key for one in self._expected.tables}
        for key in sorted(concerned & declared, key=repr):
            table = self._written(key)
            for policy in table.policies if table is not None else ():
                if (key, policy.name) in hindering:
                    yield CreatePolicyOp(policy)
        for policy in self._policies(hindering):
            if (policy.schema, policy.table) not in declared:
                yield CreatePolicyOp(policy)

    def _repair(self, one: rls.Difference) -> Iterator[ops.MigrateOperation]:
        if one.aspect == "policy" and one.there is None:
            yield CreatePolicyOp(self._written_policy(one.expected))
        elif one.aspect == "policy":
            yield AlterPolicyOp(one.expected, existing=one.there)
        elif one.aspect == "row security" and one.table is not None:
            yield _row_security(one.table, one.expected, one.there)
        elif one.aspect == "grant":
            yield GrantPrivilegesOp(one.expected)
        elif one.aspect == "view" and one.there is not None:
            yield secure_view(one.there)
        elif one.aspect == "owner":
            raise AppConfigError(
                f"table {one.table!r} (schema, name) belongs to role {one.there!r}, which its "
                "policies are to hold, and which could drop them: ALTER TABLE ... OWNER TO the "
                "role that migrates"
            )
        elif one.aspect == "parent" and one.there not in self._declared:
            raise AppConfigError(
                f"table {one.table!r} (schema, name) is a partition or child of {one.there!r}, "
                "which no protected metadata has: whoever may read that reads these rows, past "
                "their policies; declare it, or ALTER TABLE ... NO INHERIT or DETACH PARTITION"
            )

    def _index(
        self, one: rls.Difference, operations: Sequence[ops.MigrateOperation]
    ) -> Iterator[ops.MigrateOperation]:
        """Yield an index for a partition or child; Alembic sees those of its tables itself."""
        schema, name = key = one.table or (None, "")
        table = next(each for each in self._expected.tables if each.key == key)
        column = str(one.expected)
        if table.parents:
            # Named as Column(index=True) is: where that is too long, it is cut.
            led: Column[Any] = Column(column, index=True)
            copy = Table(name, MetaData(), led, schema=schema)
            yield from map(ops.CreateIndexOp.from_index, copy.indexes)
        elif not any(self._key(each) == key for each in operations):
            raise AppConfigError(
                f"table {key!r} (schema, name) has no valid index led by {column!r}, though "
                "everything declared is there; REINDEX what CREATE INDEX CONCURRENTLY left "
                "invalid, declare an Index in the models, or let include_object pass it"
            )

    def _written_policy(self, policy: rls.Policy) -> rls.Policy:
        table = self._written((policy.schema, policy.table))
        names = {one.name: one for one in table.policies} if table is not None else {}
        return names.get(policy.name, policy)

    def _written(self, key: TableKey | None) -> rls.TableProtection | None:
        """Return what a table is declared to have, in the words of the models if they are known.

        They read better in a migration than what PostgreSQL makes of them.
        """
        if key is None:
            return None
        for metadata in self._metadatas:
            for one in rls.declared_protection(metadata).tables:
                if table_key(one.schema, one.name, self._default) == key:
                    return one
        return next((one for one in self._expected.tables if one.key == key), None)

    def _key(self, operation: ops.MigrateOperation) -> TableKey | None:
        if isinstance(operation, ops.CreateTableOp | ops.DropTableOp | ops.ModifyTableOps):
            return table_key(operation.schema, operation.table_name, self._default)
        return None

    def _schema_of(self, grant: rls.Grant) -> str | None:
        schema = grant.on if grant.kind == "SCHEMA" else grant.schema
        return None if schema == self._default else schema


def _merge(protections: Sequence[rls.Protection]) -> rls.Protection:
    return rls.Protection(
        tables=tuple(chain.from_iterable(one.tables for one in protections)),
        views=tuple(chain.from_iterable(one.views for one in protections)),
        grants=tuple(chain.from_iterable(one.grants for one in protections)),
    )


def _bare(table: rls.TableProtection) -> rls.TableProtection:
    """Leave out what the operations do not need."""
    return replace(table, indexed=(), parents=(), owner=None)


def _row_security(
    key: TableKey, after: tuple[bool, bool], before: tuple[bool, bool]
) -> AlterRowSecurityOp:
    schema, name = key
    return AlterRowSecurityOp(
        name,
        schema=schema,
        enabled=after[0],
        forced=after[1],
        existing_enabled=before[0],
        existing_forced=before[1],
    )
