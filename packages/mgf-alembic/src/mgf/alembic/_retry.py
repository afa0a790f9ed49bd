"""A short wait for locks, and another try: a migration that waits stops all traffic behind it."""

from __future__ import annotations

import math
import random
import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.errors import sqlstate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

# PostgreSQL, appendix A: lock_not_available, deadlock_detected.
_RETRIED = ("55P03", "40P01")

# Seconds: the first pause, and the longest. Ten of them are 2 to 3 minutes.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0

# What commits as a statement, of which SQLAlchemy knows nothing.
_COMMITS = re.compile(r"(?:^|;)\s*commit\b|^\s*end\b", re.IGNORECASE)


def backoff(retries: int) -> Iterator[float]:
    """Yield so many pauses in seconds, each about twice the last, so that migrators spread out."""
    for number in range(retries):
        # Spreads load, hides nothing.
        yield min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**number) * random.uniform(0.5, 1.0)  # noqa: S311


class Transactions:
    """Limits how long the transactions of a connection wait for locks, and watches them.

    Only transactions: what ran in an ``autocommit_block()`` stays when it fails. CREATE INDEX
    CONCURRENTLY, which waits for every older transaction but stops no traffic, would leave an
    invalid index behind.

    Args:
        connection: to PostgreSQL, with no transaction open.
        lock_timeout: in seconds. Where the URL or the role sets one, that stays.
    """

    def __init__(self, connection: Connection, lock_timeout: float | None) -> None:
        self._limit: str | None = None
        self._step_is_whole = True
        self._between_steps = False
        _end_statements_with_client(connection)
        if lock_timeout and connection.exec_driver_sql("SHOW lock_timeout").scalar() == "0":
            self._limit = f"SET LOCAL lock_timeout = {math.ceil(lock_timeout * 1000)}"
        connection.rollback()
        event.listen(connection, "begin", self._begin)
        event.listen(connection, "before_cursor_execute", self._execute)
        event.listen(connection, "commit", self._commit)

    def end_step(self, **_: Any) -> None:
        self._between_steps = True

    def may_retry(self, error: Exception) -> bool:
        """Say whether another try may help, and begins with the database as the step found it."""
        return self._step_is_whole and sqlstate(error) in _RETRIED

    def _begin(self, connection: Connection) -> None:
        if self._between_steps:
            self._between_steps, self._step_is_whole = False, True
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            self._step_is_whole = False
        elif self._limit is not None:
            connection.exec_driver_sql(self._limit)

    def _execute(self, _connection: Connection, _cursor: object, sql: str, *_: Any) -> None:
        self._between_steps = False  # in one transaction the next step begins without another
        if _COMMITS.search(sql):
            self._step_is_whole = False

    def _commit(self, _connection: Connection) -> None:
        if not self._between_steps:  # a migration commits by itself
            self._step_is_whole = False


def _end_statements_with_client(connection: Connection) -> None:
    """Let the server end a statement within a second after its client was killed.

    Otherwise it would go on, for hours perhaps, while the lock against other migrators is free.
    """
    try:
        connection.exec_driver_sql(
            "SELECT set_config(name, '1000', false) FROM pg_settings "
            "WHERE name = 'client_connection_check_interval' AND setting = '0'"
        )
        connection.commit()
    except DBAPIError:  # its operating system cannot tell, such as Windows
        connection.rollback()
