"""What there is, and what it is held to: the start of an audit and of a probe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.audit._catalog import read_snapshot
from mgf.sqlalchemy.audit._subject import expect
from mgf.sqlalchemy.rls._declaration import tenant_columns
from mgf.sqlalchemy.rls._scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection, MetaData

    from mgf.sqlalchemy.audit._finding import Finding, NotProven
    from mgf.sqlalchemy.audit._subject import Expectation

# Seconds. What waits longer for a lock would hold up the application behind it; to print a policy
# takes a lock on its table, for which this waits while somebody alters it. More than PostgreSQL's
# default deadlock_timeout, 1 s: not before has an autovacuum at work been asked to give way.
LOCK_TIMEOUT: Final = 2.0

# Names that are not on the path are written in full.
_PREPARE = text(
    "SELECT set_config('search_path', '', true), set_config('lock_timeout', :lock, true)"
)
_WRITABLE = text(
    "SELECT pg_is_in_recovery() AS is_standby,"
    " current_setting('transaction_read_only') = 'on' AS is_read_only"
)


def refuse_read_only(connection: Connection) -> None:
    """Refuse a transaction in which no row can be put in, so that a probe shows nothing.

    Raises:
        AppConfigError: the server is a standby, or the transaction is read-only.
    """
    there = connection.execute(_WRITABLE).one()
    if there.is_standby:
        raise AppConfigError(
            "this server is a standby, where nothing can be written, and the probe has to put rows "
            "in; probe the primary, whose policies are the same"
        )
    if there.is_read_only:
        raise AppConfigError(
            "this transaction is read-only, and the probe has to put rows in; connect without "
            "default_transaction_read_only, or begin one that is not"
        )


def look(
    connection: Connection,
    *,
    role: str | None,
    metadata: MetaData | None,
    tenant_column: str,
    setting: str,
) -> Expectation:
    """Return what the catalogs say, and whose rows each relation has."""
    with scratch(connection):
        connection.execute(_PREPARE, {"lock": milliseconds(LOCK_TIMEOUT)})
        snapshot = read_snapshot(
            connection,
            role=role,
            setting=setting,
            columns=[tenant_column, *(() if metadata is None else tenant_columns(metadata))],
        )
    # On the path that was: the metadata's predicates name its tables without a schema.
    return expect(
        connection, snapshot, metadata=metadata, tenant_column=tenant_column, setting=setting
    )


def milliseconds(seconds: float) -> str:
    """Return a time as PostgreSQL's settings take it."""
    return f"{seconds * 1000:.0f}"


def check_reasons(ignore: Mapping[str, str] | None) -> dict[str, str]:
    """Return what is to be left out, each with its reason.

    Raises:
        AppConfigError: a reason is blank.
    """
    reasons = dict(ignore or {})
    for name, reason in reasons.items():
        if not reason.strip():
            raise AppConfigError(f"{name!r} is ignored without a reason; say why it may stay")
    return reasons


def is_ignored(names: Iterable[str], reasons: Mapping[str, str], ignored: dict[str, str]) -> bool:
    """Say whether something is left out under one of its names, and note why."""
    found = {name: reasons[name] for name in names if name in reasons}
    ignored.update(found)
    return bool(found)


def names_of(one: Finding | NotProven, id_: str) -> tuple[str, str]:
    """Return the names under which something may be left out."""
    return id_, f"{id_} {one.object}"
