"""The statements that protect a table."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from sqlalchemy import ExecutableDDLElement
from sqlalchemy.ext.compiler import compiles

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls._names import PUBLIC
from mgf.sqlalchemy.rls._predicates import quote_relation
from mgf.sqlalchemy.rls._state import Grant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.sql.compiler import DDLCompiler

    from mgf.sqlalchemy.rls._state import Policy, TableProtection


class CreatePolicy(ExecutableDDLElement):
    """``CREATE POLICY``."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy


class DropPolicy(ExecutableDDLElement):
    """``DROP POLICY``.

    Args:
        policy: the policy; its name and table are what counts.
        if_exists: no error where there is none.
    """

    def __init__(self, policy: Policy, *, if_exists: bool = False) -> None:
        self.policy = policy
        self.if_exists = if_exists


class AlterRowSecurity(ExecutableDDLElement):
    """``ALTER TABLE ... ROW LEVEL SECURITY``.

    Args:
        name: of the table.
        schema: of the table; None is the default schema.
        enabled: ENABLE or DISABLE; None leaves it as it is.
        forced: FORCE or NO FORCE; None leaves it as it is.

    Raises:
        AppConfigError: both are None.
    """

    def __init__(
        self,
        name: str,
        *,
        schema: str | None = None,
        enabled: bool | None = True,
        forced: bool | None = True,
    ) -> None:
        if enabled is None and forced is None:
            raise AppConfigError(
                f"row security of {name!r} is neither enabled nor forced nor the opposite; say "
                "enabled= or forced="
            )
        self.name = name
        self.schema = schema
        self.enabled = enabled
        self.forced = forced


class GrantPrivileges(ExecutableDDLElement):
    """``GRANT``."""

    def __init__(self, grant: Grant) -> None:
        self.grant = grant


class RevokePrivileges(ExecutableDDLElement):
    """``REVOKE``."""

    def __init__(self, grant: Grant) -> None:
        self.grant = grant


class _RevokeOwnSequences(ExecutableDDLElement):
    """``REVOKE`` of everything on the sequences that the columns of a table own."""

    def __init__(self, protection: TableProtection, roles: Iterable[str]) -> None:
        self.table = protection.key
        self.roles = tuple(roles)


def protect_table(protection: TableProtection) -> Iterator[ExecutableDDLElement]:
    """Yield the statements that give a table its protection, when it has none yet.

    Policies come before ENABLE, so that a table in use loses no row in between. What PUBLIC
    and the roles of the grants may do on it and on the sequences of its columns is taken back
    first: default privileges may have given it.
    """
    for policy in protection.policies:
        yield CreatePolicy(policy)
    if protection.enabled or protection.forced:
        yield AlterRowSecurity(
            protection.name,
            schema=protection.schema,
            enabled=protection.enabled or None,
            forced=protection.forced or None,
        )
    roles = dict.fromkeys((PUBLIC, *(grant.to for grant in protection.grants)))
    yield _RevokeOwnSequences(protection, roles)
    nothing = Grant((), protection.name, schema=protection.schema, to=PUBLIC)
    yield from grant_only((nothing, *protection.grants))


def grant_only(grants: Iterable[Grant]) -> Iterator[ExecutableDDLElement]:
    """Yield the statements that leave each role no more on a relation than what is granted."""
    given = list(grants)
    for whole in dict.fromkeys(grant.whole for grant in given if grant.kind == "TABLE"):
        yield RevokePrivileges(whole)
    for grant in given:
        if grant.privileges:
            yield GrantPrivileges(grant)


@compiles(CreatePolicy)
def _create_policy(element: CreatePolicy, compiler: DDLCompiler, **_options: Any) -> str:
    policy = element.policy
    kind = "RESTRICTIVE" if policy.restrictive else "PERMISSIVE"
    roles = ", ".join(_role(one, compiler) for one in policy.to)
    name = compiler.preparer.quote(policy.name)
    table = quoted_relation(policy.table, policy.schema, compiler)
    lines = [f"CREATE POLICY {name} ON {table} AS {kind} FOR {policy.for_} TO {roles}"]
    for clause, predicate in (("USING", policy.using), ("WITH CHECK", policy.with_check)):
        if predicate is not None:
            lines.append(f"    {clause} ({_verbatim(predicate, compiler)})")
    return "\n".join(lines)


