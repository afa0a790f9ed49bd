"""The database that an application has for the length of its lifespan."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from mgf.common.exceptions import AppConfigError
from mgf.fastapi.db._databases import engine_key, sessionmaker_key
from mgf.fastapi.db._ended import EndingSession
from mgf.fastapi.db._finish import finish
from mgf.fastapi.db._startup import StartUp
from mgf.fastapi.db._transaction import refuse_aborted_commits
from mgf.sqlalchemy import create_engine, create_sessionmaker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from contextlib import AbstractAsyncContextManager

    from fastapi import FastAPI
    from sqlalchemy import URL, MetaData

    from mgf.fastapi.db._startup import MigrationCheck


def setup_db(
    app: FastAPI,
    *,
    database_url: str | URL,
    require_tenant: bool = False,
    name: str | None = None,
    wait: float = 0,
    require_rls: bool | MetaData = False,
    check_migrations: MigrationCheck | None = None,
    **engine_kwargs: Any,
) -> AbstractAsyncContextManager[Mapping[str, Any]]:
    """Give an application a database for the length of its lifespan.

    Sets ``app.state.mgf_db_engine`` and ``app.state.mgf_db_sessionmaker``; at the end, also
    after an error or a cancellation, disposes the engine and removes both. It can be entered
    again afterwards. ::

        @asynccontextmanager
        async def lifespan(app):
            async with setup_db(app, database_url=settings.database_url) as state:
                yield state

    What the block gets is the lifespan's state: yielded, it lets mounted sub-applications find
    the database. Nothing is connected before the first use, unless one of `wait`, `require_rls`
    and `check_migrations` is given: then the application does not serve before they hold.

    A commit that PostgreSQL would turn into a rollback, since a statement had failed and its error
    was caught, raises `TransactionAbortedError`.

    Args:
        app: the application.
        database_url: as for `mgf.sqlalchemy.create_engine`.
        require_tenant: as for `mgf.sqlalchemy.create_sessionmaker`.
        name: an identifier, for a database beside the unnamed one (`get_session_for`). Its
            attributes are ``mgf_db_<name>_engine`` and ``mgf_db_<name>_sessionmaker``.
        wait: seconds in which the database has to be ready, all attempts and checks included. As
            long as it is refused, lost, starting or has no connection left, another attempt
            follows, 0.1 to 5 seconds later; anything else, like a wrong password, ends the start
            at once. 0: one attempt, without a limit.
        require_rls: do not serve unless row-level security holds, see
            `mgf.sqlalchemy.audit.require_rls`, which a metadata is handed on to.
        check_migrations: do not serve unless this says, asked with a connection of the engine,
            that migrations are at head; for one,
            ``lambda connection: mgf.alembic.is_at_head("alembic.ini", connection=connection)``.
        engine_kwargs: go to `mgf.sqlalchemy.create_engine`.

    Raises:
        AppConfigError: the application has this database already, or the URL or name cannot work.
        DatabaseNotReadyError: it was not ready in time, or its migrations are not at head.
        RlsNotActiveError: row-level security does not hold the role of the URL.
    """
    start_up = StartUp(wait, require_rls, check_migrations)
    return _setup_db(app, name, database_url, require_tenant, start_up, engine_kwargs)


@asynccontextmanager
async def _setup_db(
    app: FastAPI,
    name: str | None,
    database_url: str | URL,
    require_tenant: bool,
    start_up: StartUp,
    engine_kwargs: dict[str, Any],
) -> AsyncGenerator[Mapping[str, Any]]:
    if hasattr(app.state, engine_key(name)):
        called = "a database" if name is None else f"a database of the name {name!r}"
        raise AppConfigError(
            f"{app!r} has {called} already: setup_db() is active; enter it once for each name, "
            "and again only after its block has ended"
        )
    engine = create_engine(database_url, **engine_kwargs)
    refuse_aborted_commits(engine)
    sessionmaker = create_sessionmaker(
        engine, require_tenant=require_tenant, sync_session_class=EndingSession
    )
    state = {engine_key(name): engine, sessionmaker_key(name): sessionmaker}
    for key, value in state.items():
        setattr(app.state, key, value)
    try:
        await start_up.check(engine)
        yield state
    finally:
        for key in state:
            # Whoever removed it before: the engine is disposed all the same.
            with suppress(AttributeError, KeyError):
                delattr(app.state, key)
        await finish(engine.dispose())
