"""Compare what is being created with what is there, where creating tables would not show it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, text

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls._catalog import Reader
from mgf.sqlalchemy.rls._predicates import quote_relation
from mgf.sqlalchemy.rls._state import PUBLIC

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from sqlalchemy import Connection, Table

    from mgf.sqlalchemy.rls._plan import Plan
    from mgf.sqlalchemy.rls._state import Grant, Protection, RelationName, ViewProtection

_USABLE_SCHEMAS = text(
    """
    SELECT nspname FROM pg_namespace
    WHERE nspname IN :schemas AND has_schema_privilege(:role, oid, 'USAGE')
    """
).bindparams(bindparam("schemas", expanding=True))


class UnprotectedViewWarning(UserWarning):
    """A view shows rows of protected tables whose policies do not hold."""


def refuse_views(connection: Connection, plan: Plan) -> None:
    """Make sure that no table of the metadata is a view in the database.

    Raises:
        AppConfigError: one is; ``create_all`` would take it for the table and leave it alone.
    """
    places = _places(connection, plan, plan.tables)
    for view in _read(connection, plan).views:
        if view.key in places:
            raise AppConfigError(
                f"{_name(view.key)} is declared as a table, but is a view in the database, which "
                "has no row-level security of its own; declare it with invoker_view()"
            )


def missing_grants(
    connection: Connection, plan: Plan, tables: Collection[Table]
) -> Iterator[Grant]:
    """Yield what the tables need beside their own grants, but for schemas that roles may use.

    Who creates tables need not own the schema, and could not grant anything on it.
    """
    default = connection.dialect.default_schema_name
    for grant in plan.grants(tables, default_schema=default) if tables else ():
        if grant.kind == "SCHEMA":
            parameters = {"schemas": [grant.on], "role": grant.to.lower()}
            if connection.execute(_USABLE_SCHEMAS, parameters).scalar() is not None:
                continue
        yield grant


def check_result(connection: Connection, plan: Plan) -> None:
    """Make sure that the tables of the metadata that are there are protected.

    Raises:
        AppConfigError: some are not; all of them are listed. They were there before, and
            ``create_all`` changes no table that is there.

    Warns:
        UnprotectedViewWarning: the application's role may read a protected table's rows by a
            view whose owner's rights count instead.
    """
    there = _read(connection, plan)
    protected = _places(connection, plan, filter(plan.is_protected, plan.tables))
    bare = [
        _name(one.key)
        for one in there.tables
        if one.key in protected and not (one.enabled and one.forced)
    ]
    if bare:
        raise AppConfigError(
            f"{', '.join(bare)}: there already, without row-level security, and create_all() "
            "changes no table that is there; protect them by a migration"
        )
    for view in _open_views(there, protected):
        if {plan.settings.role, PUBLIC}.intersection(grant.to for grant in view.grants):
            warnings.warn(_warning(view), UnprotectedViewWarning, stacklevel=2)


def _open_views(there: Protection, protected: Iterable[RelationName]) -> Iterator[ViewProtection]:
    """Yield the views that read protected tables, by others or not, with their owners' rights."""
    concerned = set(protected)
    todo = list(there.views)
    while found := [view for view in todo if concerned.intersection(view.reads)]:
        concerned.update(view.key for view in found)
        todo = [view for view in todo if view not in found]
        yield from (view for view in found if not view.security_invoker)


def _warning(view: ViewProtection) -> str:
    name = _name(view.key)
    if view.materialized:
        return (
            f"materialized view {name} holds rows of protected tables, which no policy can "
            f"protect there: REVOKE ALL ON {name} from the application's role and PUBLIC"
        )
    return (
        f"view {name} shows rows of protected tables with its owner's rights, whom policies may "
        f"not hold: ALTER VIEW {name} SET (security_invoker = true)"
    )


def _read(connection: Connection, plan: Plan) -> Protection:
    return Reader(connection, {plan.place(table)[0] for table in plan.tables}).read()


def _places(connection: Connection, plan: Plan, tables: Iterable[Table]) -> set[RelationName]:
    default = connection.dialect.default_schema_name
    places = map(plan.place, tables)
    return {(None if schema == default else schema, name) for schema, name in places}


def _name(key: RelationName) -> str:
    return quote_relation(key)
