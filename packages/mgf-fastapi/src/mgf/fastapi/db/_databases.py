"""Where an application's databases are kept, and how a request finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection


def engine_key(name: str | None) -> str:
    """Return the attribute of ``app.state`` that holds a database's engine."""
    return f"mgf_db_{_part(name)}engine"


def sessionmaker_key(name: str | None) -> str:
    """Return the attribute of ``app.state`` that holds a database's session factory."""
    return f"mgf_db_{_part(name)}sessionmaker"


def sessionmaker_of_app(app: Starlette, name: str | None) -> async_sessionmaker[AsyncSession]:
    """Return the session factory that `setup_db` made for an application."""
    return _find([app.state], name)


def sessionmaker_of_connection(
    connection: HTTPConnection, name: str | None
) -> async_sessionmaker[AsyncSession]:
    """Return the session factory of the application that serves a request or WebSocket.

    In a mounted sub-application, ``connection.app`` is that one; what the parent's lifespan
    yielded is in ``connection.state`` there as well.
    """
    # A stand-in for a request needs no state of its own.
    return _find([connection.app.state, getattr(connection, "state", None)], name)


def _find(states: list[Any], name: str | None) -> async_sessionmaker[AsyncSession]:
    key = sessionmaker_key(name)
    for state in states:
        sessionmaker: async_sessionmaker[AsyncSession] | None = getattr(state, key, None)
        if sessionmaker is not None:
            return sessionmaker
    which = "no database" if name is None else f"no database of the name {name!r}"
    arguments = "app, database_url=..." if name is None else f"app, name={name!r}, ..."
    raise AppConfigError(
        f"this application has {which}: enter setup_db({arguments}) in its lifespan, and make "
        "sure that the lifespan runs (httpx.ASGITransport runs none). A mounted sub-application "
        "finds its parent's when the parent's lifespan yields what setup_db gives: "
        f"'async with setup_db({arguments}) as state: yield state'"
    )


def _part(name: str | None) -> str:
    if name is None:
        return ""
    if not name.isidentifier():
        raise AppConfigError(
            f"a database's name becomes part of an attribute's, so it has to be an identifier "
            f"like 'reports', not {name!r}"
        )
    return f"{name}_"
