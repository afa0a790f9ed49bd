"""The role that an application connects as, which policies have to hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import bindparam, text

from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

_ROLES = text(
    "SELECT rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname IN :roles"
).bindparams(bindparam("roles", expanding=True))
_EXEMPT_MEMBERSHIP = text(
    """
    SELECT rolname FROM pg_roles
    WHERE (rolsuper OR rolbypassrls) AND rolname <> :role AND pg_has_role(:role, oid, 'MEMBER')
    ORDER BY rolname LIMIT 1
    """
)


def check_roles(connection: Connection, app: str, others: Iterable[str]) -> None:
    """Make sure that roles exist, and that policies hold the application's.

    Raises:
        AppConfigError: a role does not exist, or the application's is exempt from policies.
    """
    found = {
        row.rolname: row for row in connection.execute(_ROLES, {"roles": sorted({app, *others})})
    }
    for name in (app, *sorted(others)):
        if name not in found:
            raise AppConfigError(
                f"there is no role {name!r}; make it before the tables, with "
                f"ensure_app_role(connection, {name!r}) or CREATE ROLE"
            )
    if found[app].rolsuper or found[app].rolbypassrls:
        what = "is a superuser" if found[app].rolsuper else "has BYPASSRLS"
        raise AppConfigError(
            f"role {app!r} {what}, so no policy would hold it; let the application connect as "
            "another role, which ensure_app_role() makes"
        )
    exempt = connection.execute(_EXEMPT_MEMBERSHIP, {"role": app}).scalar()
    if exempt is not None:
        raise AppConfigError(
            f"role {app!r} is a member of {exempt!r}, which no policy holds, and can become it; "
            f"REVOKE the membership, or let the application connect as another role"
        )
