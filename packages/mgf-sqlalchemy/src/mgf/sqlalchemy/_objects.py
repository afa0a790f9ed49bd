"""Which objects a session holds, and changing them for others as one step."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, inspect
from sqlalchemy.exc import InvalidRequestError

from mgf.sqlalchemy._weak import WeakList

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Mapper, Session


class ObjectRefs(WeakList[object]):
    """Objects that were attached to a session at one moment.

    Weak, as the session's own identity map: what nobody else holds is loaded again when needed.
    """

    __slots__ = ()

    def attached_to(self, session: Session) -> list[object]:
        """Return those that the session still holds and that are stored in the database.

        Not those whose INSERT was rolled back and that were added again: nothing can be expired
        of them, and what was not flushed by the end of a scope is discarded.
        """
        new = session.new
        return [one for one in self.living() if one in session and one not in new]

    def detached(self) -> list[object]:
        """Return those that no session holds and that are stored in the database.

        Not those whose INSERT was rolled back (they would be inserted again) or that were
        deleted.
        """
        return [one for one in self.living() if _is_detached(one)]


NO_OBJECTS = ObjectRefs()


def _is_detached(one: object) -> bool:
    state: Any = inspect(one)
    return bool(state.detached and not state.was_deleted)


def detach_all(session: Session) -> None:
    """Detach everything from a session.

    Never object by object: a result that is still being read would go on filling the identity
    map with what it was opened for. ``expunge_all()`` gives the session a new map.
    """
    session.expunge_all()


def attach_only(session: Session, objects: list[object]) -> None:
    """Attach just these objects to a session that holds none."""
    if not objects:
        return
    try:
        transaction = None if session.in_transaction() else session.begin()
    except InvalidRequestError:
        return  # the session was closed for good: there is nothing to come back to
    try:
        session.add_all(objects)
        wanted = {id(one) for one in objects}
        for one in list(session):
            # It came along by a relationship's cascade, and may leave by another one's.
            if id(one) not in wanted and one in session:
                session.expunge(one)
    finally:
        if transaction is not None:
            transaction.close()


def forget_derived(session: Session, objects: Iterable[object]) -> None:
    """Let attached objects forget what another tenant's rows may have gone into.

    That is what was loaded through a relationship, and columns that are computed by a query. An
    object of no tenant carries them from one scope into the next.
    """
    for one in objects:
        state: Any = inspect(one)
        mapper: Mapper[Any] = state.mapper
        derived = _derived(mapper, len(mapper.attrs))
        names = [name for name in derived if name in state.dict]
        if names:
            session.expire(one, names)


@cache
def _derived(mapper: Mapper[Any], _count: int) -> tuple[str, ...]:
    # By how many attributes there are: one may come later, by a backref of another class.
    computed = [
        attribute.key
        for attribute in mapper.column_attrs
        if not all(isinstance(column, Column) for column in attribute.columns)
    ]
    return (*mapper.relationships.keys(), *computed)
