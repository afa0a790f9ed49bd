"""Sessions whose work is committed when the endpoint has returned, before the response is sent."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Annotated, TypeAlias
from weakref import WeakSet

from fastapi import Depends
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from mgf.common.exceptions import OperationError
from mgf.fastapi.db._session import get_session
from mgf.sqlalchemy.errors import sqlstate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import Connection, Transaction
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

    from mgf.fastapi.db._session import SessionDependency

_IN_FAILED_TRANSACTION = "25P02"

# Transactions in which a statement failed.
_doubtful: WeakSet[Transaction] = WeakSet()


class TransactionAbortedError(OperationError):
    """Nothing was committed, since a statement had failed and its error was caught."""

    __module__ = "mgf.fastapi.db"


def refuse_aborted_commits(engine: AsyncEngine) -> None:
    """Let a commit that PostgreSQL would turn into a rollback raise `TransactionAbortedError`.

    It answers the COMMIT after a failed statement with ROLLBACK. That is no error to it, and the
    drivers tell nobody. Nothing is asked of it unless a statement failed.
    """
    event.listen(engine.sync_engine, "handle_error", _note)
    event.listen(engine.sync_engine, "commit", _refuse_aborted)


def _note(context: ExceptionContext) -> None:
    transaction = None if context.connection is None else context.connection.get_transaction()
    if transaction is not None:
        _doubtful.add(transaction)


def _refuse_aborted(connection: Connection) -> None:
    if not _doubtful or connection.get_transaction() not in _doubtful:
        return
    # A savepoint may have undone the failure, and of the drivers only psycopg would know.
    try:
        connection.execute(text("SELECT 1"))
    except DBAPIError as exc:
        # After a commit that failed SQLAlchemy sends no rollback of its own.
        if not connection.invalidated:
            connection.dialect.do_rollback(connection.connection)
        if sqlstate(exc) != _IN_FAILED_TRANSACTION:
            raise
        raise TransactionAbortedError(
            "a statement of this transaction failed and its error was caught, so that "
            "PostgreSQL rolls all of it back; put a statement whose failure you expect "
            "into 'async with session.begin_nested():', or use INSERT ... ON CONFLICT"
        ) from exc


@cache  # FastAPI knows a dependency again by its identity
def committing(get: SessionDependency) -> SessionDependency:
    """Return a dependency that yields another one's session, and commits it at the end.

    The commit happens when the endpoint has returned and its result is known to be valid, before
    the response is sent: a commit that fails is a 500, never a 200, and so is one that PostgreSQL
    turns into a rollback (`TransactionAbortedError`). Any exception rolls back,
    ``HTTPException`` included, and an error of a dependency that began after it; an error status
    that the endpoint returns as a response is no exception, and commits. What other dependencies
    did with the same session is part of the transaction. ::

        get_reports_transaction = committing(get_session_for("reports"))
        ReportsTransactionDep = Annotated[
            AsyncSession, Depends(get_reports_transaction, scope="function")
        ]

    Without ``scope="function"`` FastAPI refuses the endpoint: the commit would come after the
    response.

    Args:
        get: `get_session`, or what `get_session_for` or `tenant_session_from` returned.
    """

    async def get_transaction(
        session: AsyncSession = Depends(get, scope="function"),
    ) -> AsyncGenerator[AsyncSession]:
        """Yield a session, and commit it before the response is sent; for ``Depends``."""
        try:
            yield session
        except BaseException:
            # What was raised tells more than a connection that is lost; closing it rolls back too.
            with suppress(SQLAlchemyError):
                await session.rollback()
            raise
        await session.commit()

    return get_transaction


get_transaction = committing(get_session)

TransactionDep: TypeAlias = Annotated[AsyncSession, Depends(get_transaction, scope="function")]
