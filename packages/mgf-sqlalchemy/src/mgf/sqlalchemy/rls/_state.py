"""What protects tables: plain data, the same for what is declared and for what is there.

A schema of None is the database's default schema, as in SQLAlchemy. Names are written as they
are, never quoted; predicates are SQL.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls._names import PUBLIC, check_name, read_roles, relation_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Table

    from mgf.sqlalchemy.rls._names import RelationName

Command: TypeAlias = Literal["ALL", "SELECT", "INSERT", "UPDATE", "DELETE"]
GrantKind: TypeAlias = Literal["TABLE", "SEQUENCE", "SCHEMA", "DATABASE"]

_KINDS = get_args(GrantKind)
_PRIVILEGES = (
    "ALL",
    "SELECT",
    "INSERT",
    "UPDATE",
    "DELETE",
    "TRUNCATE",
    "REFERENCES",
    "TRIGGER",
    "MAINTAIN",
    "USAGE",
    "CREATE",
    "CONNECT",
)


class _Readable:
    """Writes itself as the call that makes it, without what is left at its default."""

    def __repr__(self) -> str:
        parts: list[str] = []
        for one in fields(self):  # type: ignore[arg-type]  # every heir is a dataclass
            value = getattr(self, one.name)
            if not one.kw_only:
                parts.append(repr(value))
            elif value != one.default:
                parts.append(f"{one.name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, init=False, repr=False)
class Policy(_Readable):
    """A row-level security policy, as CREATE POLICY makes it.

    Args:
        name: of the policy, at most 63 bytes; PostgreSQL would cut it there.
        table: its table's name, or the `Table` or mapped class itself, which also has the
            schema.
        schema: of the table; None is the default schema.
        for_: the command that it is about: ALL, SELECT, INSERT, UPDATE or DELETE.
        to: the role or roles that it is for; PUBLIC is every role.
        using: SQL predicate on the rows that a command finds.
        with_check: SQL predicate on the rows that a command writes. Where it is missing
            PostgreSQL takes `using` for it.
        restrictive: rows have to pass it beside the permissive ones (AND), instead of passing
            it or another one (OR).

    Raises:
        AppConfigError: a name that is blank or too long, another command, or a predicate that
            PostgreSQL does not take for the command.
    """

    name: str
    table: str
    schema: str | None = field(default=None, kw_only=True)
    for_: Command = field(default="ALL", kw_only=True)
    to: tuple[str, ...] = field(default=(PUBLIC,), kw_only=True)
    using: str | None = field(default=None, kw_only=True)
    with_check: str | None = field(default=None, kw_only=True)
    restrictive: bool = field(default=False, kw_only=True)

    def __init__(
        self,
        name: str,
        table: str | Table | type[Any],
        *,
        schema: str | None = None,
        for_: str = "ALL",
        to: str | Iterable[str] = PUBLIC,
        using: str | None = None,
        with_check: str | None = None,
        restrictive: bool = False,
    ) -> None:
        table_schema, table_name = relation_name(table, schema)
        values: dict[str, Any] = {
            "name": check_name("a policy's name", name),
            "table": table_name,
            "schema": table_schema,
            "for_": for_.upper(),
            "to": read_roles(to),
            "using": using,
            "with_check": with_check,
            "restrictive": restrictive,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)
        self._check()

    def _check(self) -> None:
        if self.for_ not in get_args(Command):
            raise AppConfigError(
                f"policy {self.name!r} is for {self.for_!r}; say one of {get_args(Command)}"
            )
        unfit = {"INSERT": self.using, "SELECT": self.with_check, "DELETE": self.with_check}
        if unfit.get(self.for_) is not None:
            clause = "using" if self.for_ == "INSERT" else "with_check"
            raise AppConfigError(
                f"policy {self.name!r} is for {self.for_}, which has no {clause!r}; leave it out"
            )
        for predicate in (self.using, self.with_check):
            if predicate is not None and not predicate.strip():
                raise AppConfigError(
                    f"policy {self.name!r} has an empty predicate; write one, or leave it out"
                )


@dataclass(frozen=True, init=False, repr=False)
class Grant(_Readable):
    """Privileges of one role on one object.

    Args:
        privileges: such as ``"SELECT"`` or ``("SELECT", "INSERT")``; ``"ALL"`` for REVOKE, and
            ``()`` to say that the role has none.
        on: the object's name, or the `Table` or mapped class itself.
        schema: of the object; None is the default schema. A schema itself has none.
        to: the role; PUBLIC is every role.
        kind: what the object is: TABLE (views included), SEQUENCE, SCHEMA or DATABASE.
        column: the object is the sequence behind this column of the table `on`, whatever
            PostgreSQL called it. Makes `kind` a SEQUENCE.
        columns: name or names of the columns of the table that the privileges are on; ``()``
            is the table as a whole.
        grantable: not the privileges, but that the role may give them to others: WITH GRANT
            OPTION. A GRANT of it gives the privileges too, a REVOKE leaves them.

    Raises:
        AppConfigError: a privilege that does not exist, a name that is blank or too long, or
            columns of what is no table.
    """

    privileges: tuple[str, ...]
    on: str
    schema: str | None = field(default=None, kw_only=True)
    to: str = field(kw_only=True)
    kind: GrantKind = field(default="TABLE", kw_only=True)
    column: str | None = field(default=None, kw_only=True)
    columns: tuple[str, ...] = field(default=(), kw_only=True)
    grantable: bool = field(default=False, kw_only=True)

    def __init__(
        self,
        privileges: str | Iterable[str],
        on: str | Table | type[Any],
        *,
        to: str,
        schema: str | None = None,
        kind: GrantKind = "TABLE",
        column: str | None = None,
        columns: str | Iterable[str] = (),
        grantable: bool = False,
    ) -> None:
        on_schema, name = relation_name(on, schema)
        given = (columns,) if isinstance(columns, str) else tuple(columns)
        values: dict[str, Any] = {
            "privileges": _read_privileges(privileges),
            "on": name,
            "schema": on_schema,
            "to": read_roles(to)[0],
            "kind": kind if column is None else "SEQUENCE",
            "column": column,
            "columns": tuple(check_name("a column's name", one) for one in given),
            "grantable": grantable,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)
        if self.columns and self.kind != "TABLE":
            raise AppConfigError(
                f"a grant on {name!r} is about a {self.kind}, which has no columns; leave "
                f"columns={given!r} out"
            )

    @property
    def whole(self) -> Grant:
        """All privileges of the role on the object, those on its columns among them."""
        return replace(self, privileges=("ALL",), columns=(), grantable=False)


class _Sorted(_Readable):
    """Keeps what it lists in one order, so that two of them compare as sets would."""

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]  # every heir is a dataclass
            if one.name in _ORDER:
                value = sorted(getattr(self, one.name), key=_ORDER[one.name])
                object.__setattr__(self, one.name, tuple(value))


@dataclass(frozen=True, repr=False)
class TableProtection(_Sorted):
    """What protects one table.

    Args:
        name: of the table.
        schema: of the table; None is the default schema.
        enabled: ENABLE ROW LEVEL SECURITY: policies hold everybody but the owner.
        forced: FORCE ROW LEVEL SECURITY: they hold the owner too.
        policies: on the table, sorted by their names.
        grants: on the table and on the sequences behind its columns, to others than the owner.
        indexed: columns that lead an index; of a declaration, those that have to.
        parents: schema and name of each table that has this one's rows too: the one that it is a
            partition of, or those that it inherits from.
        owner: who owns it; None of what is declared. It does not count when two are compared.
    """

    name: str
    schema: str | None = field(default=None, kw_only=True)
    enabled: bool = field(default=True, kw_only=True)
    forced: bool = field(default=True, kw_only=True)
    policies: tuple[Policy, ...] = field(default=(), kw_only=True)
    grants: tuple[Grant, ...] = field(default=(), kw_only=True)
    indexed: tuple[str, ...] = field(default=(), kw_only=True)
    parents: tuple[RelationName, ...] = field(default=(), kw_only=True)
    owner: str | None = field(default=None, kw_only=True, compare=False)

    @property
    def key(self) -> RelationName:
        """Schema and name."""
        return self.schema, self.name


@dataclass(frozen=True, repr=False)
class ViewProtection(_Sorted):
    """What protects the rows behind one view.

    Args:
        name: of the view.
        schema: of the view; None is the default schema.
        security_invoker: its tables are read with the rights of who reads the view. Otherwise
            with its owner's, whom policies may not hold.
        materialized: it is a copy, which no policy can protect.
        reads: schema and name of each relation that it reads.
        grants: to others than its owner.
    """

    name: str
    schema: str | None = field(default=None, kw_only=True)
    security_invoker: bool = field(default=True, kw_only=True)
    materialized: bool = field(default=False, kw_only=True)
    reads: tuple[RelationName, ...] = field(default=(), kw_only=True)
    grants: tuple[Grant, ...] = field(default=(), kw_only=True)

    @property
    def key(self) -> RelationName:
        """Schema and name."""
        return self.schema, self.name


@dataclass(frozen=True)
class Protection(_Sorted):
    """What protects the tables of some schemas, or of a metadata.

    Args:
        tables: sorted by schema and name.
        views: likewise.
        grants: on schemas, and on sequences that belong to no column.
    """

    tables: tuple[TableProtection, ...] = ()
    views: tuple[ViewProtection, ...] = ()
    grants: tuple[Grant, ...] = ()

    def table(self, name: str, schema: str | None = None) -> TableProtection | None:
        """Return what protects one table, or None where there is no such table."""
        return next((one for one in self.tables if one.key == (schema, name)), None)

    def view(self, name: str, schema: str | None = None) -> ViewProtection | None:
        """Return what protects one view, or None where there is no such view."""
        return next((one for one in self.views if one.key == (schema, name)), None)


def _place(thing: Any) -> tuple[str, ...]:
    return thing.schema or "", getattr(thing, "on", None) or thing.name


def _key(name: RelationName) -> tuple[str, str]:
    return name[0] or "", name[1]


_ORDER: dict[str, Callable[[Any], Any]] = {
    "policies": lambda policy: policy.name,
    "grants": lambda grant: (
        _KINDS.index(grant.kind),
        *_place(grant),
        grant.column or "",
        grant.columns,
        grant.to,
        grant.grantable,
    ),
    "indexed": str,
    "parents": _key,
    "reads": _key,
    "tables": _place,
    "views": _place,
}


def _read_privileges(privileges: str | Iterable[str]) -> tuple[str, ...]:
    given = [privileges] if isinstance(privileges, str) else privileges
    names = {one.upper() for one in given}
    if unknown := names.difference(_PRIVILEGES):
        raise AppConfigError(f"{min(unknown)!r} is no privilege; name some of {_PRIVILEGES}")
    return tuple(one for one in _PRIVILEGES if one in names)