@compiles(DropPolicy)
def _drop_policy(element: DropPolicy, compiler: DDLCompiler, **_options: Any) -> str:
    policy = element.policy
    return (
        f"DROP POLICY {'IF EXISTS ' if element.if_exists else ''}"
        f"{compiler.preparer.quote(policy.name)} "
        f"ON {quoted_relation(policy.table, policy.schema, compiler)}"
    )


@compiles(AlterRowSecurity)
def _alter_row_security(element: AlterRowSecurity, compiler: DDLCompiler, **_options: Any) -> str:
    actions: list[str] = []
    if element.enabled is not None:
        actions.append("ENABLE" if element.enabled else "DISABLE")
    if element.forced is not None:
        actions.append("FORCE" if element.forced else "NO FORCE")
    return (
        f"ALTER TABLE {quoted_relation(element.name, element.schema, compiler)} "
        f"{', '.join(f'{action} ROW LEVEL SECURITY' for action in actions)}"
    )


@compiles(GrantPrivileges)
def _grant(element: GrantPrivileges, compiler: DDLCompiler, **_options: Any) -> str:
    return _change_privileges("GRANT", element.grant, "TO", compiler)


@compiles(RevokePrivileges)
def _revoke(element: RevokePrivileges, compiler: DDLCompiler, **_options: Any) -> str:
    return _change_privileges("REVOKE", element.grant, "FROM", compiler)


def _change_privileges(verb: str, grant: Grant, to: str, compiler: DDLCompiler) -> str:
    before = " GRANT OPTION FOR" if grant.grantable and verb == "REVOKE" else ""
    after = " WITH GRANT OPTION" if grant.grantable and verb == "GRANT" else ""
    columns = ", ".join(map(compiler.preparer.quote, grant.columns))
    what = ", ".join(f"{one} ({columns})" if columns else one for one in grant.privileges)
    privileges = f"{verb}{before} {what} ON {grant.kind}"
    if grant.column is not None:
        return _verbatim(_on_own_sequence(privileges, grant, to, after), compiler)
    name = quoted_relation(grant.on, grant.schema, compiler)
    return f"{privileges} {name} {to} {_role(grant.to, compiler)}{after}"


def _on_own_sequence(privileges: str, grant: Grant, to: str, after: str) -> str:
    """Let the server name the sequence: the name that it usually takes may have been taken."""
    table = quote_relation((grant.schema, grant.on))
    arguments = [f"pg_get_serial_sequence({_literal(table)}, {_literal(grant.column or '')})"]
    role = PUBLIC
    if grant.to != PUBLIC:
        role = "%I"
        arguments.append(_literal(grant.to))
    statement = _literal(f"{privileges} %s {to} {role}{after}")
    return _do(f"BEGIN EXECUTE format({statement}, {', '.join(arguments)}); END")


@compiles(_RevokeOwnSequences)
def _revoke_own_sequences(
    element: _RevokeOwnSequences, compiler: DDLCompiler, **_options: Any
) -> str:
    table = _literal(quote_relation(element.table))
    roles = ", ".join(PUBLIC if one == PUBLIC else "%I" for one in element.roles)
    arguments = ", ".join(["own", *(_literal(one) for one in element.roles if one != PUBLIC)])
    body = f"""\
DECLARE own regclass; BEGIN
    FOR own IN SELECT objid FROM pg_depend JOIN pg_class ON oid = objid AND relkind = 'S'
        WHERE refobjid = {table}::regclass AND deptype IN ('a', 'i')
        AND classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass
    LOOP EXECUTE format('REVOKE ALL ON SEQUENCE %s FROM {roles}', {arguments}); END LOOP;
END"""  # noqa: S608 - quoted above
    return _verbatim(_do(body), compiler)


def _do(body: str) -> str:
    quotes = ("$" + "_" * count + "$" for count in itertools.count())
    quote = next(one for one in quotes if one not in body)
    return f"DO {quote} {body} {quote}"


def _verbatim(sql: str, compiler: DDLCompiler) -> str:
    """Double percent signs for the drivers that need it."""
    untyped: Any = compiler.sql_compiler
    return str(untyped.post_process_text(sql))


def quoted_relation(name: str, schema: str | None, compiler: DDLCompiler) -> str:
    """Return a name as it stands in a statement for the compiler's dialect."""
    quoted = compiler.preparer.quote(name)
    return quoted if schema is None else f"{compiler.preparer.quote_schema(schema)}.{quoted}"


def _role(role: str, compiler: DDLCompiler) -> str:
    return role if role == PUBLIC else compiler.preparer.quote(role)


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
