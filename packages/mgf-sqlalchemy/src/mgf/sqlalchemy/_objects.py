"""Which objects a session holds, and changing them for others as one step."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect
from sqlalchemy.exc import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Session


class ObjectRefs:
    """Objects that were attached to a session at one moment.

    Weak, as the session's own identity map: what nobody else holds is loaded again when needed.
    """

    def __init__(self, objects: Iterable[object] = ()) -> None:
        self._refs = [weakref.ref(one) for one in objects]

    def attached_to(self, session: Session) -> list[object]:
        """Return those that the session still holds."""
        return [one for one in self._living() if one in session]

    def detached(self) -> list[object]:
        """Return those that no session holds and that are stored in the database.

        Not those whose INSERT was rolled back (they would be inserted again) or that were
        deleted.
        """
        return [one for one in self._living() if _is_detached(one)]

    def _living(self) -> list[object]:
        return [one for ref in self._refs if (one := ref()) is not None]


def _is_detached(one: object) -> bool:
    state: Any = inspect(one)
    return bool(state.detached and not state.was_deleted)


def hold_only(session: Session, objects: list[object]) -> None:
    """Detach everything from a session, then attach just these objects.

    Never object by object: a result that is still being read would go on filling the identity
    map with what it was opened for. ``expunge_all()`` gives the session a new map.
    """
    session.expunge_all()
    if not objects:
        return
    try:
        transaction = None if session.in_transaction() else session.begin()
    except InvalidRequestError:
        return  # the session was closed for good: there is nothing to come back to
    session.add_all(objects)
    wanted = {id(one) for one in objects}
    for one in list(session):
        if id(one) not in wanted:  # came along by a relationship's cascade
            session.expunge(one)
    if transaction is not None:
        transaction.close()
