"""The tenant is in force in every transaction of the block, and in none after it."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import event, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncResult,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from harness.tenants import NOTES, Invoice, tenant_in_force, visible
from mgf.sqlalchemy import (
    _state,
    create_engine,
    current_tenant,
    tenant_connection,
    tenant_scope,
    tenant_session,
)
from mgf.sqlalchemy.errors import TenantScopeError, sqlstate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from uuid import UUID

    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from harness.tenants import World

A, B = ["a1", "a2"], ["b1", "b2"]


async def test_the_block_sees_its_tenants_rows_alone(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a) as scoped:
        assert scoped is session
        assert await visible(session) == A
        assert current_tenant(session) == world.a
    assert current_tenant(session) is None


async def test_text_in_upper_case_without_dashes_is_the_same_tenant(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a.hex.upper()):
        assert await visible(session) == A
        assert await tenant_in_force(session) == world.a


async def test_query_after_commit(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a):
        assert await visible(session) == A
        await session.commit()
        assert await visible(session) == A
        await session.commit()
        assert await visible(session) == A


async def test_query_after_rollback(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a):
        assert await visible(session) == A
        await session.rollback()
        assert await visible(session) == A


async def test_refresh_after_commit(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a):
        invoice = await session.get_one(Invoice, world.ids["a1"])
        await session.commit()
        await session.refresh(invoice)
        assert invoice.note == "a1"


async def test_explicit_begin_blocks(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a):
        for _ in range(2):
            async with session.begin():
                assert await visible(session) == A


async def test_scope_inside_a_begin_block_that_ran_nothing(
    session: AsyncSession, world: World
) -> None:
    async with session.begin(), tenant_session(session, world.a):
        assert await visible(session) == A


async def test_scope_around_the_rest_of_an_open_transaction(
    session: AsyncSession, world: World
) -> None:
    assert await visible(session) == []
    async with tenant_session(session, world.a):
        assert await visible(session) == A
    assert await visible(session) == []
    assert await tenant_in_force(session) is None


async def test_leaving_sends_nothing_when_the_transaction_is_over(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        assert await visible(session) == A
        await session.commit()
    assert await visible(session) == []


FIRST_STATEMENTS = {
    "get": lambda session, world: session.get(Invoice, world.ids["b1"]),
    "scalar": lambda session, world: session.scalar(
        select(Invoice).where(Invoice.id == world.ids["b1"])
    ),
    "text": lambda session, world: session.scalar(
        text("SELECT note FROM invoice WHERE id = :id"), {"id": world.ids["b1"]}
    ),
}


@pytest.mark.parametrize("kind", FIRST_STATEMENTS)
async def test_the_first_statement_cannot_read_the_other_tenants_row(
    session: AsyncSession, world: World, kind: str
) -> None:
    async with tenant_session(session, world.a):
        assert await FIRST_STATEMENTS[kind](session, world) is None


async def test_streams_and_scalars_as_first_statement(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a):
        result = await session.stream_scalars(select(Invoice.note).order_by(Invoice.note))
        assert [note async for note in result] == A
        await session.commit()
        assert list(await session.scalars(select(Invoice.note).order_by(Invoice.note))) == A


async def test_a_bulk_insert_as_first_statement(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a):
        await session.execute(insert(Invoice), [{"note": f"bulk{n}"} for n in range(3)])
        await session.commit()
    assert await world.notes(world.a) == [*A, "bulk0", "bulk1", "bulk2"]


async def test_a_bulk_update_without_where_touches_one_tenants_rows(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        result = await session.execute(text("UPDATE invoice SET note = 'changed'"))
        await session.commit()
    assert result.rowcount == 2  # type: ignore[attr-defined]
    assert await world.notes(world.a) == ["changed", "changed"]
    assert await world.notes(world.b) == B


async def test_writing_for_the_other_tenant_is_refused(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a):
        with pytest.raises(DBAPIError, match="row-level security"):
            await session.execute(
                text("INSERT INTO invoice (tenant_id, note) VALUES (:tenant, 'planted')"),
                {"tenant": world.b},
            )
        await session.rollback()
    assert await world.notes(world.b) == B


async def test_an_error_in_a_savepoint_leaves_the_tenant_in_force(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        with pytest.raises(DBAPIError):
            async with session.begin_nested():
                await session.execute(text("SELECT 1/0"))
        assert await visible(session) == A


async def test_first_statement_inside_a_savepoint_that_rolls_back(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        savepoint = await session.begin_nested()
        assert await visible(session) == A
        await savepoint.rollback()
        assert await visible(session) == A


async def test_scope_entered_inside_a_savepoint_that_rolls_back(
    session: AsyncSession, world: World
) -> None:
    savepoint = await session.begin_nested()
    async with tenant_session(session, world.a):
        assert await visible(session) == A
        await savepoint.rollback()
        assert await visible(session) == A
    assert await visible(session) == []


async def test_the_same_under_an_outer_tenant(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.b):
        assert await visible(session) == B
        savepoint = await session.begin_nested()
        async with tenant_session(session, world.a):
            assert await visible(session) == A
            await savepoint.rollback()
            assert await visible(session) == A
        assert await visible(session) == B


async def test_a_released_savepoint_does_not_keep_the_inner_tenant(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.b):
        async with session.begin_nested(), tenant_session(session, world.a):
            assert await visible(session) == A
        assert await visible(session) == B


async def test_a_savepoint_held_across_the_end_of_a_scope(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        savepoint = await session.begin_nested()
        assert await visible(session) == A
    await savepoint.rollback()
    assert await visible(session) == []
    assert await tenant_in_force(session) is None


async def test_a_savepoint_held_across_a_scope_brings_no_tenant_back(
    session: AsyncSession, world: World
) -> None:
    """ROLLBACK TO restores what was in force when the savepoint was made: here the tenant."""
    async with tenant_session(session, world.a):
        savepoint = await session.begin_nested()
        assert await visible(session) == A
    assert await visible(session) == []
    await savepoint.rollback()
    assert await visible(session) == []


async def test_a_savepoint_rolled_back_in_sql(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a):
        assert await visible(session) == A
        await session.execute(text("SAVEPOINT mine"))
    assert await visible(session) == []
    await session.execute(text("/* back */ ROLLBACK TO SAVEPOINT mine"))
    assert await visible(session) == []


@pytest.mark.parametrize("blank", [" ", ";", "/**/", "--\n"])
async def test_how_a_statement_begins_does_not_hold_up_the_event_loop(
    session: AsyncSession, world: World, blank: str
) -> None:
    """Whatever it is indented or commented by; the time is the processor's, of this thread."""
    async with tenant_session(session, world.a):
        assert await visible(session) == A
    start = time.thread_time()
    await session.execute(text(blank * 26 + "SELECT 1"))
    assert time.thread_time() - start < 1


