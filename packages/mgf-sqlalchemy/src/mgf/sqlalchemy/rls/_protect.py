"""Protect tables as they are created."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, MetaData, Table, event

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls._catalog import Reader
from mgf.sqlalchemy.rls._check import refuse_unfit, warn_of_open_views
from mgf.sqlalchemy.rls._ddl import DropPolicy, GrantPrivileges, grant_only, protect_table
from mgf.sqlalchemy.rls._declaration import INFO_KEY
from mgf.sqlalchemy.rls._grants import missing_grants
from mgf.sqlalchemy.rls._names import PUBLIC, check_name
from mgf.sqlalchemy.rls._partitions import partitions
from mgf.sqlalchemy.rls._plan import Plan, Settings, settings_of
from mgf.sqlalchemy.rls._role import check_roles
from mgf.sqlalchemy.rls._schemas import effective_schema, schema_map, shorten_name
from mgf.sqlalchemy.rls._state import Protection
from mgf.sqlalchemy.rls._views import CreateInvokerView, DropInvokerView, missing_views, views_over

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from mgf.sqlalchemy.rls._declaration import Rule
    from mgf.sqlalchemy.rls._state import Grant, TableProtection


def protect_metadata(
    metadata: MetaData,
    *,
    role: str,
    policies: Iterable[Rule] = (),
    grants: Iterable[Grant] = (),
    subselect: bool = True,
) -> None:
    """Protect every table of a metadata by row-level security, whoever creates it.

    Call it where the models are defined, after the last one. From then on ``create_all`` and
    ``Table.create`` emit the protection with the tables, on PostgreSQL; other databases get the
    tables alone. Each tenant table and child table gets, in the transaction that creates it:

    - a permissive policy for the role and a restrictive one for everybody, both with the
      predicate that the row is the tenant's in force, for reading and for writing,
    - ENABLE and FORCE ROW LEVEL SECURITY, on its partitions too,
    - an index that the tenant column leads, where there is none,
    - SELECT, INSERT, UPDATE and DELETE for the role, and what serial columns need; everything
      else that default privileges gave to the role or to PUBLIC is taken back.

    A shared table gets SELECT for the role. A table that is defined after this call is covered
    as well, and has to be declared like the others.

    Args:
        metadata: the models' metadata, ``Base.metadata``.
        role: the role that the application connects as; it has to exist when tables are created,
            be no superuser, have no BYPASSRLS, and be no member of the role that creates them.
            `ensure_app_role` makes it.
        policies: more policies, and what `share_rows` made, for any of the tables.
        grants: more privileges, such as those of a role that only reads.
        subselect: False for policies without the sub-select that asks for the tenant once in a
            statement; Citus needs that.

    Raises:
        AppConfigError: tables say nothing about whose rows they hold (all are listed); a tenant
            column is missing, no uuid or nullable; a child table has no parent; policies clash;
            a policy or grant is for no table of the metadata; the metadata is protected already.
        TypeError: `metadata` is none.
    """
    if not isinstance(metadata, MetaData):
        raise TypeError(
            f"protect_metadata() takes a MetaData such as Base.metadata, not {metadata!r}"
        )
    if INFO_KEY in metadata.info:
        raise AppConfigError(
            "this metadata is protected already; call protect_metadata() once, after the last "
            "model is defined"
        )
    if check_name("the application's role", role).upper() == PUBLIC:
        raise AppConfigError(
            f"role={role!r} is everybody; name the role that the application connects as"
        )
    metadata.info[INFO_KEY] = Settings(role, subselect, tuple(policies), tuple(grants))
    try:
        Plan(metadata)
    except BaseException:
        del metadata.info[INFO_KEY]
        raise


def is_protected(metadata: MetaData) -> bool:
    """Say whether `protect_metadata` was called on a metadata."""
    return INFO_KEY in metadata.info


def declared_role(metadata: MetaData) -> str:
    """Return the role that a metadata is protected for; one that is not raises `AppConfigError`."""
    return settings_of(metadata).role


def declared_protection(metadata: MetaData) -> Protection:
    """Return what a metadata declares, as it is written there.

    Raises:
        AppConfigError: it is not protected, or something is declared that cannot be.
    """
    plan = Plan(metadata)
    return Protection(
        tables=tuple(plan.protection(table) for table in plan.tables),
        views=tuple(plan.views),
        grants=plan.grants(),
    )


def warn_of_views(connection: Connection, metadata: MetaData) -> None:
    """Warn of views that no model declares and that show rows past their tables' policies.

    Creating tables warns of them anyway. Of views that are declared `compare_protection` tells.

    Args:
        connection: to PostgreSQL.
        metadata: one that is protected.

    Warns:
        UnprotectedViewWarning: the application's role may read a view for which its owner's
            rights count, or one that is a copy.
    """
    plan = _plan(metadata, connection)
    default = connection.dialect.default_schema_name
    known = {shorten_name(view.key, default) for view in plan.views}
    warn_of_open_views(connection, plan, known=known)


def protect_partitions(connection: Connection, metadata: MetaData) -> None:
    """Protect the partitions of a metadata's tables that have no protection yet.

    For partitions that are made after their tables. One gets its table's policies, and nobody is
    granted anything on it: rows are reached by way of the table.

    Args:
        connection: as the owner of the partitions.
        metadata: one that is protected.

    Raises:
        AppConfigError: a partition is a foreign table, which cannot be protected, or a
            shared_table.
    """
    plan = _plan(metadata, connection)
    _protect_partitions(connection, plan, plan.tables)


@event.listens_for(MetaData, "before_create")
def _before_all(metadata: MetaData, connection: Connection, **_options: Any) -> None:
    if INFO_KEY in metadata.info:
        _check_before(metadata, connection)


@event.listens_for(MetaData, "after_create")
def _after_all(
    metadata: MetaData, connection: Connection, tables: Collection[Table], **_options: Any
) -> None:
    is_protected = INFO_KEY in metadata.info
    if is_protected:
        _emit(metadata, connection, tables)
    for view in missing_views(metadata, connection):
        schema = effective_schema(connection, view.schema)
        connection.execute(CreateInvokerView(view.name, view.select, schema=schema))
        if is_protected and connection.dialect.name == "postgresql":
            for statement in grant_only(_plan(metadata, connection).view(view).grants):
                connection.execute(statement)
    if is_protected and _is_live(connection):
        warn_of_open_views(connection, _plan(metadata, connection))


@event.listens_for(MetaData, "before_drop")
def _before_drop(
    metadata: MetaData, connection: Connection, tables: Collection[Table], **_options: Any
) -> None:
    for view in views_over(metadata, tables):
        schema = effective_schema(connection, view.schema)
        connection.execute(DropInvokerView(view.name, schema=schema))


# SQLAlchemy's own types tell by this argument too whether a whole metadata is being created: its
# own event follows then. Were it not passed, policies would be created twice, and PostgreSQL
# would refuse.
@event.listens_for(Table, "before_create")
def _before_table(
    table: Table, connection: Connection, *, _is_metadata_operation: bool = False, **_options: Any
) -> None:
    if INFO_KEY in table.metadata.info and not _is_metadata_operation:
        _check_before(table.metadata, connection)


@event.listens_for(Table, "after_create")
def _after_table(
    table: Table, connection: Connection, *, _is_metadata_operation: bool = False, **_options: Any
) -> None:
    if INFO_KEY in table.metadata.info and not _is_metadata_operation:
        _emit(table.metadata, connection, [table])
        if _is_live(connection):
            warn_of_open_views(connection, _plan(table.metadata, connection))


def _check_before(metadata: MetaData, connection: Connection) -> None:
    plan = _plan(metadata, connection)
    if _is_live(connection):
        check_roles(connection, plan.settings.role, plan.roles)
        refuse_unfit(connection, plan)


def _emit(metadata: MetaData, connection: Connection, tables: Collection[Table]) -> None:
    if connection.dialect.name != "postgresql":
        return
    plan = _plan(metadata, connection)
    for table in tables:
        for statement in protect_table(plan.protection(table)):
            connection.execute(statement)
    if not _is_live(connection):
        for grant in plan.grants(tables):
            connection.execute(GrantPrivileges(grant))
        return
    _protect_partitions(connection, plan, tables)
    for grant in missing_grants(connection, plan, tables):
        connection.execute(GrantPrivileges(grant))


def _protect_partitions(connection: Connection, plan: Plan, tables: Collection[Table]) -> None:
    wanted = [one for table, one in partitions(connection, plan) if table in tables]
    there = Reader(connection, {one.schema for one in wanted}).read() if wanted else Protection()
    for one in wanted:
        before = there.table(one.name, one.schema)
        if before is not None:
            if _is_like(before, one):
                continue
            for policy in before.policies:
                connection.execute(DropPolicy(policy))
        for statement in protect_table(one):
            connection.execute(statement)


def _is_like(before: TableProtection, wanted: TableProtection) -> bool:
    names = [[policy.name for policy in one.policies] for one in (before, wanted)]
    granted = {PUBLIC, *(one.to for one in wanted.grants)}.intersection(
        one.to for one in before.grants
    )
    return before.enabled and before.forced and names[0] == names[1] and not granted


def _plan(metadata: MetaData, connection: object) -> Plan:
    return Plan(metadata, schema_map(connection))


def _is_live(connection: object) -> bool:
    """Tell PostgreSQL from other databases, and from an engine that only prints statements."""
    return isinstance(connection, Connection) and connection.dialect.name == "postgresql"
