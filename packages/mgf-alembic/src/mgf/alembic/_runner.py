"""Run what Alembic was called for: on a connection, and safely where it changes revisions."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from alembic import context
from alembic.util import CommandError

from mgf.alembic._lock import hold_lock, second_connection
from mgf.alembic._progress import Progress
from mgf.alembic._retry import Transactions, backoff
from mgf.alembic._silent import warn_when_silent
from mgf.alembic._stop import interruptible, pause
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.errors import sqlstate

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sqlalchemy import Connection

logger = logging.getLogger("mgf.alembic")


@dataclass(frozen=True)
class Limits:
    """How long to wait for other migrators and for locks, in seconds, and how often to retry."""

    migrator_timeout: float | None
    lock_timeout: float | None
    lock_retries: int | None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value >= 0:  # nan is neither
                raise AppConfigError(
                    f"configure_env() got {name}={value!r}; give 0 or more, or None"
                )


def run(dialect: str, options: Mapping[str, Any], progress: Progress | None = None) -> None:
    """Run the command once, with what `alembic.context.configure` is to be given."""
    settings: dict[str, Any] = {
        "render_as_batch": dialect == "sqlite",
        "transaction_per_migration": True,
        **options,
    }
    if progress is None:
        context.configure(**settings)
        with context.begin_transaction():
            context.run_migrations()
        return
    connection = settings["connection"]
    is_ours = not connection.in_transaction()
    context.configure(**_with_callbacks(settings, progress.end_step))
    migrations = context.get_context()
    steps = _steps_from(() if migrations.purge else migrations.get_current_heads())
    with warn_when_silent(connection), progress.over(steps), context.begin_transaction():
        context.run_migrations()
    if is_ours:
        # Where a migration committed by itself, what followed is in a transaction that Alembic
        # knows nothing of.
        connection.commit()


def run_on(connection: Connection, options: Mapping[str, Any]) -> None:
    """Run the command on a connection as it is."""
    progress = Progress() if _changes_revisions() else None
    run(connection.dialect.name, {"connection": connection, **options}, progress)


def run_alone(connection: Connection, options: Mapping[str, Any], limits: Limits) -> None:
    """Run the command on a new connection, and while it changes revisions keep others off.

    The connection serves for the lock, or as the only one where none is needed.
    """
    if connection.dialect.name != "postgresql" or not _changes_revisions():
        with interruptible(connection):
            run_on(connection, options)
    elif limits.migrator_timeout is None:
        _run_with_retries(connection, options, limits)
    else:
        schema, table = options.get("version_table_schema"), options.get("version_table")
        name = ".".join(filter(None, (schema, table or "alembic_version")))
        with (
            hold_lock(connection, name, limits.migrator_timeout) as lock,
            second_connection(connection) as other,
        ):
            _run_with_retries(other, _with_callbacks(options, lock.verify), limits)


def _run_with_retries(connection: Connection, options: Mapping[str, Any], limits: Limits) -> None:
    transactions = Transactions(connection, limits.lock_timeout)
    options = _with_callbacks({"connection": connection, **options}, transactions.end_step)
    progress = Progress()
    with interruptible(connection):
        for seconds in backoff(limits.lock_retries or 0):
            try:
                return run("postgresql", options, progress)
            except Exception as error:
                if not transactions.may_retry(error) or not _does_rest(progress):
                    raise
                logger.warning(
                    "a migration got no lock in time (%s), the next try follows in %.1f s",
                    sqlstate(error),
                    seconds,
                )
            connection.rollback()
            pause(connection, seconds)
        return run("postgresql", options, progress)


def _does_rest(progress: Progress) -> bool:
    """Say whether another try would do what is left, and not more, as with "+2" after one step."""
    if progress.heads is None:
        return True
    try:
        return progress.is_continued_by(_steps_from(progress.heads))
    except CommandError:
        return False


def _changes_revisions() -> bool:
    """Say whether the command has a destination, as upgrade, downgrade and stamp have."""
    try:
        context.get_revision_argument()
    except (AttributeError, KeyError, NameError):  # none, or a test replaced Alembic's functions
        return False
    return True


def _steps_from(heads: Collection[str]) -> list[str]:
    """Ask the command's function, which EnvironmentContext documents, for its steps in advance."""
    migrations = context.get_context()
    return [str(step) for step in migrations.opts["fn"](tuple(heads), migrations)]


def _with_callbacks(options: Mapping[str, Any], callback: Callable[..., None]) -> dict[str, Any]:
    """Add what is called after each step, before it commits."""
    given = options.get("on_version_apply") or ()
    before = (given,) if callable(given) else tuple(given)
    return {**options, "on_version_apply": (*before, callback)}
