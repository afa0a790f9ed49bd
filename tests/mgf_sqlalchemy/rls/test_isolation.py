"""Tables made by create_all keep tenants apart, for the role that policies hold."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from harness.schemas import ROLE, Database
from harness.servers import new_database
from mgf.sqlalchemy.errors import sqlstate
from mgf.sqlalchemy.rls import (
    Grant,
    Policy,
    TenantMixin,
    child_table,
    protect_metadata,
    share_rows,
    shared_table,
    tenant_predicate,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncSession

A, B = uuid4(), uuid4()


class Base(DeclarativeBase):
    pass


class Invoice(TenantMixin, Base):
    __tablename__ = "invoice"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]


@child_table(reason="Read and written with its invoice.")
class Line(Base):
    __tablename__ = "line"
    id: Mapped[int] = mapped_column(primary_key=True)
    invoice_id: Mapped[int] = mapped_column(ForeignKey("invoice.id"))
    note: Mapped[str]


@child_table(reason="Read and written with its line.")
class Detail(Base):
    __tablename__ = "detail"
    id: Mapped[int] = mapped_column(ForeignKey("line.id"), primary_key=True)
    note: Mapped[str]


class Price(TenantMixin, Base):
    __tablename__ = "price"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]
    is_public: Mapped[bool] = mapped_column(default=False)


@child_table(reason="Read and written with its price.")
class Discount(Base):
    __tablename__ = "discount"
    id: Mapped[int] = mapped_column(primary_key=True)
    price_id: Mapped[int] = mapped_column(ForeignKey("price.id"))
    note: Mapped[str]


@child_table(reason="An invoice and a price of one tenant.", via=["invoice_id", "price_id"])
class Pair(Base):
    __tablename__ = "pair"
    invoice_id: Mapped[int] = mapped_column(ForeignKey("invoice.id"), primary_key=True)
    price_id: Mapped[int] = mapped_column(ForeignKey("price.id"), primary_key=True)
    note: Mapped[str]


@shared_table(reason="Countries are the same for every tenant.")
class Country(Base):
    __tablename__ = "country"
    code: Mapped[str] = mapped_column(primary_key=True)


protect_metadata(
    Base.metadata, role="app", policies=[share_rows("public_prices", Price, using="is_public")]
)

TABLES = [Invoice, Line, Detail, Price, Discount, Pair]
every_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__tablename__)


@pytest.fixture(scope="module")
def tables(any_postgres_url: sa.URL) -> sa.URL:
    """A database with the tables, which are filled anew for each test."""

    async def make() -> sa.URL:
        url = await new_database(any_postgres_url)
        database = Database(url)
        database.run(ROLE)
        database.create(Base.metadata)
        await database.dispose()
        return url

    return asyncio.run(make())


@pytest.fixture
async def world(tables: sa.URL) -> AsyncIterator[Database]:
    """A row of each table for each of two tenants, with the number 1 or 2; price 2 is public."""
    database = Database(tables)
    fill(database)
    yield database
    await database.dispose()


@pytest.fixture
def own_world(database: Database) -> Database:
    """The same in a database of the test's own, whose protection it may change."""
    database.create(Base.metadata)
    fill(database)
    return database


def fill(database: Database) -> None:
    for table in reversed(Base.metadata.sorted_tables):
        database.owner.execute(table.delete())
    for number, tenant in ((1, A), (2, B)):
        note = "ab"[number - 1]
        owned: dict[str, Any] = {"id": number, "tenant_id": tenant, "note": note}
        parent = {"invoice_id": number, "note": note}
        rows = {
            Invoice: owned,
            Price: owned | {"is_public": number == 2},
            Line: parent | {"id": number},
            Detail: {"id": number, "note": note},
            Discount: {"id": number, "price_id": number, "note": note},
            Pair: parent | {"price_id": number},
        }
        for model, values in rows.items():
            database.owner.execute(sa.insert(model).values(values))
    database.owner.execute(sa.insert(Country).values(code="XX"))
    database.owner.commit()


