"""Names of relations and roles, as they are and never quoted."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import Table

from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

# Schema and name.
RelationName: TypeAlias = tuple[str | None, str]

PUBLIC: Final = "PUBLIC"

# PostgreSQL's NAMEDATALEN - 1, in bytes: what is longer is cut, with no more than a notice.
_MAX_BYTES = 63


def relation_name(thing: str | Table | type[Any], schema: str | None = None) -> RelationName:
    """Return schema and name of a table that is given by itself, its class or its name."""
    if isinstance(thing, str):
        return schema, check_name("a table's name", thing)
    table = table_of(thing)
    return schema or table.schema, table.name


def table_of(thing: Table | type[Any]) -> Table:
    """Return the table, or that of a mapped class.

    Raises:
        AppConfigError: `thing` is neither, or its class is not mapped (yet).
    """
    table: Table | None = thing if isinstance(thing, Table) else getattr(thing, "__table__", None)
    if not isinstance(table, Table):
        raise AppConfigError(
            f"{thing!r} is no Table, and no mapped class that has one; declare the mapped class, "
            "not its base or mixin, and put this decorator above the one that maps it"
        )
    return table


def check_name(what: str, name: str) -> str:
    """Return a name that PostgreSQL keeps as it is, or raise AppConfigError."""
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise AppConfigError(f"{what} is {name!r}; give it one that is not blank")
    if len(name.encode()) > _MAX_BYTES:
        raise AppConfigError(
            f"{what} is {name!r}, which PostgreSQL would cut after {_MAX_BYTES} bytes, where it "
            "may be another's; give it a shorter one"
        )
    return name


def shorten_to_bytes(name: str) -> str:
    """Return a name that was too long so that PostgreSQL keeps it, and apart from others."""
    encoded = name.encode()
    if len(encoded) <= _MAX_BYTES:
        return name
    digest = hashlib.blake2b(encoded, digest_size=2).hexdigest()
    return f"{encoded[: _MAX_BYTES - 5].decode(errors='ignore')}_{digest}"


def read_roles(roles: str | Iterable[str]) -> tuple[str, ...]:
    """Return each role once, sorted; PUBLIC alone where it is among them, as PostgreSQL does."""
    given = [roles] if isinstance(roles, str) else roles
    names = {PUBLIC if one.upper() == PUBLIC else check_name("a role's name", one) for one in given}
    if not names:
        raise AppConfigError("no role was named; name at least one, or 'PUBLIC' for all")
    return (PUBLIC,) if PUBLIC in names else tuple(sorted(names))
