"""The check that a program makes before it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from mgf.common.exceptions import AppConfigError, OperationError
from mgf.sqlalchemy._binding import SETTING

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData, Row
    from sqlalchemy.ext.asyncio import AsyncConnection

_ROLE = text(
    """
    SELECT u.rolname, u.rolsuper, u.rolbypassrls,
           COALESCE(current_setting(:setting, true), '') <> '' AS is_bound,
           (SELECT min(r.rolname) FROM pg_roles AS r
            WHERE (r.rolsuper OR r.rolbypassrls) AND r.rolname <> u.rolname
              AND (pg_has_role(u.rolname, r.oid, 'MEMBER')
                   OR pg_has_role(session_user, r.oid, 'MEMBER'))) AS other
    FROM pg_roles AS u WHERE u.rolname = current_user
    """
)
# Rows are read by their own table, under its policies, and by all that it inherits from, under
# theirs: so children, partitions among them, and parents count as well. Those without policies
# are as closed as their privileges.
_TABLES = text(
    """
    WITH RECURSIVE ours AS (
        SELECT c.oid, NOT c.relispartition AS is_own FROM pg_class AS c
        WHERE c.relkind IN ('r', 'p', 'f') AND (c.relrowsecurity OR EXISTS (
            SELECT FROM pg_attribute AS a
            WHERE a.attrelid = c.oid AND a.attname = :column AND NOT a.attisdropped))
    ), heirs AS (
        SELECT oid FROM ours
        UNION SELECT i.inhrelid FROM heirs JOIN pg_inherits AS i ON i.inhparent = heirs.oid
    ), concerned AS (
        SELECT oid FROM heirs
        UNION SELECT i.inhparent FROM concerned JOIN pg_inherits AS i ON i.inhrelid = concerned.oid
    )
    SELECT n.nspname, c.relname, ours.oid IS NULL AS is_related,
           CASE WHEN c.relkind = 'f' THEN false ELSE row_security_active(c.oid) END AS is_active,
           pg_has_role(c.relowner, 'MEMBER') AS is_owner
    FROM concerned
    JOIN pg_class AS c ON c.oid = concerned.oid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN ours ON ours.oid = c.oid
    WHERE c.relkind IN ('r', 'p', 'f')
      AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
      AND (ours.is_own OR has_any_column_privilege(c.oid, 'SELECT, INSERT, UPDATE')
           OR has_table_privilege(c.oid, 'DELETE, TRUNCATE'))
    ORDER BY n.nspname, c.relname
    """
)


class RlsNotActiveError(OperationError):
    """Row-level security does not hold this connection, so nothing keeps tenants apart."""

    __module__ = "mgf.sqlalchemy.audit"


async def require_rls(
    bind: AsyncEngine | AsyncConnection,
    *,
    metadata: MetaData | None = None,
    tenant_column: str = "tenant_id",
    setting: str = SETTING,
) -> None:
    """Raise unless row-level security holds this connection on every protected table.

    For the start of a program, before it serves; two short queries, whatever the number of
    tables. It asks PostgreSQL whether policies are in force for this role
    (``row_security_active``), and whether the role, or one that it can become, is exempt from
    them or owns a table. Where tables inherit, parents and children that the role may use have to
    be protected, too.

    Not its matter, but `audit`'s, are what the policies say, and other roles than this one: a
    table without FORCE, ``"rls-not-forced"``, holds this role and not its owner, nor the owner's
    migrations, views and functions.

    Args:
        bind: the application's own engine, or a connection of it outside every scope.
        metadata: one that is protected: all its protected tables have to be there.
        tenant_column: tables with this column have to be protected, beside those of the metadata
            and those with row-level security.
        setting: that holds the tenant in force; it must not be set.

    Raises:
        RlsNotActiveError: a superuser, BYPASSRLS or an owner, directly or by SET ROLE; a table
            without row-level security, or missing; a tenant that is set by default; no table at
            all that is protected.
        AppConfigError: the database is not PostgreSQL, or the metadata is not protected.
    """
    if isinstance(bind, AsyncEngine):
        async with bind.connect() as connection:
            await require_rls(
                connection, metadata=metadata, tenant_column=tenant_column, setting=setting
            )
        return
    await bind.run_sync(_require, metadata, tenant_column, setting)


def _require(
    connection: Connection, metadata: MetaData | None, tenant_column: str, setting: str
) -> None:
    if connection.dialect.name != "postgresql":
        raise AppConfigError(
            f"row-level security is PostgreSQL's; this connection's database is "
            f"{connection.dialect.name!r}"
        )
    is_scoped = connection.in_transaction()
    role = connection.execute(_ROLE, {"setting": setting}).one()
    tables = connection.execute(_TABLES, {"column": tenant_column}).all()
    if not is_scoped:
        connection.rollback()
    _check_role(role, setting, is_scoped=is_scoped)
    there = {(row.nspname, row.relname): row for row in tables}
    shared = set[tuple[str, str]]()
    if metadata is not None:
        shared = _check_declared(connection, metadata, there)
    # What is declared to be shared is so until tenants' tables inherit from it.
    concerned = [row for key, row in there.items() if row.is_related or key not in shared]
    if not concerned:
        raise RlsNotActiveError(
            f"no table has row-level security or a column {tenant_column!r} in this database; run "
            "the migrations, or name the tenant column"
        )
    _check_tables(role.rolname, concerned)


def _check_role(role: Row[Any], setting: str, *, is_scoped: bool) -> None:
    if role.rolsuper or role.rolbypassrls:
        what = "a superuser" if role.rolsuper else "a role with BYPASSRLS"
        raise RlsNotActiveError(
            f"role {role.rolname!r} is {what}, whom no policy holds; connect as a role of the "
            "application's own (mgf.sqlalchemy.rls.ensure_app_role makes one)"
        )
    if role.other is not None:
        raise RlsNotActiveError(
            f"role {role.rolname!r} can become {role.other!r}, whom no policy holds, by SET ROLE "
            "or RESET ROLE; revoke that membership, or log in as the role itself"
        )
    if role.is_bound and not is_scoped:
        raise RlsNotActiveError(
            f"{setting} is set outside every scope, by a default of the role, the database or the "
            "connection: code that forgot its scope would get that tenant's rows; RESET it"
        )


def _check_declared(
    connection: Connection, metadata: MetaData, there: dict[tuple[str, str], Row[Any]]
) -> set[tuple[str, str]]:
    """Return the tables that are declared to be shared."""
    from mgf.sqlalchemy.rls import declared_protection

    default = connection.dialect.default_schema_name or "public"
    tables = declared_protection(metadata).tables
    keys = {(one.schema or default, one.name): one.enabled for one in tables}
    missing = sorted(".".join(key) for key, enabled in keys.items() if enabled and key not in there)
    if missing:
        raise RlsNotActiveError(
            f"{_list(missing)}: declared to be protected, but there without row-level security or "
            "not at all; run the migrations"
        )
    return {key for key, enabled in keys.items() if not enabled}


def _check_tables(role: str, tables: list[Row[Any]]) -> None:
    open_ = [f"{row.nspname}.{row.relname}" for row in tables if not row.is_active]
    if open_:
        why = (
            " (what inherits from tables with tenants' rows shows them, and so does what those "
            "inherit from)"
        )
        is_related = any(row.is_related and not row.is_active for row in tables)
        raise RlsNotActiveError(
            f"row-level security does not hold role {role!r} on {_list(open_)}"
            f"{why if is_related else ''}; ENABLE and FORCE it there, or run mgf.sqlalchemy.audit "
            "for all that is wrong"
        )
    owned = [f"{row.nspname}.{row.relname}" for row in tables if row.is_owner]
    if owned:
        raise RlsNotActiveError(
            f"role {role!r} is, or can become, the owner of {_list(owned)}, and may lift their "
            "row-level security; give them another owner"
        )


def _list(names: list[str]) -> str:
    """Return the first few names, and how many there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more