def notes(database: Database, table: Any) -> list[str]:
    """What a table really holds."""
    found = list(database.owner.scalars(sa.select(table.note).order_by(table.note)))
    database.owner.rollback()
    return found


async def rows_changed(session: AsyncSession, statement: Any) -> int:
    result: Any = await session.execute(statement)
    return int(result.rowcount)


async def refused(work: Callable[[], Awaitable[Any]]) -> None:
    with pytest.raises(DBAPIError) as error:
        await work()
    assert sqlstate(error.value) == "42501"


@every_table
async def test_own_rows_can_be_read_and_written(world: Database, table: Any) -> None:
    async with world.scope(A, table.__tablename__) as session:
        visible = list(await session.scalars(sa.select(table.note).order_by(table.note)))
        assert visible == (["a", "b"] if table is Price else ["a"])
        assert await rows_changed(session, sa.update(table).values(note="changed")) == 1
        await session.commit()

    assert notes(world, table) == ["b", "changed"]


@every_table
async def test_rows_of_others_can_not_be_changed(world: Database, table: Any) -> None:
    """Neither by naming them nor by leaving WHERE out, shared or not."""
    async with world.scope(A, table.__tablename__) as session:
        for statement in (
            sa.update(table).where(table.note == "b").values(note="stolen"),
            sa.delete(table).where(table.note == "b"),
        ):
            assert await rows_changed(session, statement) == 0
        assert await rows_changed(session, sa.update(table).values(note="mine")) == 1
        await session.commit()

    assert notes(world, table) == ["b", "mine"]


@pytest.mark.parametrize("table", [Detail, Discount, Pair], ids=lambda one: one.__tablename__)
async def test_a_delete_without_where_takes_own_rows_alone(world: Database, table: Any) -> None:
    async with world.scope(A, table.__tablename__) as session:
        await session.execute(sa.delete(table))
        await session.commit()

    assert notes(world, table) == ["b"]


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (Invoice, {"id": 3, "tenant_id": B}),
        (Line, {"id": 3, "invoice_id": 2}),
        (Line, {"id": 3, "invoice_id": 99}),
        (Detail, {"id": 2}),
        (Price, {"id": 3, "tenant_id": B}),
        (Price, {"id": 3, "tenant_id": B, "is_public": True}),
        (Discount, {"id": 3, "price_id": 2}),
        (Pair, {"invoice_id": 1, "price_id": 2}),
        (Pair, {"invoice_id": 2, "price_id": 1}),
    ],
)
async def test_rows_can_not_be_written_for_others(
    world: Database, table: Any, values: dict[str, Any]
) -> None:
    """Nor beside a row of theirs that is shared for reading."""
    insert = sa.insert(table).values({"note": "x", **values})
    async with world.scope(A, table.__tablename__) as session:
        await refused(lambda: session.execute(insert))
    assert notes(world, table) == ["a", "b"]


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (Invoice, {"tenant_id": B}),
        (Line, {"invoice_id": 2}),
        (Price, {"tenant_id": B}),
        (Price, {"tenant_id": B, "is_public": True}),
        (Discount, {"price_id": 2}),
        (Pair, {"price_id": 2}),
    ],
)
async def test_own_rows_can_not_be_given_away(
    world: Database, table: Any, values: dict[str, Any]
) -> None:
    async with world.scope(A, table.__tablename__) as session:
        await refused(lambda: session.execute(sa.update(table).values(values)))
    assert notes(world, table) == ["a", "b"]


async def test_a_row_of_others_can_not_be_locked(world: Database) -> None:
    async with world.scope(A, "price") as session:
        locked = await session.scalars(sa.select(Price.note).with_for_update())
        assert list(locked) == ["a"]


