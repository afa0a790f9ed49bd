"""Compare what is being created with what is there, where creating tables would not show it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from sqlalchemy import ARRAY, Text, bindparam, inspect, text

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls._catalog import Reader
from mgf.sqlalchemy.rls._names import PUBLIC
from mgf.sqlalchemy.rls._predicates import quote_relation
from mgf.sqlalchemy.rls._schemas import shorten_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from sqlalchemy import Connection, Table

    from mgf.sqlalchemy.rls._names import RelationName
    from mgf.sqlalchemy.rls._plan import Plan
    from mgf.sqlalchemy.rls._state import Protection, ViewProtection


# Found by the search path, as create_all() finds what is there: not in the default schema alone.
# Without a restrictive policy for everybody any other one may open the table.
_BARE = text(
    """
    SELECT name FROM unnest(:names) AS name JOIN pg_class ON pg_class.oid = to_regclass(name)
    WHERE relkind IN ('r', 'p', 'f') AND NOT (
        relrowsecurity AND relforcerowsecurity AND EXISTS (
            SELECT FROM pg_policy
            WHERE polrelid = pg_class.oid AND NOT polpermissive AND polroles = ARRAY[0::oid]
        )
    )
    ORDER BY name
    """
).bindparams(bindparam("names", type_=ARRAY(Text)))
# Nothing where there is no such role yet, as when a first revision is written.
_MEMBER_OF = text(
    """
    SELECT one.rolname FROM pg_roles AS app JOIN pg_roles AS one
    ON app.rolname = :role AND pg_has_role(app.oid, one.oid, 'MEMBER')
    """
)


class UnprotectedViewWarning(UserWarning):
    """A view shows rows of protected tables whose policies do not hold."""

    __module__ = "mgf.sqlalchemy.rls"


def refuse_unfit(connection: Connection, plan: Plan) -> None:
    """Make sure that what is there of the tables of a metadata can be left as it is.

    Raises:
        AppConfigError: one is a view, or some are not protected (all of them are listed);
            ``create_all`` changes nothing that is there.
    """
    there = _read(connection, plan)
    places = _places(connection, plan, plan.tables)
    for view in there.views:
        if view.key in places:
            raise AppConfigError(
                f"{quote_relation(view.key)} is declared as a table, but is a view in the "
                "database, which has no row-level security of its own; declare it with "
                "invoker_view()"
            )
    protected = [quote_relation(plan.place(one)) for one in plan.tables if plan.is_protected(one)]
    if bare := connection.scalars(_BARE, {"names": protected}).all():
        raise AppConfigError(
            f"{', '.join(bare)}: there already, without row-level security or its floor, and "
            "create_all() changes no table that is there; protect them by a migration"
        )


def warn_of_open_views(
    connection: Connection, plan: Plan, *, known: Collection[RelationName] = ()
) -> None:
    """Warn of views that show protected tables' rows to the application's role.

    Args:
        connection: to PostgreSQL.
        plan: of a metadata.
        known: schema and name of views that are left out.

    Warns:
        UnprotectedViewWarning: a view's owner's rights count instead of the role's.
    """
    protected = _places(connection, plan, filter(plan.is_protected, plan.tables))
    # Of every schema: a view need not be where its tables are.
    there = Reader(connection, inspect(connection).get_schema_names()).read()
    roles = {PUBLIC, *connection.scalars(_MEMBER_OF, {"role": plan.settings.role})}
    for view in _open_views(there, protected):
        if view.key not in known and roles.intersection(one.to for one in view.grants):
            warnings.warn(_warning(view), UnprotectedViewWarning, stacklevel=2)


def _open_views(there: Protection, protected: Iterable[RelationName]) -> Iterator[ViewProtection]:
    """Yield the views that read protected tables with their owners' rights.

    By way of other views and of partitions, too.
    """
    concerned = set(protected)
    while more := {one.key for one in there.tables if concerned & {*one.parents}} - concerned:
        concerned |= more
    todo = list(there.views)
    while found := [view for view in todo if concerned.intersection(view.reads)]:
        concerned.update(view.key for view in found)
        todo = [view for view in todo if view not in found]
        yield from (view for view in found if not view.security_invoker)


def _warning(view: ViewProtection) -> str:
    name = quote_relation(view.key)
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
    return {shorten_name(plan.place(table), default) for table in tables}
