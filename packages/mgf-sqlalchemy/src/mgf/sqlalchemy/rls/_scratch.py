"""A part of a transaction that leaves nothing behind."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import text

from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy import Connection

# Names that are not on the path are written in full, whatever the path was.
EMPTY_SEARCH_PATH = text("SET LOCAL search_path = ''")


def is_autocommit(connection: Connection) -> bool:
    """Say whether each statement of a connection is a transaction of its own."""
    return connection.dialect.detect_autocommit_setting(
        # The type is Optional for connections that were detached or closed.
        connection.connection.dbapi_connection  # type: ignore[arg-type]
    )


@contextmanager
def scratch(connection: Connection) -> Generator[None]:
    """Undo at the end of the block what it did: a savepoint, or a transaction of its own.

    Raises:
        AppConfigError: the connection is in AUTOCOMMIT, where nothing can be undone, or its
            database is not PostgreSQL.
    """
    if connection.dialect.name != "postgresql":
        raise AppConfigError(
            f"row-level security is PostgreSQL's; this connection's database is "
            f"{connection.dialect.name!r}"
        )
    if is_autocommit(connection):
        raise AppConfigError(
            "this connection is in AUTOCOMMIT, where what was tried cannot be undone; use one "
            "with another isolation level"
        )
    transaction = connection.begin_nested() if connection.in_transaction() else connection.begin()
    try:
        yield
    finally:
        transaction.rollback()
