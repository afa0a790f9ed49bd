"""The policies of a table, from what it is declared to be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls._columns import tenant_column
from mgf.sqlalchemy.rls._declaration import ChildTable, SharedRows, TenantTable, declaration_of
from mgf.sqlalchemy.rls._keys import keys_to_parents
from mgf.sqlalchemy.rls._names import PUBLIC
from mgf.sqlalchemy.rls._predicates import quote_column, quote_relation, tenant_predicate
from mgf.sqlalchemy.rls._state import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import ForeignKeyConstraint, Table

    from mgf.sqlalchemy.rls._declaration import Rule
    from mgf.sqlalchemy.rls._names import RelationName

# The policy that lets the application's role in, and the one that no other policy can open: a
# row has to pass one permissive and every restrictive policy.
ISOLATION = "tenant_isolation"
FLOOR = "tenant_floor"


@dataclass(frozen=True)
class PolicyWriter:
    """Writes the policies of the tables of one metadata.

    Args:
        role: the application's.
        subselect: as for `tenant_predicate`.
        place: says what a table is called in the database.
    """

    role: str
    subselect: bool
    place: Callable[[Table], RelationName]

    def policies(
        self,
        table: Table,
        declaration: TenantTable | ChildTable,
        own: RelationName,
        rules: Iterable[Rule],
    ) -> tuple[Policy, ...]:
        """Return a table's policies, sorted by their names.

        Args:
            table: any table of the metadata.
            declaration: what it is declared to be.
            own: what it is called; a partition has a name of its own, and the same policies.
            rules: what was declared beside.

        Raises:
            AppConfigError: two policies of one name, a policy without a predicate, or no way
                from a child table to its tenant.
        """
        predicate = self._predicate(table, declaration, own)
        schema, name = own
        isolation = Policy(
            ISOLATION, name, schema=schema, to=self.role, using=predicate, with_check=predicate
        )
        policies = [isolation, *_floor(isolation, predicate, rules)]
        policies += [replace(self._as_policy(rule), table=name, schema=schema) for rule in rules]
        _check(table, policies)
        return tuple(sorted(policies, key=lambda policy: policy.name))

    def _as_policy(self, rule: Rule) -> Policy:
        if isinstance(rule, Policy):
            return rule
        return Policy(
            rule.name, rule.table, for_="SELECT", to=rule.to or self.role, using=rule.using
        )

    def _predicate(
        self, table: Table, declaration: TenantTable | ChildTable, own: RelationName
    ) -> str:
        if isinstance(declaration, ChildTable):
            keys = keys_to_parents(table, declaration)
            return " AND ".join(self._has_parent(key, own, (table,)) for key in keys)
        column = tenant_column(table, declaration)
        return tenant_predicate(column.name, subselect=self.subselect)

    def _has_parent(
        self, key: ForeignKeyConstraint, own: RelationName, below: tuple[Table, ...]
    ) -> str:
        """Return the SQL that is true for rows whose parent belongs to the tenant in force.

        It says itself whose the parent is, beside the parent's own policies: rows of the parent
        that are shared for reading must not make rows of the child writable.
        """
        parent = key.referred_table
        where = self.place(parent)
        if where[1] == own[1]:
            raise AppConfigError(
                f"child_table {below[-1].fullname!r} and its parent {parent.fullname!r} have the "
                "same name, so that no policy can tell them apart; give it a tenant column"
            )
        # Always with the table's name: alone, it could be a column of the parent in the database
        # that no model knows. A policy's own table has no schema there.
        child = own if len(below) > 1 else (None, own[1])
        conditions = [
            f"{quote_column(one.column.name, where)} = {quote_column(one.parent.name, child)}"
            for one in key.elements
        ]
        conditions += self._conditions(parent, where, below)
        return f"EXISTS (SELECT FROM {quote_relation(where)} WHERE {' AND '.join(conditions)})"

    def _conditions(
        self, table: Table, where: RelationName, below: tuple[Table, ...]
    ) -> Iterator[str]:
        """Yield what makes a parent's row the tenant's own, each column named with its table."""
        declaration = declaration_of(table)
        if isinstance(declaration, TenantTable):
            column = tenant_column(table, declaration)
            yield tenant_predicate(column.name, of=where, subselect=self.subselect)
        elif table in below:
            raise AppConfigError(
                f"child_table {table.fullname!r} is its own ancestor; give a tenant column to it "
                "or to one of its parents"
            )
        elif isinstance(declaration, ChildTable):
            for key in keys_to_parents(table, declaration):
                yield self._has_parent(key, where, (*below, table))


def _floor(isolation: Policy, predicate: str, rules: Iterable[Rule]) -> Iterator[Policy]:
    """Yield the restrictive twin of the permissive policy.

    Where rows are shared it is one policy for each command, since SELECT's alone is wider.
    """
    floor = replace(isolation, name=FLOOR, to=(PUBLIC,), restrictive=True)
    shared = [f"({rule.using})" for rule in rules if isinstance(rule, SharedRows)]
    if not shared:
        yield floor
        return
    wider = " OR ".join([f"({predicate})", *shared])
    yield replace(floor, name=f"{FLOOR}_select", for_="SELECT", using=wider, with_check=None)
    yield replace(floor, name=f"{FLOOR}_insert", for_="INSERT", using=None)
    yield replace(floor, name=f"{FLOOR}_update", for_="UPDATE")
    yield replace(floor, name=f"{FLOOR}_delete", for_="DELETE", with_check=None)


def _check(table: Table, policies: list[Policy]) -> None:
    name, count = Counter(policy.name for policy in policies).most_common(1)[0]
    if count > 1:
        raise AppConfigError(
            f"table {table.fullname!r} gets {count} policies of the name {name!r}; rename yours"
        )
    for policy in policies:
        if policy.using is None and policy.with_check is None:
            raise AppConfigError(
                f"policy {policy.name!r} of table {table.fullname!r} has no predicate, so it "
                "lets nothing through; give it 'using' or 'with_check'"
            )
