"""The role that an application connects as, which policies have to hold."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement

from mgf.common.exceptions import AppConfigError, OperationError
from mgf.sqlalchemy.errors import sqlstate
from mgf.sqlalchemy.rls._ddl import GrantPrivileges
from mgf.sqlalchemy.rls._grants import find_roles, repair_grants
from mgf.sqlalchemy.rls._names import PUBLIC, check_name
from mgf.sqlalchemy.rls._password import scram_verifier
from mgf.sqlalchemy.rls._scratch import is_autocommit
from mgf.sqlalchemy.rls._state import Grant

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection, MetaData, Row
    from sqlalchemy.sql.compiler import DDLCompiler

_EXEMPT_MEMBERSHIP = text(
    """
    SELECT rolname FROM pg_roles
    WHERE (rolsuper OR rolbypassrls) AND rolname <> :role AND pg_has_role(:role, oid, 'MEMBER')
    ORDER BY rolname LIMIT 1
    """
)
_OWN_MEMBERSHIP = text("SELECT current_user WHERE pg_has_role(:role, current_user, 'MEMBER')")
_ATTRIBUTES = text(
    """
    SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, rolcanlogin,
           rolname IN (current_user, session_user) AS is_own
    FROM pg_roles WHERE rolname = :role
    """
)
_MAY_CONNECT = text(
    "SELECT current_database(), has_database_privilege(:role, current_database(), 'CONNECT')"
)
# What a role may not have, and what takes it away.
_UNWANTED = {
    "rolbypassrls": "NOBYPASSRLS",
    "rolcreaterole": "NOCREATEROLE",
    "rolcreatedb": "NOCREATEDB",
    "rolreplication": "NOREPLICATION",
}
# duplicate_object, unique_violation, and "tuple concurrently updated": another process makes or
# changes the role. The statement waits for it to commit, so each attempt lets one of them through.
_RACE = frozenset({"42710", "23505", "XX000"})
_ATTEMPTS = 20


class _ChangeRole(ExecutableDDLElement):
    def __init__(self, verb: str, name: str, words: Iterable[str]) -> None:
        self.verb = verb
        self.name = name
        self.words = tuple(words)


@compiles(_ChangeRole)
def _change_role(element: _ChangeRole, compiler: DDLCompiler, **_options: Any) -> str:
    name = compiler.preparer.quote(element.name)
    return f"{element.verb} ROLE {name} {' '.join(element.words)}"


def ensure_app_role(
    connection: Connection,
    name: str,
    *,
    password: str | None = None,
    login: bool = True,
    metadata: MetaData | None = None,
) -> None:
    r"""Make the role that an application connects as, or put right what is wrong with it.

    It is no superuser, may not bypass row-level security, nor create roles or databases, nor
    replicate; it may connect to this database. Nothing is sent where nothing is to be done, but
    for a password, which is set anew. Several processes may do this at once. All of it is part
    of the connection's transaction: commit it.

    The password itself is not sent: PostgreSQL gets the SCRAM-SHA-256 verifier, as from psql's
    ``\password``, so that neither its log nor an error shows it.

    Args:
        connection: of a role that may create roles.
        name: of the role.
        password: printable ASCII; None leaves a password as it is, and a new role without one.
        login: whether one may log in as it. False for a role that others are members of.
        metadata: one that is protected for this role: put right, too, what the role and PUBLIC
            may do on its tables that are there. Creating tables grants that anyway.

    Raises:
        AppConfigError: the role is a superuser, the connection's own, or a member of one that no
            policy holds; the connection's role may not make or change it; the password cannot
            be used; another role that `metadata` names does not exist.
        OperationError: PostgreSQL refused for another reason.
    """
    check_name("the role's name", name)
    if name.upper() == PUBLIC:
        raise AppConfigError(f"{name!r} is every role; give the application's a name of its own")
    options = [] if password is None else [f"PASSWORD '{scram_verifier(password)}'"]
    for attempt in range(_ATTEMPTS):
        failure = _attempt(connection, name, login=login, options=options)
        if failure is None:
            break
        if sqlstate(failure) not in _RACE or attempt == _ATTEMPTS - 1:
            # Raised here, outside of any except clause: SQLAlchemy's error shows the statement.
            _raise(failure, name)
    _refuse_exempt_membership(connection, name)
    database, may_connect = connection.execute(_MAY_CONNECT, {"role": name}).one()
    if not may_connect:
        connection.execute(GrantPrivileges(Grant("CONNECT", database, to=name, kind="DATABASE")))
    if metadata is not None:
        repair_grants(connection, metadata, name)


def _attempt(
    connection: Connection, name: str, *, login: bool, options: list[str]
) -> BaseException | None:
    """Make or change the role; return what the driver raised, if it did."""
    undo = nullcontext() if is_autocommit(connection) else connection.begin_nested()
    try:
        with undo:
            found = connection.execute(_ATTRIBUTES, {"role": name}).one_or_none()
            if found is None:
                wanted = ["LOGIN" if login else "NOLOGIN", "NOSUPERUSER", *_UNWANTED.values()]
                connection.execute(_ChangeRole("CREATE", name, [*wanted, *options]))
            elif changes := [*_repairs(found, name, login=login), *options]:
                connection.execute(_ChangeRole("ALTER", name, changes))
    except DBAPIError as error:
        return error.orig
    return None


def _repairs(found: Row[Any], name: str, *, login: bool) -> list[str]:
    if found.is_own:
        raise AppConfigError(
            f"role {name!r} is the one that this connection has; the application needs another"
        )
    if found.rolsuper:
        raise AppConfigError(
            f"role {name!r} is a superuser, whom no policy holds. It may be somebody's account, so "
            "it is left alone: take another name, or ALTER ROLE ... NOSUPERUSER"
        )
    changes = [change for attribute, change in _UNWANTED.items() if getattr(found, attribute)]
    if found.rolcanlogin != login:
        changes.append("LOGIN" if login else "NOLOGIN")
    return changes


def _raise(failure: BaseException, name: str) -> NoReturn:
    if sqlstate(failure) == "42501":
        raise AppConfigError(
            f"this connection's role may not make or change role {name!r}; connect as a superuser "
            "or with CREATEROLE (and ADMIN on a role that is there)"
        ) from failure
    raise OperationError(f"role {name!r} was not made or changed: {failure}") from failure


def check_roles(connection: Connection, app: str, others: Iterable[str]) -> None:
    """Make sure that roles exist, and that policies hold the application's.

    Args:
        connection: to PostgreSQL.
        app: the role that policies have to hold.
        others: roles that only have to exist.

    Raises:
        AppConfigError: a role does not exist, or the application's is exempt from policies, or
            would own the tables that this connection creates.
    """
    found = find_roles(connection, (app, *sorted(others)))
    if found[app].rolsuper or found[app].rolbypassrls:
        what = "is a superuser" if found[app].rolsuper else "has BYPASSRLS"
        raise AppConfigError(
            f"role {app!r} {what}, so no policy would hold it; let the application connect as "
            "another role, which ensure_app_role() makes"
        )
    _refuse_exempt_membership(connection, app)
    _refuse_own_membership(connection, app)


def _refuse_exempt_membership(connection: Connection, name: str) -> None:
    exempt = connection.execute(_EXEMPT_MEMBERSHIP, {"role": name}).scalar()
    if exempt is not None:
        raise AppConfigError(
            f"role {name!r} is a member of {exempt!r}, which no policy holds, and can become it; "
            f"REVOKE {exempt} FROM {name}, or let the application connect as another role"
        )


def _refuse_own_membership(connection: Connection, name: str) -> None:
    """Policies hold an owner, but it may TRUNCATE, and take the policies away."""
    owner = connection.execute(_OWN_MEMBERSHIP, {"role": name}).scalar()
    if owner is not None:
        raise AppConfigError(
            f"role {name!r} is {owner!r}, or a member of it, who would own the tables and could "
            "take their protection away; create them as a role that the application's is no "
            "member of"
        )