async def test_an_upsert_does_not_reach_a_shared_row_of_others(world: Database) -> None:
    upsert = sa.dialects.postgresql.insert(Price).values(id=2, note="stolen")
    upsert = upsert.on_conflict_do_update(index_elements=["id"], set_={"note": "stolen"})
    async with world.scope(A, "price") as session:
        await refused(lambda: session.execute(upsert))
    assert notes(world, Price) == ["a", "b"]


async def test_a_shared_table_is_read_by_everyone_and_written_by_nobody(world: Database) -> None:
    async with world.scope(A) as session:
        assert list(await session.scalars(sa.select(Country.code))) == ["XX"]
        await refused(lambda: session.execute(sa.insert(Country).values(code="YY")))


@pytest.mark.parametrize("table", ["invoice", "line", "country"])
async def test_truncate_is_refused(world: Database, table: str) -> None:
    """Policies do not hold it."""
    async with world.scope(A) as session:
        await refused(lambda: session.execute(sa.text(f"TRUNCATE {table} CASCADE")))


async def test_without_a_tenant_nothing_is_visible_but_what_is_shared(world: Database) -> None:
    async with world.app.connect() as connection:
        table: Any
        for table in TABLES:
            found = list(await connection.scalars(sa.select(table.note)))
            assert found == (["b"] if table is Price else []), table


async def test_a_new_row_belongs_to_the_tenant_in_force(world: Database) -> None:
    async with world.scope(B, "invoice") as session:
        invoice = Invoice(id=3, note="new")
        session.add(invoice)
        await session.commit()
        assert invoice.tenant_id == B


async def test_a_new_row_without_a_tenant_is_refused(world: Database) -> None:
    async with world.app.connect() as connection:
        with pytest.raises(DBAPIError) as error:
            await connection.execute(sa.insert(Invoice).values(note="x"))
    assert sqlstate(error.value) in {"23502", "42501"}


async def test_the_owner_is_held_too(own_world: Database) -> None:
    name = f"owner_{uuid4().hex}"
    own_world.run(f"CREATE ROLE {name}", f"ALTER TABLE invoice OWNER TO {name}", f"SET ROLE {name}")

    assert notes(own_world, Invoice) == []

    own_world.run("RESET ROLE", "ALTER TABLE invoice OWNER TO postgres", f"DROP ROLE {name}")


async def test_the_floor_holds_what_a_later_policy_would_open(own_world: Database) -> None:
    """The restrictive policy is for everybody: a permissive one cannot widen it."""
    own_world.run("CREATE POLICY open ON invoice USING (true) WITH CHECK (true)")

    async with own_world.scope(A, "invoice") as session:
        assert list(await session.scalars(sa.select(Invoice.note))) == ["a"]
        insert = sa.insert(Invoice).values(id=3, tenant_id=B, note="x")
        await refused(lambda: session.execute(insert))


async def test_the_floor_of_shared_rows_is_wider_for_reading_alone(own_world: Database) -> None:
    own_world.run("CREATE POLICY open ON price USING (true) WITH CHECK (true)")

    async with own_world.scope(A, "price") as session:
        assert sorted(await session.scalars(sa.select(Price.note))) == ["a", "b"]
        assert await rows_changed(session, sa.update(Price).values(note="mine")) == 1
        for child in (Discount, Pair):
            await session.execute(sa.delete(child))
        assert await rows_changed(session, sa.delete(Price)) == 1
        insert = sa.insert(Price).values(id=3, tenant_id=B, note="x", is_public=True)
        await refused(lambda: session.execute(insert))


async def test_a_child_is_held_without_the_policies_of_its_parent(own_world: Database) -> None:
    own_world.run("ALTER TABLE invoice DISABLE ROW LEVEL SECURITY")

    async with own_world.scope(A, "line", "detail") as session:
        assert list(await session.scalars(sa.select(Line.note))) == ["a"]
        assert list(await session.scalars(sa.select(Detail.note))) == ["a"]


