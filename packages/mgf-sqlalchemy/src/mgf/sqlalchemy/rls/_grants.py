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
# Nothing where there is no such schema.
_ON_SCHEMA = text(
    """
    SELECT has_schema_privilege(:role, oid, :privilege) AS is_granted, current_user AS own,
           has_schema_privilege(oid, :privilege || ' WITH GRANT OPTION') AS may_grant
    FROM pg_namespace WHERE nspname = :schema
    """
)


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

    Raises:
        AppConfigError: that is so, and a role may not use it yet.
    """
    default = connection.dialect.default_schema_name
    for grant in plan.grants(tables, default_schema=default) if tables else ():
        if grant.kind != "SCHEMA" or check_grant(connection, grant):
            yield grant


def check_grant(connection: Connection, grant: Grant) -> bool:
    """Make sure that a privilege on a schema can be granted; return whether any has to be.

    PostgreSQL would grant nothing, and say so in a warning that drivers do not show.

    Args:
        connection: to PostgreSQL.
        grant: on a schema; one that is not there is left to PostgreSQL's error.

    Raises:
        AppConfigError: the connection's role may grant it as little as the grant's has it.
    """
    role = "public" if grant.to == PUBLIC else grant.to
    missing = False
    for privilege in grant.privileges:
        parameters = {"schema": grant.on, "role": role, "privilege": privilege}
        found = connection.execute(_ON_SCHEMA, parameters).one_or_none()
        missing |= found is None or not found.is_granted
        if found is not None and not (found.is_granted or found.may_grant):
            raise AppConfigError(
                f"role {found.own!r} may not grant anything on schema {grant.on!r}; let the "
                f"schema's owner do it: {GrantPrivileges(grant)}"
            )
    return missing


def repair_grants(connection: Connection, metadata: MetaData, role: str) -> None:
    """Grant and revoke until the role and PUBLIC may do what is declared, on what is there.

    Raises:
        AppConfigError: the metadata is not protected, or for another role, or names a role that
            does not exist, or is about a schema that this connection's role may not grant on.
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
