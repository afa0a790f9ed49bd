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

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import Transaction
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

    from mgf.fastapi.db._session import SessionDependency

# Transactions in which a statement failed.
_doubtful: WeakSet[Transaction] = WeakSet()


class TransactionAbortedError(OperationError):
    """Nothing was committed, since a statement had failed and its error was caught."""

    __module__ = "mgf.fastapi.db"


def note_failures(engine: AsyncEngine) -> None:
    """Make `committing` look twice at transactions in which a statement failed."""
    event.listen(engine.sync_engine, "handle_error", _note)


def _note(context: ExceptionContext) -> None:
    transaction = None if context.connection is None else context.connection.get_transaction()
    if transaction is not None:
        _doubtful.add(transaction)


@cache  # FastAPI knows a dependency again by its identity
def committing(get: SessionDependency) -> SessionDependency:
    """Return a dependency that yields another one's session, and commits it at the end.

    The commit happens when the endpoint has returned and its result is known to be valid, before
    the response is sent: a commit that fails is a 500, never a 200, and so is one that PostgreSQL
    turns into a rollback (`TransactionAbortedError`). Any exception rolls back,
    ``HTTPException`` included, and an error of another dependency; an error status that the
    endpoint returns as a response is no exception, and commits. What other dependencies did with
    the same session is part of the transaction. ::

        get_reports_transaction = committing(get_session_for("reports"))
        ReportsTransactionDep = Annotated[
            AsyncSession, Depends(get_reports_transaction, scope="function")
        ]

    Without ``scope="function"`` FastAPI refuses the endpoint: the commit would come after the
    response.

    Args:
        get: `get_session`, or what `get_session_for` or `scoped_session` returned.
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
        await _commit(session)

    return get_transaction


async def _commit(session: AsyncSession) -> None:
    """Commit, or raise: PostgreSQL answers COMMIT after a failed statement with a ROLLBACK.

    It is no error to it, and the drivers tell nobody.
    """
    if _doubtful and session.in_transaction():
        transaction = (await session.connection()).get_transaction()
        if transaction is not None and transaction.sync_transaction in _doubtful:
            try:
                await session.execute(text("SELECT 1"))
            except DBAPIError as exc:
                raise TransactionAbortedError(
                    "a statement of this transaction failed and its error was caught, so that "
                    "PostgreSQL rolls all of it back; put a statement whose failure you expect "
                    "into 'async with session.begin_nested():', or use INSERT ... ON CONFLICT"
                ) from exc
    await session.commit()


get_transaction = committing(get_session)

TransactionDep: TypeAlias = Annotated[AsyncSession, Depends(get_transaction, scope="function")]
