"""The search path of functions that run with other rights than their caller's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from mgf.sqlalchemy.audit._sql import identifier

if TYPE_CHECKING:
    from sqlalchemy import Row

    from mgf.sqlalchemy.audit._snapshot import Subject

_NAME: Final = re.compile(r'"((?:[^"]|"")*)"|([^,\s"]+)')
_TEMPORARY: Final = "pg_temp"


def pinned_path(subject: Subject, row: Row[Any]) -> str | None:
    """Return the path that a function should have, or None if its caller has no hand in its own.

    PostgreSQL looks for tables and types in the caller's temporary schema first, unless the path
    names it last.
    """
    settings = (one.partition("=") for one in row.proconfig or ())
    given = next((value for name, _, value in settings if name == "search_path"), None)
    if given is None:
        return f"pg_catalog, {_TEMPORARY}"
    names = [quoted.replace('""', '"') or plain for quoted, plain in _NAME.findall(given)]
    snapshot = subject.snapshot
    open_ = {
        one.nspname for one in snapshot.schemas if one.creators or one.owner in snapshot.reachable
    }
    kept = [
        one
        for one in names
        if one and one != _TEMPORARY and (row.owner if one == "$user" else one) not in open_
    ]
    is_temporary_first = (
        any(one != "pg_catalog" for one in kept)
        and names[-1] != _TEMPORARY
        and any(one.makes_temporary for one in snapshot.reachable.values())
    )
    if len(kept) == sum(one not in ("", _TEMPORARY) for one in names) and not is_temporary_first:
        return None
    return ", ".join(map(identifier, [*kept, _TEMPORARY]))