@pytest.mark.parametrize("commits", [False, True])
async def test_nested_scopes_come_back_to_the_outer_tenant(
    session: AsyncSession, world: World, commits: bool
) -> None:
    async with tenant_session(session, world.a):
        assert await visible(session) == A
        async with tenant_session(session, world.b):
            assert await visible(session) == B
            if commits:
                await session.commit()
                assert await visible(session) == B
        assert await visible(session) == A
        async with tenant_session(session, world.a):
            assert await visible(session) == A
        assert await visible(session) == A
    assert await visible(session) == []


async def test_two_sessions_at_once(world: World) -> None:
    engine = create_engine(world.app, pool_size=2)
    sessionmaker = async_sessionmaker(engine)
    async with (
        tenant_scope(sessionmaker, world.a) as one,
        tenant_scope(sessionmaker, world.b) as two,
    ):
        assert (await visible(one), await visible(two)) == (A, B)
        assert (await visible(two), await visible(one)) == (B, A)
    await engine.dispose()


async def test_the_users_error_stays_the_error_seen(session: AsyncSession, world: World) -> None:
    with pytest.raises(DBAPIError, match="division by zero"):
        async with tenant_session(session, world.a):
            await session.execute(text("SELECT 1/0"))
    await session.rollback()
    assert await visible(session) == []


async def test_leaving_an_aborted_transaction(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a):
        with pytest.raises(DBAPIError, match="division by zero"):
            await session.execute(text("SELECT 1/0"))
    await session.rollback()
    assert await visible(session) == []


