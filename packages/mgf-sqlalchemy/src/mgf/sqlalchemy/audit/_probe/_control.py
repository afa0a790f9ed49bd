"""A table that is open to everybody: an attack that does not succeed on it proves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.audit._probe._session import UNTOUCHED, explain
from mgf.sqlalchemy.audit._snapshot import Relation
from mgf.sqlalchemy.audit._sql import identifier

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mgf.sqlalchemy.audit._probe._outcome import Outcome
    from mgf.sqlalchemy.audit._probe._session import Session

SCHEMA: Final = "pg_temp"
COLUMN: Final = "tenant_id"
SETTINGS: Final = {"mgf_probe.open": ("on",)}
_NAME = "mgf_probe_open"
_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
_CREATE = f"""
    CREATE TEMPORARY TABLE {_NAME} (
        id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {COLUMN} uuid NOT NULL, note text
    )
"""


class NoControlError(Exception):
    """The open table could not be made, and this is why."""


def make_control(session: Session) -> Relation:
    """Make the open table, as the login or else as the role.

    Raises:
        NoControlError: neither may.
    """
    reason = ""
    for author in dict.fromkeys([session.login, session.role]):
        try:
            with session.trial(UNTOUCHED, role=author, keep=True):
                session.run(_CREATE)
                grantee = identifier(session.role)
                session.run(f"GRANT {', '.join(_PRIVILEGES)} ON pg_temp.{_NAME} TO {grantee}")
                oid = session.scalar(f"SELECT CAST('pg_temp.{_NAME}'::regclass AS oid)")
        except DBAPIError as error:
            reason = explain(error)
        else:
            return _relation(oid, author)
    raise NoControlError(
        f"the table that must be found open could not be made ({reason}); "
        f"GRANT TEMPORARY ON DATABASE to {session.role!r} or to the login"
    )


def _relation(oid: int, owner: str) -> Relation:
    return Relation(
        oid=oid,
        schema=SCHEMA,
        name=_NAME,
        sql=f"pg_temp.{_NAME}",
        kind="r",
        owner=owner,
        owner_exempt=False,
        enabled=False,
        forced=False,
        privileges=frozenset(_PRIVILEGES),
        public=frozenset(),
        columns={},
    )


def missed(outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Return the attacks that did not succeed on the open table, and the controls that failed."""
    return {
        name: one
        for name, one in outcomes.items()
        if one.result != ("held" if name.startswith("own-") else "leaked")
    }
