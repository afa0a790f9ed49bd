"""Sessions whose work is committed when the endpoint has returned, before the response is sent."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, TypeAlias

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession

from mgf.fastapi.db._session import get_session

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from mgf.fastapi.db._session import SessionDependency


@cache  # FastAPI knows a dependency again by its identity
def committing(get: SessionDependency) -> SessionDependency:
    """Return a dependency that yields another one's session, and commits it at the end.

    The commit happens when the endpoint has returned and its result is known to be valid, before
    the response is sent: a commit that fails is a 500, never a 200. Any exception rolls back,
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
            await session.rollback()
            raise
        await session.commit()

    return get_transaction


get_transaction = committing(get_session)

TransactionDep: TypeAlias = Annotated[AsyncSession, Depends(get_transaction, scope="function")]