async def test_read_only_and_serializable_transactions(world: World) -> None:
    engine = create_engine(
        world.app,
        execution_options={"isolation_level": "SERIALIZABLE", "postgresql_readonly": True},
    )
    async with tenant_scope(async_sessionmaker(engine), world.a) as session:
        assert await visible(session) == A
        assert await session.scalar(text("SHOW transaction_isolation")) == "serializable"
        assert await session.scalar(text("SHOW transaction_read_only")) == "on"
    await engine.dispose()


async def test_an_engine_with_options_of_its_own(engine: AsyncEngine, world: World) -> None:
    """Both use one pool."""
    strict = engine.execution_options(isolation_level="REPEATABLE READ")
    for tenant, notes in ((world.a, A), (world.b, B)):
        async with tenant_scope(async_sessionmaker(strict), tenant) as session:
            assert await visible(session) == notes
            assert await session.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        async with AsyncSession(engine) as session:
            assert await visible(session) == []


@pytest.fixture
async def two_phases(engine: AsyncEngine, world: World) -> AsyncGenerator[AsyncSession]:
    if await world.truth("SHOW max_prepared_transactions") == ["0"]:
        pytest.skip("this server is set up to prepare no transactions")
    async with AsyncSession(engine, twophase=True) as session:
        yield session
    assert await world.truth(PREPARED) == []


PREPARED = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
@pytest.mark.parametrize("leaves_before", [False, True])
async def test_a_transaction_in_two_phases(
    two_phases: AsyncSession, world: World, end: str, leaves_before: bool
) -> None:
    session = two_phases
    async with AsyncExitStack() as scope:
        await scope.enter_async_context(tenant_session(session, world.a))
        session.add(Invoice(note="new"))
        await session.run_sync(lambda sync_session: sync_session.prepare())
        assert len(await world.truth(PREPARED)) == 1
        if leaves_before:
            await scope.aclose()
        await getattr(session, end)()
        assert await visible(session) == ([] if leaves_before else await world.notes(world.a))
    assert await visible(session) == []
    assert await world.notes(world.a) == (A if end != "commit" else [*A, "new"])


