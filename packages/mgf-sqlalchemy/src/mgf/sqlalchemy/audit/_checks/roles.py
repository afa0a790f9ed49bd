"""The role that the application connects as, and those that it can become."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from mgf.sqlalchemy.audit._finding import Finding
from mgf.sqlalchemy.audit._sql import identifier, literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mgf.sqlalchemy.audit._snapshot import Subject

_PROGRAMS: Final = {
    "pg_read_server_files": "read the files that tables are made of",
    "pg_write_server_files": "overwrite the server's configuration",
    "pg_execute_server_program": "run programs as the server's account",
}
_READS_ALL = "pg_read_all_data"
_SAMPLES = ("pg_catalog.pg_statistic", "pg_catalog.pg_statistic_ext_data")
_STATISTICS = ("pg_read_all_stats", "pg_monitor")
_HARMFUL_SETTINGS: Final = {
    "row_security": "turns queries on protected tables into errors",
    "role": "makes every session another role than the one that was audited",
    "session_preload_libraries": "loads code into every session",
    "local_preload_libraries": "loads code into every session",
    "session_replication_role": "switches triggers and foreign keys off",
    "lo_compat_privileges": "opens every large object to every role",
}
_HARMLESS: Final = {
    "session_replication_role": ("origin", "local"),
    "lo_compat_privileges": ("off",),
}
# Of those that only superusers may set.
_HARMFUL_PARAMETERS: Final = {
    "session_replication_role": "so one statement switches triggers and foreign keys off",
    "lo_compat_privileges": "so one statement opens every large object",
    "session_preload_libraries": "which loads code into sessions",
    "dynamic_library_path": "which chooses the code that sessions load",
}


def check_attributes(subject: Subject) -> Iterator[Finding]:
    """Yield attributes of the role that make policies void."""
    role = subject.snapshot.role
    name = role.rolname
    for column, check, word, severity, consequence in (
        ("rolsuper", "role-superuser", "NOSUPERUSER", "critical", "no policy holds a superuser"),
        ("rolbypassrls", "role-bypassrls", "NOBYPASSRLS", "critical", "BYPASSRLS skips policies"),
        ("rolcreaterole", "role-createrole", "NOCREATEROLE", "error", _CREATEROLE),
        ("rolreplication", "role-replication", "NOREPLICATION", "error", _REPLICATION),
    ):
        if getattr(role, column):
            yield Finding(
                check,
                severity,  # type: ignore[arg-type]  # mypy widens the literals above
                name,
                f"{consequence}: a connection of the application reaches every tenant's rows",
                f"ALTER ROLE {identifier(name)} {word};",
            )


_CREATEROLE = "CREATEROLE makes itself a member of other roles, or resets their passwords"
_REPLICATION = "REPLICATION copies the whole cluster, without policies"


def check_memberships(subject: Subject) -> Iterator[Finding]:
    """Yield roles that the role can become, or has the rights of, and should not."""
    name = subject.snapshot.role.rolname
    if subject.snapshot.role.rolsuper:
        return  # It can become everyone, which is said already.
    for other, row in subject.snapshot.reachable.items():
        if other == name:
            continue
        revoke = f"REVOKE {identifier(other)} FROM {identifier(name)};  -- or from a role between"
        attribute = "superuser" if row.rolsuper else "bypassrls" if row.rolbypassrls else None
        if attribute is not None:
            yield Finding(
                f"role-reaches-{attribute}",
                "critical",
                name,
                f"SET ROLE makes {other!r} of it, whom no policy holds: one statement reaches "
                "every tenant's rows",
                revoke,
            )
        if row.rolreplication:
            yield Finding(
                "role-reaches-replication",
                "error",
                name,
                f"SET ROLE makes {other!r} of it, which reads what every tenant writes from a "
                "replication slot",
                revoke,
            )
        if row.rolcreaterole:
            yield Finding(
                "role-reaches-createrole",
                "error",
                name,
                f"SET ROLE makes {other!r} of it, which can create roles and join others",
                revoke,
            )
        if other in _PROGRAMS:
            yield Finding(
                "role-server-files",
                "critical",
                name,
                f"as a member of {other!r} it can {_PROGRAMS[other]}, below all policies",
                revoke,
            )
    yield from _below_policies(subject)
    if any(one in subject.snapshot.reachable for one in _STATISTICS):
        yield Finding(
            "role-reads-statistics",
            "warning",
            name,
            "it sees the text of other sessions' statements, with the values of other tenants",
            f"REVOKE {', '.join(_STATISTICS)} FROM {identifier(name)};",
        )


def _below_policies(subject: Subject) -> Iterator[Finding]:
    """Yield ways to read what tables are made of, which belong to no relation of a tenant."""
    name, reachable = subject.snapshot.role.rolname, subject.snapshot.reachable
    opening = {other: row.file_functions for other, row in reachable.items() if row.file_functions}
    if opening:
        functions = ", ".join(sorted({one for found in opening.values() for one in found}))
        yield Finding(
            "role-server-files",
            "critical",
            name,
            f"it may call {functions}: the files that tables are made of are read or written so, "
            "below all policies",
            f"REVOKE EXECUTE ON FUNCTION {functions} FROM PUBLIC, {_list(opening)};",
        )
    reading = [other for other, row in reachable.items() if row.reads_samples]
    if reading:
        is_member = _READS_ALL in reachable
        what = _READS_ALL if is_member else f"SELECT ON {', '.join(_SAMPLES)}"
        yield Finding(
            "role-reads-samples",
            "error",
            name,
            "it reads the planner's statistics, with samples of every tenant's values, which no "
            "policy holds",
            f"REVOKE {what} FROM {identifier(name) if is_member else f'PUBLIC, {_list(reading)}'};",
        )


def check_parameters(subject: Subject) -> Iterator[Finding]:
    """Yield settings that only superusers should change, and that the role was granted."""
    granted: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for other, row in subject.snapshot.reachable.items():
        for privilege, parameter in row.parameters:
            if privilege == "ALTER SYSTEM" or parameter in _HARMFUL_PARAMETERS:
                granted[privilege, parameter].append(other)
    for (privilege, parameter), roles in granted.items():
        yield Finding(
            "role-sets-parameters",
            "error",
            subject.snapshot.role.rolname,
            f"it may {privilege} {parameter}, "
            + (
                "which changes the configuration of every session"
                if privilege == "ALTER SYSTEM"
                else _HARMFUL_PARAMETERS[parameter]
            ),
            f"REVOKE {privilege} ON PARAMETER {parameter} FROM PUBLIC, {_list(roles)};",
        )


def _list(roles: Iterable[str]) -> str:
    return ", ".join(map(identifier, roles))


def check_ownership(subject: Subject) -> Iterator[Finding]:
    """Yield tables that belong to the role, or to one that it can become."""
    name = subject.snapshot.role.rolname
    for relation in subject.relations:
        if relation.owner not in subject.snapshot.reachable or subject.snapshot.role.rolsuper:
            continue
        is_own = relation.owner == name
        who = "it is" if is_own else f"it can become {relation.owner!r}, who is"
        yield Finding(
            "role-owns-table" if is_own else "role-reaches-owner",
            "critical",
            relation.label,
            f"{name!r} may drop its policies: {who} the owner, whom FORCE holds until NO FORCE",
            f"ALTER TABLE {relation.sql} OWNER TO ...;  -- a role that the application is not"
            if is_own
            else f"REVOKE {identifier(relation.owner)} FROM {identifier(name)};",
        )


def check_domains(subject: Subject) -> Iterator[Finding]:
    """Yield domains of tenants' columns that belong to the role, or to one that it can become."""
    name = subject.snapshot.role.rolname
    for row in subject.snapshot.domains:
        if subject.snapshot.role.rolsuper or subject.tenants.keys().isdisjoint(row.relations):
            continue
        yield Finding(
            "role-owns-domain",
            "critical",
            row.label,
            f"{name!r} is, or can become, its owner {row.owner!r}, who may add a CHECK to it: a "
            "function of its own is called then for every tenant's values, whatever policies say",
            f"ALTER DOMAIN {row.sql} OWNER TO ...;  -- a role that the application is not",
        )


