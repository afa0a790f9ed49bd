"""From a metadata to the protection that it declares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls._columns import (
    ensure_led_index,
    named_sequence,
    owns_sequence,
    tenant_column,
)
from mgf.sqlalchemy.rls._declaration import (
    INFO_KEY,
    SharedTable,
    TenantTable,
    declaration_of,
    find_column,
)
from mgf.sqlalchemy.rls._names import PUBLIC, relation_name
from mgf.sqlalchemy.rls._policies import PolicyWriter
from mgf.sqlalchemy.rls._state import Grant, Policy, TableProtection, ViewProtection
from mgf.sqlalchemy.rls._views import tables_of, views_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from sqlalchemy import MetaData, Table

    from mgf.sqlalchemy.rls._declaration import Declaration, Rule
    from mgf.sqlalchemy.rls._names import RelationName
    from mgf.sqlalchemy.rls._views import View

_READ = ("SELECT",)
_ON_COLUMNS = ("SELECT", "INSERT", "UPDATE", "REFERENCES")
_READ_AND_WRITE = ("SELECT", "INSERT", "UPDATE", "DELETE")


@dataclass(frozen=True)
class Settings:
    """What `protect_metadata` was told."""

    role: str
    subselect: bool
    rules: tuple[Rule, ...]
    grants: tuple[Grant, ...]


def settings_of(metadata: MetaData) -> Settings:
    """Return what `protect_metadata` was told about a metadata.

    Raises:
        AppConfigError: it was not called.
    """
    settings: Settings | None = metadata.info.get(INFO_KEY)
    if settings is None:
        raise AppConfigError(
            "this metadata is not protected; call protect_metadata(metadata, role=...) once "
            "its tables are defined"
        )
    return settings


class Plan:
    """What the tables of a metadata are declared to be, and the protection that follows.

    Args:
        metadata: one that is protected.
        schemas: what the connection calls its schemas (``schema_translate_map``).

    Raises:
        AppConfigError: something is not declared, or cannot be as it is declared.
    """

    def __init__(
        self, metadata: MetaData, schemas: Mapping[str | None, str | None] | None = None
    ) -> None:
        self.settings = settings = settings_of(metadata)
        self._metadata = metadata
        self._schemas = schemas or {}
        self._declarations = read_declarations(metadata)
        self._tables = {(table.schema, table.name): table for table in self._declarations}
        self._writer = PolicyWriter(settings.role, settings.subselect, self.place)
        for thing in (*settings.rules, *settings.grants):
            self._check_target(thing)
        for table in self._declarations:
            self.protection(table)
        for table, declaration in self._declarations.items():
            if isinstance(declaration, TenantTable):
                ensure_led_index(table, tenant_column(table, declaration))

    @property
    def tables(self) -> Collection[Table]:
        """The tables of the metadata."""
        return self._declarations

    def is_protected(self, table: Table) -> bool:
        """Say whether a table gets row-level security."""
        return not isinstance(self._declarations[table], SharedTable)

    @property
    def roles(self) -> set[str]:
        """Every role that something is declared for, PUBLIC aside."""
        named = {self.settings.role, *(grant.to for grant in self.settings.grants)}
        for table in self.tables:
            named.update(*(policy.to for policy in self.protection(table).policies))
        return named - {PUBLIC}

    def place(self, table: Table) -> RelationName:
        """Return the schema and name that the database knows a table by."""
        return self._schema(table.schema), str(table.name)

    def protection(self, table: Table) -> TableProtection:
        """Return the protection of a table of the metadata."""
        declaration = self._declarations[table]
        schema, name = own = self.place(table)
        is_protected = self.is_protected(table)
        indexed: tuple[str, ...] = ()
        if isinstance(declaration, TenantTable):
            indexed = (tenant_column(table, declaration).name,)
        return TableProtection(
            name,
            schema=schema,
            enabled=is_protected,
            forced=is_protected,
            policies=self._policies(table, own),
            grants=tuple(_merge(self._grants(table, declaration))),
            indexed=indexed,
        )

    def partition(self, table: Table, own: RelationName) -> TableProtection:
        """Return the protection of a partition of a table.

        The same policies, and no privileges: rows are reached by way of the table.
        """
        schema, name = own
        return replace(
            self.protection(table),
            name=name,
            schema=schema,
            policies=self._policies(table, own),
            grants=(Grant((), name, schema=schema, to=self.settings.role),),
            parents=(self.place(table),),
        )

    @property
    def views(self) -> Iterator[ViewProtection]:
        """Yield the protection of each view of the metadata."""
        return map(self.view, views_of(self._metadata))

    def view(self, view: View) -> ViewProtection:
        """Return the protection of a view of the metadata."""
        schema, name = self._schema(view.schema), view.name
        roles = {PUBLIC: (), self.settings.role: _READ}
        return ViewProtection(
            name,
            schema=schema,
            reads=tuple((self._schema(one.schema), one.name) for one in tables_of(view)),
            grants=tuple(Grant(may, name, schema=schema, to=to) for to, may in roles.items()),
        )

    def grants(
        self, tables: Iterable[Table] | None = None, *, default_schema: str | None = None
    ) -> tuple[Grant, ...]:
        """Return what is granted on schemas, and on sequences that models name.

        Args:
            tables: those it is needed for; all unless given.
            default_schema: what the schema None is; unless it is known nothing is granted on it.
        """
        role = self.settings.role
        concerned = list(self.tables if tables is None else tables)
        schemas = {self._schema(table.schema) for table in concerned}
        named = [grant for grant in self.settings.grants if not _is_about_table(grant)]
        for table in concerned:
            for column in table.columns:
                if (sequence := named_sequence(column)) is not None:
                    schema = self._schema(sequence.schema)
                    schemas.add(schema)
                    named.append(
                        Grant("USAGE", sequence.name, schema=schema, kind="SEQUENCE", to=role)
                    )
        named += [
            Grant("USAGE", schema, kind="SCHEMA", to=role)
            for schema in {one or default_schema for one in schemas}
            if schema is not None
        ]
        return tuple(_merge(named))

    def _schema(self, schema: str | None) -> str | None:
        schema = None if schema is None else str(schema)
        return self._schemas.get(schema, schema)

    def _policies(self, table: Table, own: RelationName) -> tuple[Policy, ...]:
        declaration = self._declarations[table]
        rules = [one for one in self.settings.rules if _targets(one, table)]
        if isinstance(declaration, SharedTable):
            for rule in rules:
                raise AppConfigError(
                    f"policy {rule.name!r} is for table {table.fullname!r}, which is a "
                    "shared_table without row-level security; declare it to be a tenant_table"
                )
            return ()
        for rule in declaration.rules:
            if not _targets(rule, table):
                raise AppConfigError(
                    f"policy {rule.name!r} is declared on table {table.fullname!r}, but says "
                    f"that it is for {(rule.schema, rule.table)!r}; make them the same"
                )
        return self._writer.policies(table, declaration, own, [*declaration.rules, *rules])

    def _grants(self, table: Table, declaration: Declaration) -> Iterator[Grant]:
        role = self.settings.role
        schema, name = self.place(table)
        may_write = not isinstance(declaration, SharedTable) or declaration.writable
        yield Grant(_READ_AND_WRITE if may_write else _READ, name, schema=schema, to=role)
        for column in table.columns:
            if may_write and owns_sequence(column):
                yield Grant("USAGE", name, schema=schema, to=role, column=column.name)
        for grant in self.settings.grants:
            if _is_about_table(grant) and (grant.schema, grant.on) == relation_name(table):
                for one in _by_column(grant, table):
                    yield replace(one, schema=schema)

    def _check_target(self, thing: Rule | Grant) -> None:
        if isinstance(thing, Grant):
            target, what = (thing.schema, thing.on), f"a grant to {thing.to!r}"
            if "ALL" in thing.privileges:
                raise AppConfigError(
                    f"{what} is of ALL on {target!r}, which is for REVOKE; name the privileges"
                )
            if thing.columns and (unfit := {*thing.privileges}.difference(_ON_COLUMNS)):
                raise AppConfigError(
                    f"{what} is of {min(unfit)} on columns {thing.columns!r} of {target!r}, which "
                    f"have {', '.join(_ON_COLUMNS)} alone; grant it on the table"
                )
            if not _is_about_table(thing):
                return
        else:
            target, what = (thing.schema, thing.table), f"policy {thing.name!r}"
        if target not in self._tables:
            raise AppConfigError(
                f"{what} is for table {target!r} (schema, name), which this metadata does not "
                f"have; it has {', '.join(map(repr, self._tables))}"
            )


def read_declarations(metadata: MetaData) -> dict[Table, Declaration]:
    """Return what each table is declared to be.

    Raises:
        AppConfigError: some are not (all of them are listed), or one is a view.
    """
    tables = sorted(metadata.tables.values(), key=lambda table: table.fullname)
    for table in tables:
        if getattr(table, "is_view", False):  # since SQLAlchemy 2.1
            raise AppConfigError(
                f"{table.fullname!r} is a view, which has no row-level security of its own; "
                "declare it with invoker_view() instead"
            )
    found = {table: declaration_of(table) for table in tables}
    declared = {table: one for table, one in found.items() if one is not None}
    if missing := [repr(table.fullname) for table in tables if table not in declared]:
        raise AppConfigError(
            f"{len(missing)} tables say nothing about whose rows they hold: "
            f"{', '.join(missing)}; give each TenantMixin, or declare it with tenant_table(), "
            "child_table(reason=...) or shared_table(reason=...)"
        )
    return declared


def _targets(rule: Rule, table: Table) -> bool:
    return (rule.schema, rule.table) == relation_name(table)


def _is_about_table(grant: Grant) -> bool:
    return grant.kind == "TABLE" or grant.column is not None


def _by_column(grant: Grant, table: Table) -> Iterator[Grant]:
    """Yield a grant on columns as the catalogs have it: one for each, by its name."""
    if not grant.columns:
        yield grant
    for name in grant.columns:
        column = find_column(table, name)
        if column is None:
            raise AppConfigError(
                f"a grant to {grant.to!r} is on column {name!r} of table {table.fullname!r}, "
                f"which has {', '.join(repr(one.name) for one in table.columns)}"
            )
        yield replace(grant, columns=(column.name,))


def _merge(grants: Iterable[Grant]) -> Iterator[Grant]:
    """Yield one grant for each object and role, and another of what it may give to others."""
    merged: dict[Grant, set[str]] = {}
    for one in grants:
        for kind in {one, replace(one, grantable=False)}:
            merged.setdefault(replace(kind, privileges=()), set()).update(one.privileges)
    for one, privileges in merged.items():
        yield replace(one, privileges=tuple(privileges))