async def test_the_isolation_level_can_still_be_set_in_the_transaction(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        await session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        assert await visible(session) == A


async def test_a_session_of_an_engine_made_by_others(world: World) -> None:
    engine = create_async_engine(world.app)
    async with AsyncSession(engine) as session:
        assert await visible(session) == []
        async with tenant_session(session, world.a):
            assert await visible(session) == A
            await session.commit()
            assert await visible(session) == A
        assert await visible(session) == []
    await engine.dispose()


class StartsInAnotherWay(asyncpg.Connection):  # type: ignore[misc] # ships no types
    """What SQLAlchemy asks for a transaction, and what does not begin one with BEGIN."""

    def transaction(self, **options: Any) -> StartsInAnotherWay:
        return self

    async def start(self) -> None:
        await self.execute("START TRANSACTION")

    async def commit(self) -> None:
        await self.execute("COMMIT")

    async def rollback(self) -> None:
        await self.execute("ROLLBACK")


@pytest.mark.parametrize("driver", ["asyncpg"])
async def test_a_driver_that_does_not_begin_with_begin(world: World) -> None:
    """Then nothing is left to travel with a BEGIN that never comes."""
    options = {"connection_class": StartsInAnotherWay}
    engine = create_engine(world.app, connect_args=options)
    async with tenant_scope(async_sessionmaker(engine), world.a) as session:
        for _ in range(2):
            assert await visible(session) == A
            assert await tenant_in_force(session) == world.a
            await session.commit()
    await engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg"])
async def test_a_begin_of_the_drivers_own_after_the_scope(
    session: AsyncSession, world: World
) -> None:
    """SQLAlchemy has not sent the BEGIN that was to take the tenant along."""
    async with tenant_session(session, world.a):
        connection = await session.connection()
    raw = (await connection.get_raw_connection()).driver_connection
    assert raw is not None
    async with raw.transaction():
        assert await raw.fetchval("SELECT count(*) FROM invoice") == 0


@pytest.mark.parametrize("made_by", [create_engine, create_async_engine])
async def test_an_engine_that_streams_all_results(world: World, made_by: Any) -> None:
    engine = made_by(world.app, execution_options={"stream_results": True})
    async with tenant_scope(async_sessionmaker(engine), world.a) as session:
        result = await session.stream(NOTES)
        assert [row.note async for row in result] == A
        with pytest.raises(DBAPIError, match="division by zero"):
            await session.execute(text("SELECT 1/0"))
        async with tenant_session(session, world.b):
            with pytest.raises(DBAPIError) as caught:
                await visible(session)
            assert sqlstate(caught.value) == "25P02"
    await engine.dispose()


async def test_a_pooled_connection_comes_back_without_a_tenant(
    engine: AsyncEngine, world: World
) -> None:
    async with tenant_scope(async_sessionmaker(engine), world.a) as session:
        assert await visible(session) == A
    async with engine.connect() as connection:
        assert await visible(connection) == []


async def test_a_subclass_of_uuid_or_str_cannot_smuggle_sql(
    session: AsyncSession, world: World
) -> None:
    class Sneaky(type(world.a)):  # type: ignore[misc]
        def __str__(self) -> str:
            return f"{world.b}"

    async with tenant_session(session, Sneaky(int=world.a.int)):
        assert await visible(session) == A


async def test_a_transaction_begun_before_the_library_was_imported(
    session: AsyncSession, world: World
) -> None:
    """Then no listener has seen it: as if the session had never been heard of."""
    assert await visible(session) == []
    delattr(session.sync_session, _state._ATTRIBUTE)
    async with tenant_session(session, world.a):
        assert await visible(session) == A
    assert await visible(session) == []


ROWS = text("SELECT n FROM generate_series(1, 1000) n, invoice ORDER BY n")


async def half_read(session: AsyncSession) -> AsyncResult[Any]:
    result = await session.stream(ROWS, execution_options={"yield_per": 10})
    assert len(await result.fetchmany(10)) == 10
    return result


@pytest.mark.parametrize("enters", [True, False])
async def test_a_result_that_is_still_being_read_ends_where_the_tenant_changes(
    session: AsyncSession, world: World, enters: bool
) -> None:
    """A policy may be evaluated row by row: the rest could be the other tenant's."""
    async with AsyncExitStack() as scope:
        await scope.enter_async_context(tenant_session(session, world.a))
        result = await half_read(session)
        if enters:
            await scope.enter_async_context(tenant_session(session, world.b))
        else:
            await scope.aclose()
        await visible(session)
        # SQLAlchemy lets asyncpg's own error pass here.
        with pytest.raises((DBAPIError, asyncpg.PostgresError)) as caught:
            await result.fetchall()
        assert sqlstate(caught.value) == "34000"
        await session.rollback()


async def test_a_cursor_declared_in_sql_ends_where_the_tenant_changes(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        await session.execute(text("DECLARE mine CURSOR FOR SELECT note FROM invoice"))
        async with tenant_session(session, world.b):
            with pytest.raises(DBAPIError) as caught:
                await session.execute(text("FETCH ALL FROM mine"))
            assert sqlstate(caught.value) == "34000"
            await session.rollback()
            assert await visible(session) == B


async def test_a_result_can_be_read_on_where_the_tenant_comes_back_unchanged(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        result = await half_read(session)
        async with session.begin_nested(), tenant_session(session, world.a):
            await visible(session)
        assert len(await result.fetchall()) == 1990


async def test_a_savepoint_that_rolls_back_ends_no_result_of_the_same_tenant(
    session: AsyncSession, world: World
) -> None:
    assert await visible(session) == []
    async with tenant_session(session, world.a):
        result = await half_read(session)
        savepoint = await session.begin_nested()
        await visible(session)
        await savepoint.rollback()
        assert await visible(session) == A
        assert len(await result.fetchall()) == 1990


@pytest.mark.parametrize("sql", ["; ROLLBACK TO mine", "SELECT 1; ROLLBACK TO mine"])
async def test_a_savepoint_of_another_tenant_rolled_back_in_sql(
    session: AsyncSession, world: World, driver: str, sql: str
) -> None:
    async with tenant_session(session, world.a):
        await session.execute(text("SAVEPOINT mine"))
        async with tenant_session(session, world.b):
            assert await visible(session) == B
            if driver == "asyncpg":  # which sends one statement at a time
                sql = sql.removeprefix("SELECT 1")
            await session.execute(text(sql))
            assert await visible(session) == B


@pytest.mark.parametrize("in_sql", [False, True])
async def test_a_savepoint_rolled_back_after_an_error_and_a_change_of_the_tenant(
    session: AsyncSession, world: World, in_sql: bool
) -> None:
    """In a failed transaction nothing can be sent before ROLLBACK TO."""
    async with tenant_session(session, world.a):
        assert await visible(session) == A
        savepoint = await session.begin_nested()
        await session.execute(text("SAVEPOINT mine"))
        async with tenant_session(session, world.b):
            with pytest.raises(DBAPIError, match="division by zero"):
                await session.execute(text("SELECT 1/0"))
        if in_sql:
            await session.execute(text("-- back\n/* to */ ROLLBACK TO mine"))
        else:
            await savepoint.rollback()
        assert await visible(session) == A


async def test_a_deferred_trigger_runs_for_the_tenant_that_caused_it(
    session: AsyncSession, world: World
) -> None:
    tenants: list[UUID] = []
    async with tenant_session(session, world.a):
        await session.execute(text("INSERT INTO deferred (note) VALUES ('a')"))
        async with tenant_session(session, world.b):
            await session.execute(text("INSERT INTO deferred (note) VALUES ('b')"))
        await session.commit()
    tenants += await world.truth(
        "SELECT tenant_id FROM audit WHERE tenant_id = ANY($1) ORDER BY note", [world.a, world.b]
    )
    assert tenants == [world.a, world.b]


@pytest.mark.parametrize("enters", [True, False])
async def test_a_deferred_trigger_that_a_savepoint_brings_back_runs_for_its_tenant(
    session: AsyncSession, world: World, enters: bool
) -> None:
    """ROLLBACK TO undoes that it ran inside the savepoint, where the tenant was changed."""
    note = uuid4().hex
    async with AsyncExitStack() as scope:
        await scope.enter_async_context(tenant_session(session, world.a))
        await session.execute(text("INSERT INTO deferred (note) VALUES (:note)"), {"note": note})
        await session.execute(text("SAVEPOINT mine"))
        if enters:
            await scope.enter_async_context(tenant_session(session, world.b))
        else:
            await scope.aclose()
        await visible(session)
        await session.execute(text("ROLLBACK TO mine"))
        await visible(session)
        await session.commit()
    assert await world.truth("SELECT tenant_id FROM audit WHERE note = $1", note) == [world.a]


async def test_constraints_stay_deferred_where_a_savepoint_of_the_only_tenant_rolls_back(
    engine: AsyncEngine, world: World
) -> None:
    """No other tenant's work can be brought back."""
    code = uuid4().hex
    async with engine.connect() as connection, tenant_connection(connection, world.a):
        await connection.execute(text("INSERT INTO promise VALUES (:code)"), {"code": code})
        await connection.execute(text("SAVEPOINT mine"))
        await connection.execute(text("ROLLBACK TO mine"))
        await connection.execute(text("INSERT INTO country VALUES (:code, 'new')"), {"code": code})
        await connection.commit()
    assert await world.truth("SELECT name FROM country WHERE code = $1", code) == ["new"]


async def test_a_deferred_constraint_that_fails_where_the_tenant_changes_is_the_error_seen(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        await session.execute(text("INSERT INTO promise (country_code) VALUES ('nowhere')"))
        async with tenant_session(session, world.b):
            with pytest.raises(IntegrityError) as caught:
                await visible(session)
            assert sqlstate(caught.value) == "23503"
            await session.rollback()
            assert await visible(session) == B


async def test_many_rows_inserted_as_first_statement_after_a_change(
    session: AsyncSession, world: World
) -> None:
    """SQLAlchemy sends them in batches, by a way of their own."""
    async with tenant_session(session, world.a):
        assert await visible(session) == A
        async with tenant_session(session, world.b):
            session.add_all(Invoice(note=f"new{n}") for n in range(3))
            await session.commit()
    assert await world.notes(world.a) == A
    assert await world.notes(world.b) == [*B, "new0", "new1", "new2"]


async def test_a_statement_with_many_parameters_as_first_one_after_a_change(
    session: AsyncSession, world: World
) -> None:
    """The driver is told to send it for each of them, by a way of its own."""
    mark = text("UPDATE invoice SET note = note || :suffix")
    async with tenant_session(session, world.a):
        assert await visible(session) == A
        async with tenant_session(session, world.b):
            await session.execute(mark, [{"suffix": "!"}, {"suffix": "?"}])
            await session.commit()
    assert await world.notes(world.a) == A
    assert await world.notes(world.b) == ["b1!?", "b2!?"]


async def test_a_statement_without_parameters_as_first_one_after_a_change(
    session: AsyncSession, world: World
) -> None:
    """That is an option, by which it goes to the driver in another way."""
    async with tenant_session(session, world.a):
        assert await visible(session) == A
        async with tenant_session(session, world.b):
            result = await session.execute(NOTES, execution_options={"no_parameters": True})
            assert list(result.scalars()) == B


@pytest.mark.parametrize("method", ["close", "invalidate", "reset"])
async def test_a_session_taken_apart_in_an_inner_scope_goes_on_in_it(
    session: AsyncSession, world: World, method: str
) -> None:
    async with tenant_session(session, world.a):
        assert await visible(session) == A
        async with tenant_session(session, world.b):
            assert await visible(session) == B
            await getattr(session, method)()
            assert await visible(session) == B
        assert await visible(session) == A
    assert await visible(session) == []


async def test_statements_of_the_users_listeners(engine: AsyncEngine, world: World) -> None:
    """At BEGIN, before anybody could bind it, they see nothing; else what is in force."""

    def at_begin(connection: Connection) -> None:
        seen.append(len(connection.execute(NOTES).all()))

    def before_commit(session: Session) -> None:
        seen.append(len(session.execute(NOTES).all()))

    seen: list[int] = []
    event.listen(engine.sync_engine, "begin", at_begin)
    async with AsyncSession(engine) as session:
        event.listen(session.sync_session, "before_commit", before_commit)
        async with tenant_session(session, world.a):
            assert await visible(session) == A
            await session.commit()
            assert await visible(session) == A
        await session.commit()
    assert seen == [0, 2, 0, 0]


async def test_an_error_of_the_users_listener_leaves_no_tenant_behind(world: World) -> None:
    """It is told of the statement that binds where asyncpg's connections are not ours."""

    def after_execute(*_: object) -> None:
        raise RuntimeError("mine")

    engine = create_async_engine(world.app)
    async with AsyncSession(engine) as session:
        async with tenant_session(session, world.a):
            event.listen(engine.sync_engine, "after_cursor_execute", after_execute)
            with pytest.raises(RuntimeError, match="mine"):
                await visible(session)
            event.remove(engine.sync_engine, "after_cursor_execute", after_execute)
        assert session.in_transaction()
        assert await visible(session) == []
    await engine.dispose()


async def test_a_listener_that_sends_statements_itself_sends_them_for_the_tenant(
    engine: AsyncEngine, session: AsyncSession, world: World
) -> None:
    """SQLAlchemy asks nobody after the first one that says that it did."""

    def send(cursor: Any, statement: str, parameters: Any, _context: Any) -> bool:
        cursor.execute(statement, parameters)
        return True

    event.listen(engine.sync_engine, "do_execute", send)
    async with tenant_session(session, world.a):
        assert await visible(session) == A
        async with tenant_session(session, world.b):
            assert await visible(session) == B
        assert await visible(session) == A


async def test_a_savepoint_of_the_connections_own_across_a_change(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        savepoint = await (await session.connection()).begin_nested()
        async with tenant_session(session, world.b):
            assert await visible(session) == B
            await savepoint.rollback()
            assert await visible(session) == B
        assert await visible(session) == A


async def test_a_synchronous_session_on_the_connection_of_a_scoped_one(
    session: AsyncSession, world: World
) -> None:
    def work(scoped: Session) -> list[str]:
        with (
            Session(bind=scoped.connection()) as other,
            pytest.raises(TenantScopeError, match="shared"),
        ):
            other.execute(NOTES)
        with scoped.begin_nested():
            return list(scoped.execute(NOTES).scalars())

    async with tenant_session(session, world.a):
        assert await session.run_sync(work) == A


async def test_row_security_is_left_alone_where_no_tenant_is_required(
    session: AsyncSession, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when nobody knows what is in force, after a savepoint."""
    with caplog.at_level("DEBUG", logger="mgf.sqlalchemy"):
        async with tenant_session(session, world.a):
            assert await visible(session) == A
            savepoint = await session.begin_nested()
            async with tenant_session(session, world.b):
                assert await visible(session) == B
            await savepoint.rollback()
            assert await visible(session) == A
    sent = " ".join(caplog.messages)
    assert str(world.b) in sent
    assert "row_security" not in sent