async def test_a_column_of_the_parent_that_no_model_knows_is_not_taken_for_the_child_s(
    database: Database,
) -> None:
    """In PostgreSQL the innermost table with a column of that name wins."""
    database.run(
        "CREATE TABLE invoice (id int PRIMARY KEY, tenant_id uuid, note text, invoice_id int)",
        "ALTER TABLE invoice ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        "CREATE POLICY tenant_floor ON invoice AS RESTRICTIVE USING (true)",
        "GRANT SELECT ON invoice TO app",
    )
    database.create(Base.metadata)
    database.run(
        f"INSERT INTO invoice VALUES (1, '{A}', 'a', 1), (2, '{B}', 'b', 2)",
        "INSERT INTO line VALUES (1, 1, 'a'), (2, 2, 'b')",
        "ALTER TABLE invoice DISABLE ROW LEVEL SECURITY",
    )

    async with database.scope(A, "line") as session:
        assert list(await session.scalars(sa.select(Line.note))) == ["a"]


async def test_sharing_rows_needs_the_wider_floor(own_world: Database) -> None:
    """A permissive policy alone is vetoed, so that nobody shares by accident."""
    own_world.run("CREATE POLICY public_invoices ON invoice FOR SELECT TO app USING (true)")

    async with own_world.scope(A, "invoice") as session:
        assert list(await session.scalars(sa.select(Invoice.note))) == ["a"]


async def test_another_role_reads_what_a_policy_of_its_own_lets_through(
    database: Database,
) -> None:
    class Base(DeclarativeBase):
        pass

    class Note(TenantMixin, Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)

    policy = Policy("read", Note, for_="SELECT", to="pg_monitor", using=tenant_predicate())
    grants = [Grant("SELECT", Note, to="pg_monitor")]
    protect_metadata(Base.metadata, role="app", policies=[policy], grants=grants)
    database.create(Base.metadata)
    for tenant in (A, B):
        database.owner.execute(sa.insert(Note).values(tenant_id=tenant))
    database.run("SET ROLE pg_monitor", f"SET app.current_tenant = '{A}'")

    assert list(database.owner.scalars(sa.select(Note.tenant_id))) == [A]
    with pytest.raises(DBAPIError, match="permission denied"):
        database.owner.execute(sa.delete(Note))


async def test_another_role_reads_the_columns_that_it_was_granted(database: Database) -> None:
    class Base(DeclarativeBase):
        pass

    class Note(TenantMixin, Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str] = mapped_column("Body")

    policy = Policy("read", Note, for_="SELECT", to="pg_monitor", using=tenant_predicate())
    grants = [Grant("SELECT", Note, to="pg_monitor", columns=["Body"])]
    protect_metadata(Base.metadata, role="app", policies=[policy], grants=grants)
    database.create(Base.metadata)
    for tenant in (A, B):
        database.owner.execute(sa.insert(Note).values(tenant_id=tenant, body=str(tenant)))
    database.run("SET ROLE pg_monitor", f"SET app.current_tenant = '{A}'")

    assert list(database.owner.scalars(sa.select(Note.body))) == [str(A)]
    for refused in (sa.select(Note), sa.select(Note.id), sa.select(Note.tenant_id)):
        with pytest.raises(DBAPIError, match="permission denied"):
            database.owner.execute(refused)
        database.owner.rollback()


async def test_the_form_without_a_sub_select_isolates_as_well(database: Database) -> None:
    class Base(DeclarativeBase):
        pass

    class Note(TenantMixin, Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)

    protect_metadata(Base.metadata, role="app", subselect=False)
    database.create(Base.metadata)
    for tenant in (A, B):
        database.owner.execute(sa.insert(Note).values(tenant_id=tenant))
    database.owner.commit()

    async with database.scope(A, "note") as session:
        assert list(await session.scalars(sa.select(Note.tenant_id))) == [A]
