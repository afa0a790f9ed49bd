"""One migrator at a time: a lock of PostgreSQL, held by a transaction of its own.

Waiting inside PostgreSQL, in ``pg_advisory_lock()``, would be a transaction that CREATE INDEX
CONCURRENTLY of the one who migrates waits for in its turn. So this asks again and again, and ends
its transaction in between. The one that holds the lock stays open, and has no snapshot that others
could wait for. Outside a transaction, a pooler would keep the lock when its client has gone.
"""

from __future__ import annotations

import hashlib
import logging
import random
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from mgf.alembic._stop import pause
from mgf.alembic.errors import MigrationLockError
from mgf.sqlalchemy.errors import is_transient

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy import Connection

logger = logging.getLogger("mgf.alembic")

# Seconds. Between them many waiters spread out, and one more statement a second harms nobody.
_POLL = (0.1, 0.5)
_REMIND = 10.0

_TWO_AT_ONCE = (
    "beside the one that holds the lock against other migrators, and needs two at once; migrate "
    "over a direct connection, let the pooler have more server connections, or turn the lock off "
    "(migrator_timeout=None) where nobody else migrates"
)

# Lets the connection rest: servers may end idle sessions, networks forget them (keepalives every
# minute, of which a socket knows none), and whoever waits reads the name.
_SETTINGS = text("""
    SELECT set_config(name, value, false)
    FROM pg_settings JOIN (VALUES
        ('application_name', CAST(:application_name AS text)),
        ('idle_session_timeout', '0'),
        ('tcp_keepalives_idle', '60')
    ) AS wanted (name, value) USING (name)
    WHERE name <> 'application_name' OR setting = ''
""")
# Let the transaction that holds the lock rest as well, and no other: a pooler may lend the server
# process to an application next.
_TRANSACTION_MAY_LAST = text(
    "SELECT set_config(name, '0', true) FROM pg_settings WHERE name = 'transaction_timeout'"
)
# The last statement before a rest: what a query has read keeps its snapshot until the next one
# comes, and a setting needs none.
_REST = "SET LOCAL idle_in_transaction_session_timeout = 0"
# How PostgreSQL shows the lock of one bigint: https://www.postgresql.org/docs/current/view-pg-locks.html
_HOLDERS = """
    FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND classid = {0} AND objid = {1}
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class MigratorLock:
    """The lock of one version table, for as long as its transaction is open.

    Args:
        connection: in READ COMMITTED, used for nothing else.
        version_table: the name, with its schema if that was given.
    """

    def __init__(self, connection: Connection, version_table: str) -> None:
        self._connection = connection
        self._table = version_table
        database = connection.scalar(text("SELECT current_database()"))
        # Every process has to find the same number, so this may never change.
        digest = hashlib.blake2b(f"{database}\0{version_table}".encode(), digest_size=8).digest()
        self._key = int.from_bytes(digest, signed=True)
        number = int.from_bytes(digest)
        self._holders = _HOLDERS.format(number >> 32, number & 0xFFFFFFFF)

    def acquire(self, timeout: float) -> None:
        """Wait until nobody else holds the lock.

        Raises:
            MigrationLockError: somebody else still did after so many seconds.
        """
        started = time.monotonic()
        remind = 0.0
        while not self._scalar(f"SELECT pg_try_advisory_xact_lock({self._key})"):
            waited = time.monotonic() - started
            if waited >= timeout:
                raise MigrationLockError(
                    f"{self._holder()} still migrates (table {self._table!r}) after "
                    f"migrator_timeout={timeout} s; wait longer, or look what keeps it: "
                    "pg_stat_activity and pg_blocking_pids(pid) tell"
                )
            if waited >= remind:
                level = logging.WARNING if remind else logging.INFO
                logger.log(level, "waiting for %s, which migrates: %.0f s", self._holder(), waited)
                remind += _REMIND
            self.release()
            # Spreads load, hides nothing.
            pause(self._connection, min(random.uniform(*_POLL), timeout - waited))  # noqa: S311
        self._connection.execute(_TRANSACTION_MAY_LAST)
        self._connection.exec_driver_sql(_REST)

    def verify(self, **_: Any) -> None:
        """Make sure that the lock is still held, before a step commits.

        Raises:
            MigrationLockError: the connection was lost, and the lock with it.
        """
        cause: DBAPIError | None = None
        try:
            if self._scalar(f"SELECT count(*) {self._holders} AND pid = pg_backend_pid()"):
                self._connection.exec_driver_sql(_REST)
                return
        except DBAPIError as error:
            cause = error
        raise MigrationLockError(
            "the connection that held the lock against other migrators was lost, so this step was "
            "rolled back; run the command again"
        ) from cause

    def release(self) -> None:
        self._connection.rollback()

    def _holder(self) -> str:
        row = self._connection.exec_driver_sql(
            f"SELECT pid, application_name, client_addr {self._holders}"
        ).first()
        if row is None:  # it has just let go
            return "another process"
        place = f" from {row.client_addr}" if row.client_addr else ""
        return f"server process {row.pid} ({row.application_name or 'unnamed'}{place})"

    def _scalar(self, statement: str) -> object:
        return self._connection.exec_driver_sql(statement).scalar()


@contextmanager
def hold_lock(
    connection: Connection, version_table: str, timeout: float
) -> Generator[MigratorLock]:
    """Keep other migrators of this version table off, waiting so many seconds for them first."""
    # In REPEATABLE READ the transaction would have a snapshot for as long as it lives.
    connection.execution_options(isolation_level="READ COMMITTED")
    name = f"mgf-alembic on {socket.gethostname()}"
    connection.execute(_SETTINGS, {"application_name": name})
    connection.commit()
    lock = MigratorLock(connection, version_table)
    lock.acquire(timeout)
    yield lock
    # After an error the end of the connection does it, of which the server needs no answer.
    lock.release()


@contextmanager
def second_connection(connection: Connection) -> Generator[Connection]:
    """Connect once more, beside the connection that holds the lock.

    Raises:
        MigrationLockError: a pooler let it wait for a server connection, and then hung up, or the
            server had no other one.
    """
    message = f"the migration waits for a connection {_TWO_AT_ONCE}"
    reminder = threading.Timer(_REMIND, logger.warning, [message])
    reminder.daemon = True
    with ExitStack() as stack:
        try:
            reminder.start()
            # Some drivers send their first statement while they connect.
            other = stack.enter_context(connection.engine.connect())
            other.exec_driver_sql("SELECT 1")
            other.rollback()
        except DBAPIError as error:
            if not (error.connection_invalidated or is_transient(error)):
                raise
            raise MigrationLockError(f"the migration got no connection {_TWO_AT_ONCE}") from error
        finally:
            reminder.cancel()
        yield other