def check_settings(subject: Subject) -> Iterator[Finding]:
    """Yield defaults of settings that come with a role or database."""
    for row in subject.snapshot.settings:
        scope = _scope(row.role_sql, row.database_sql)
        place = " in database ".join(one for one in (row.rolname, row.datname) if one) or "all"
        remedy = f"{scope} RESET {row.name};"
        if row.name.lower() == subject.setting.lower():
            yield Finding(
                "setting-default",
                "critical",
                place,
                f"{subject.setting} is set by default: a session that forgot its scope reads and "
                "writes that tenant's rows",
                remedy,
            )
        elif row.name in _HARMFUL_SETTINGS and row.value not in _HARMLESS.get(
            row.name, ("", "on", "none")
        ):
            yield Finding(
                "role-setting",
                "warning",
                place,
                f"its default of {row.name} {_HARMFUL_SETTINGS[row.name]}",
                remedy,
            )


def _scope(role: str | None, database: str | None) -> str:
    if role is None:
        return f"ALTER DATABASE {database}" if database else "ALTER ROLE ALL"
    return f"ALTER ROLE {role}" + (f" IN DATABASE {database}" if database else "")


def check_schemas(subject: Subject) -> Iterator[Finding]:
    """Yield schemas whose tables the role may drop, and where it may create what shadows others."""
    snapshot = subject.snapshot
    name = snapshot.role.rolname
    if snapshot.role.rolsuper:
        return
    holding = {relation.schema for relation in subject.relations}
    # Who made a function may replace it where it may create.
    calling = {one.function_schema for one in snapshot.policy_functions}
    calling |= {one.function_schema for one in snapshot.triggers if one.tgrelid in subject.tenants}
    for row in snapshot.schemas:
        if row.nspname not in holding | calling:
            continue
        if row.owner in snapshot.reachable and row.nspname in holding:
            yield Finding(
                "role-owns-schema",
                "critical",
                row.nspname,
                f"{name!r} has the rights of its owner {row.owner!r}, who may drop every table in "
                "it, whoever owns that",
                f"ALTER SCHEMA {row.sql} OWNER TO ...;  -- a role that the application is not",
            )
        elif row.creators:
            yield Finding(
                "role-creates-objects",
                "warning",
                row.nspname,
                f"{name!r} may create functions and operators there, or replace its own, which "
                "others then call by mistake, with their rights",
                f"REVOKE CREATE ON SCHEMA {row.sql} FROM {_list(row.creators)}, PUBLIC;",
            )
    creating = [other for other, row in snapshot.reachable.items() if row.creates_schemas]
    if creating:
        database = identifier(snapshot.database)
        yield Finding(
            "role-creates-objects",
            "warning",
            snapshot.database,
            f"{name!r} may create schemas: what is in one with another role's name comes first on "
            "the usual search_path, and is called by mistake with that role's rights",
            f"REVOKE CREATE ON DATABASE {database} FROM {_list(creating)}, PUBLIC;",
        )


def check_login(subject: Subject) -> Iterator[Finding]:
    """Yield a login that RESET ROLE takes back to more than the role may."""
    snapshot = subject.snapshot
    login, role = snapshot.session_user, snapshot.role.rolname
    above = snapshot.exempt.union(one.owner for one in subject.relations)
    more = (snapshot.login_roles & above) - snapshot.reachable.keys()
    if login == role or not more:
        return
    yield Finding(
        "login-resets-role",
        # Whether the application logs in as the audit does, a connection that took the role tells.
        "error" if snapshot.current_user != login else "warning",
        login,
        f"the connection logged in as {login!r}, which is, or can become, a role that no policy "
        f"holds or that may lift them: an application that logs in so and takes {role!r} by SET "
        "ROLE is one RESET ROLE away from every tenant's rows",
        f"-- log in as {literal(role)} itself; if the audit alone does not, ignore this and say so",
    )
