"""What roles may do beside what comes with each table, and putting it right."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, text

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls._catalog import Reader
from mgf.sqlalchemy.rls._ddl import GrantPrivileges, RevokePrivileges
from mgf.sqlalchemy.rls._difference import compare_protection, taken_along
from mgf.sqlalchemy.rls._names import PUBLIC
from mgf.sqlalchemy.rls._partitions import partitions
from mgf.sqlalchemy.rls._plan import Plan
from mgf.sqlalchemy.rls._schemas import schema_map, shorten_name, shorten_table, shorten_view
from mgf.sqlalchemy.rls._state import Protection

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy import Connection, MetaData, Row, Table

    from mgf.sqlalchemy.rls._state import Grant

_ROLES = text(
    "SELECT rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname IN :roles"
).bindparams(bindparam("roles", expanding=True))
_USABLE_SCHEMAS = text(
    """
    SELECT nspname FROM pg_namespace
    WHERE nspname IN :schemas AND has_schema_privilege(:role, oid, 'USAGE')
    """
).bindparams(bindparam("schemas", expanding=True))


def find_roles(connection: Connection, names: Collection[str]) -> dict[str, Row[Any]]:
    """Return what roles are exempt from, by their names.

    Raises:
        AppConfigError: one does not exist; the first is named.
    """
    found = {row.rolname: row for row in connection.execute(_ROLES, {"roles": list(names)})}
    for name in names:
        if name not in found:
            raise AppConfigError(
                f"there is no role {name!r}; make it before the tables, with "
                f"ensure_app_role(connection, {name!r}) or CREATE ROLE"
            )
    return found


def missing_grants(
    connection: Connection, plan: Plan, tables: Collection[Table]
) -> Iterator[Grant]:
    """Yield what the tables need beside their own grants, but for schemas that roles may use.

    Who creates tables need not own the schema, and could not grant anything on it.
    """
    default = connection.dialect.default_schema_name
    for grant in plan.grants(tables, default_schema=default) if tables else ():
        if grant.kind == "SCHEMA":
            role = "public" if grant.to == PUBLIC else grant.to
            parameters = {"schemas": [grant.on], "role": role}
            if connection.execute(_USABLE_SCHEMAS, parameters).scalar() is not None:
                continue
        yield grant


def repair_grants(connection: Connection, metadata: MetaData, role: str) -> None:
    """Grant and revoke until the role and PUBLIC may do what is declared, on what is there.

    Raises:
        AppConfigError: the metadata is not protected, or for another role, or names a role that
            does not exist.
    """
    plan = Plan(metadata, schema_map(connection))
    if plan.settings.role != role:
        raise AppConfigError(
            f"this metadata is protected for role {plan.settings.role!r}, not for {role!r}; make "
            "them the same"
        )
    find_roles(connection, sorted(plan.roles))
    default = connection.dialect.default_schema_name
    tables = [plan.protection(table) for table in plan.tables]
    tables += [protection for _, protection in partitions(connection, plan)]
    expected = Protection(
        # Without policies no role is a former one, which may be at work until migrations have run.
        tables=tuple(replace(shorten_table(one, default), policies=()) for one in tables),
        views=tuple(shorten_view(one, default) for one in plan.views),
    )
    there = Reader(connection, {one.schema for one in tables}).read()
    # On columns of views nothing is declared.
    declared = [one for table in expected.tables for one in table.grants]
    found = [one for table in there.tables for one in table.grants]
    missing: list[Grant] = []
    for one in compare_protection(expected, there):
        if one.aspect == "grant" and one.expected is not None:
            missing.append(one.expected)
        elif one.aspect == "grant":
            connection.execute(RevokePrivileges(one.there))
            missing += taken_along(one.there, declared, found)
    for grant in missing:
        connection.execute(GrantPrivileges(grant))
    places = {one.key for one in there.tables}
    concerned = [one for one in plan.tables if shorten_name(plan.place(one), default) in places]
    for grant in missing_grants(connection, plan, concerned):
        connection.execute(GrantPrivileges(grant))
