"""Objects of one tenant never show up in another one's scope, and no work is lost on the way."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import ForeignKey, event, inspect, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload
from sqlalchemy.orm.exc import DetachedInstanceError, FlushError, StaleDataError

from harness.tenants import (
    Both,
    Country,
    CountryWithAll,
    Currency,
    Invoice,
    InvoiceOfCountry,
    InvoiceWithAll,
    Label,
    Line,
    LineWithAll,
    Summary,
    visible,
)
from mgf.sqlalchemy import create_sessionmaker, current_tenant, tenant_scope, tenant_session
from mgf.sqlalchemy.errors import TenantScopeError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.orm import Session

    from harness.tenants import World


@pytest.fixture
async def expiring(engine: AsyncEngine) -> AsyncGenerator[AsyncSession]:
    """What a commit expires is loaded when it is read next."""
    async with AsyncSession(engine, expire_on_commit=True) as session:
        yield session


async def test_get_does_not_serve_the_other_tenants_object(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        mine = await session.get(Invoice, world.ids["a1"])
        assert mine is not None
        async with tenant_session(session, world.b):
            assert await session.get(Invoice, world.ids["a1"]) is None
        assert await session.get(Invoice, world.ids["a1"]) is mine


async def test_two_scopes_one_after_the_other(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a):
        mine = await session.get_one(Invoice, world.ids["a1"])
    async with tenant_session(session, world.b):
        assert await session.get(Invoice, mine.id) is None


async def test_after_the_block_objects_are_readable_and_detached(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        invoice = await session.get_one(Invoice, world.ids["a1"])
        await session.commit()
    assert invoice.note == "a1"
    assert inspect(invoice).detached


async def test_an_opened_session_is_closed_with_all_that_it_holds(
    engine: AsyncEngine, world: World
) -> None:
    async with tenant_scope(create_sessionmaker(engine), world.a) as session:
        invoice = await session.get_one(Invoice, world.ids["a1"])
        await session.commit()
        assert invoice in session
    assert inspect(invoice).detached
    assert list(session) == []


async def test_an_opened_session_that_fails_to_close_is_left_all_the_same(
    engine: AsyncEngine, world: World
) -> None:
    class Failing(AsyncSession):
        async def close(self) -> None:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        async with tenant_scope(create_sessionmaker(engine, class_=Failing), world.a) as session:
            invoice = await session.get_one(Invoice, world.ids["a1"])
    assert current_tenant(session) is None
    assert invoice not in session
    assert await visible(session) == []
    await session.rollback()


async def test_a_session_that_cannot_be_scoped_is_closed_again(
    engine: AsyncEngine, world: World
) -> None:
    """The user has done something with it as it was made."""

    class Busy(AsyncSession):
        async def __aenter__(self) -> Busy:
            opened.append(self)
            await self.execute(text("SELECT 1"))
            self.add(Invoice(note="whose?"))
            return self

    opened: list[Busy] = []
    with pytest.raises(DBAPIError):
        async with tenant_scope(create_sessionmaker(engine, class_=Busy), world.a):
            pytest.fail("entered")
    assert not opened[0].in_transaction()


async def test_a_later_change_is_merged_in_a_new_scope(session: AsyncSession, world: World) -> None:
    async with tenant_session(session, world.a):
        invoice = await session.get_one(Invoice, world.ids["a1"])
    invoice.note = "later"
    async with tenant_session(session, world.a):
        await session.merge(invoice)
        await session.commit()
    assert await world.notes(world.a) == ["a2", "later"]


async def test_work_pending_at_the_end_is_written_for_its_tenant(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        session.add(Invoice(note="new"))
    await session.commit()
    assert await world.notes(world.a) == ["a1", "a2", "new"]


async def test_work_pending_at_entry_is_written_for_the_outer_tenant(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        session.add(Invoice(note="new"))
        async with tenant_session(session, world.b):
            assert await visible(session) == ["b1", "b2"]
        await session.commit()
    assert await world.notes(world.a) == ["a1", "a2", "new"]
    assert await world.notes(world.b) == ["b1", "b2"]


@pytest.mark.parametrize("hook", ["after_flush", "after_flush_postexec"])
async def test_work_that_a_flush_brings_about_is_written_for_the_tenant_of_that_flush(
    session: AsyncSession, world: World, hook: str
) -> None:
    """As a trail of changes that a listener keeps."""
    left = ["trail"]

    def note(sync_session: Session, _context: object) -> None:
        if left:
            sync_session.add(Invoice(note=left.pop()))

    event.listen(session.sync_session, hook, note)
    async with tenant_session(session, world.a):
        session.add(Invoice(note="new"))
        async with tenant_session(session, world.b):
            assert await visible(session) == ["b1", "b2"]
        assert await visible(session) == ["a1", "a2", "new", "trail"]
        left.append("more")
        session.add(Invoice(note="newer"))
    await session.commit()
    assert await world.notes(world.a) == ["a1", "a2", "more", "new", "newer", "trail"]
    assert await world.notes(world.b) == ["b1", "b2"]


async def test_work_that_a_flush_under_no_tenant_brings_about_is_not_given_to_one(
    session: AsyncSession, world: World
) -> None:
    event.listen(
        session.sync_session,
        "after_flush",
        lambda sync_session, _: sync_session.add(Invoice(note="whose?")),
        once=True,
    )
    session.add(Country(code=uuid4().hex, name="shared"))
    with pytest.raises(DBAPIError):
        async with tenant_session(session, world.a):
            await session.commit()
    assert await world.notes(world.a) == ["a1", "a2"]


async def test_work_that_never_ends_is_an_error(session: AsyncSession, world: World) -> None:
    def note(sync_session: Session, _context: object) -> None:
        sync_session.add(Invoice(note="more"))

    event.listen(session.sync_session, "after_flush", note)
    with pytest.raises(FlushError, match="after_flush"):
        async with tenant_session(session, world.a):
            session.add(Invoice(note="new"))
    assert current_tenant(session) is None
    assert list(session) == []


async def test_work_pending_under_no_tenant_is_not_given_to_one(
    session: AsyncSession, world: World
) -> None:
    session.add(Invoice(note="whose?"))
    with pytest.raises(DBAPIError):
        async with tenant_session(session, world.a):
            pytest.fail("entered")
    assert await world.notes(world.a) == ["a1", "a2"]


async def test_work_of_a_failed_block_is_discarded(session: AsyncSession, world: World) -> None:
    with pytest.raises(RuntimeError, match="mine"):
        async with tenant_session(session, world.a):
            invoice = await session.get_one(Invoice, world.ids["a1"])
            invoice.note = "changed"
            session.add(Invoice(note="new"))
            raise RuntimeError("mine")
    await session.commit()
    assert await world.notes(world.a) == ["a1", "a2"]


async def test_a_failed_block_discards_changes_of_objects_that_stay(
    session: AsyncSession, world: World
) -> None:
    code = uuid4().hex
    country = Country(code=code, name="before")
    session.add(country)
    await session.commit()
    with pytest.raises(RuntimeError):
        async with tenant_session(session, world.a):
            country.name = "after"
            raise RuntimeError
    assert country not in session.dirty
    await session.commit()
    assert await world.truth("SELECT name FROM country WHERE code = $1", code) == ["before"]


async def test_a_failed_block_discards_an_object_of_no_tenant_that_is_not_stored(
    session: AsyncSession, world: World
) -> None:
    """Its INSERT was rolled back, and it was added again."""
    country = Country(code=uuid4().hex, name="shared", invoices=[])
    session.add(country)
    with pytest.raises(RuntimeError, match="mine"):
        async with tenant_session(session, world.a):
            await session.rollback()
            invoice = await session.get_one(Invoice, world.ids["a1"])
            country.invoices = []
            session.add(country)
            raise RuntimeError("mine")
    assert invoice not in session
    assert list(session) == []
    assert await session.get(Invoice, world.ids["a1"]) is None


async def test_a_flush_that_fails_at_the_end_raises_and_leaves(
    session: AsyncSession, world: World
) -> None:
    with pytest.raises(IntegrityError):
        async with tenant_session(session, world.a):
            session.add(Line(invoice_id=-1, amount=1))
    await session.rollback()
    assert await visible(session) == []


async def test_objects_loaded_under_no_tenant_stay_attached(
    session: AsyncSession, world: World
) -> None:
    country = Country(code=uuid4().hex, name="shared")
    session.add(country)
    await session.commit()
    async with tenant_session(session, world.a):
        assert country in session
        async with tenant_session(session, world.b):
            assert country in session
            assert await session.get(Country, country.code) is country
        assert country in session
    assert country in session
    country.name = "changed"
    await session.commit()
    async with session.begin():
        assert await session.get(Country, country.code) is country


async def test_objects_put_back_are_the_same_and_changed_as_before(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        invoice = await session.get_one(Invoice, world.ids["a1"])
        async with tenant_session(session, world.b):
            assert inspect(invoice).detached
        invoice.note = "changed"
        await session.commit()
    assert await world.notes(world.a) == ["a2", "changed"]


async def test_objects_put_back_after_a_rollback_show_what_is_stored(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        invoice = await session.get_one(Invoice, world.ids["a1"])
        invoice.note = "changed"
        async with tenant_session(session, world.b):
            await session.rollback()
        assert inspect(invoice).expired
        await session.refresh(invoice)
        assert invoice.note == "a1"


async def test_objects_put_back_show_what_a_scope_of_their_tenant_changed_meanwhile(
    session: AsyncSession, world: World
) -> None:
    """It had objects of its own of the same rows; the other tenant's need no loading again."""
    async with tenant_session(session, world.a):
        mine = await session.get_one(Invoice, world.ids["a1"])
        async with tenant_session(session, world.b):
            theirs = await session.get_one(Invoice, world.ids["b1"])
            async with tenant_session(session, world.a):
                (await session.get_one(Invoice, world.ids["a1"])).note = "inner"
            assert theirs.note == "b1"
        await session.refresh(mine, ["country_code"])
        assert await session.run_sync(lambda _: mine.note) == "inner"


async def test_objects_of_no_tenant_stay_loaded_where_others_are_put_back(
    session: AsyncSession, world: World
) -> None:
    """Also after a rollback, which makes those that were set aside count as out of date."""
    country = Country(code=uuid4().hex, name="shared")
    session.add(country)
    await session.commit()
    async with tenant_session(session, world.a):
        with pytest.raises(RuntimeError):
            async with tenant_session(session, world.b):
                await (await session.begin_nested()).rollback()
                raise RuntimeError
        assert country.name == "shared"
    assert country.name == "shared"


async def test_an_insert_rolled_back_in_the_inner_scope_is_not_repeated(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        new = Invoice(note="new")
        session.add(new)
        async with tenant_session(session, world.b):
            await session.rollback()
        assert new not in session
        await session.commit()
    assert await world.notes(world.a) == ["a1", "a2"]


async def test_a_delete_rolled_back_in_another_scope_serves_nothing_there(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        invoice = await session.get_one(Invoice, world.ids["a1"])
        savepoint = await session.begin_nested()
        await session.delete(invoice)
        await session.flush()
    async with tenant_session(session, world.b):
        await savepoint.rollback()
        assert await session.get(Invoice, world.ids["a1"]) is None


async def test_a_delete_rolled_back_in_another_scope_does_not_mix_rows_of_the_same_key(
    session: AsyncSession, world: World
) -> None:
    """A key of the mapping may be unique for each tenant alone."""
    session.add(Country(code=(code := uuid4().hex), name="shared"))
    await session.commit()
    for tenant, note in ((world.a, "for a"), (world.b, "for b")):
        async with tenant_session(session, tenant):
            session.add(Invoice(note=note, country_code=code))
            await session.commit()
    async with tenant_session(session, world.a):
        mine = await session.get_one(InvoiceOfCountry, code)
        savepoint = await session.begin_nested()
        await session.delete(mine)
        await session.flush()
        async with tenant_session(session, world.b):
            await savepoint.rollback()
            assert (await session.get_one(InvoiceOfCountry, code)).note == "for b"
        assert mine.note == "for a"


async def test_a_delete_rolled_back_in_its_own_scope_brings_the_object_back(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        invoice = await session.get_one(Invoice, world.ids["a1"])
        savepoint = await session.begin_nested()
        await session.delete(invoice)
        await session.flush()
        async with tenant_session(session, world.b):
            assert await visible(session) == ["b1", "b2"]
        await savepoint.rollback()
        invoice.note = "changed"
        await session.commit()
    assert await world.notes(world.a) == ["a2", "changed"]


async def test_a_delete_of_an_object_of_no_tenant_rolled_back_after_the_scope(
    session: AsyncSession, world: World
) -> None:
    session.add(country := Country(code=uuid4().hex, name="shared"))
    await session.commit()
    async with tenant_session(session, world.a):
        savepoint = await session.begin_nested()
        await session.delete(country)
        await session.flush()
    await savepoint.rollback()
    assert country in session
    await session.refresh(country)
    assert country.name == "shared"


async def test_objects_cannot_be_read_on_from_a_result_of_another_scope(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        result = await session.stream_scalars(
            select(Invoice).order_by(Invoice.note), execution_options={"yield_per": 1}
        )
        first = await anext(result)
        async with tenant_session(session, world.b):
            with pytest.raises(InvalidRequestError, match="no longer valid"):
                await anext(result)
            await result.close()
            assert first not in session
            assert await session.get(Invoice, world.ids["a2"]) is None


async def test_entering_the_tenant_in_force_changes_nothing(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        invoice = await session.get_one(Invoice, world.ids["a1"])
        new = Invoice(note="new")
        session.add(new)
        async with tenant_session(session, world.a):
            assert invoice in session
            assert new in session.new
        assert invoice in session
        assert new in session.new


async def test_a_relationship_does_not_carry_objects_into_another_scope(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        invoice = await session.get_one(Invoice, world.ids["a1"])
        session.add(Line(invoice=invoice, amount=1))
        await session.commit()
        loaded = await session.get_one(
            Invoice, invoice.id, options=[selectinload(Invoice.lines)], populate_existing=True
        )
        line = loaded.lines[0]
        async with tenant_session(session, world.b):
            assert line not in session
            assert await session.get(Line, line.id) is None
        assert line in session


async def test_a_session_closed_inside_the_block(session: AsyncSession, world: World) -> None:
    country = Country(code=uuid4().hex, name="shared")
    session.add(country)
    await session.commit()
    async with tenant_session(session, world.a):
        assert await visible(session) == ["a1", "a2"]
        await session.close()
        assert await visible(session) == ["a1", "a2"]
    assert country not in session
    assert await visible(session) == []


@pytest.mark.parametrize("method", ["close", "invalidate", "reset"])
async def test_objects_put_back_after_a_session_was_closed_show_what_is_stored(
    session: AsyncSession, world: World, method: str
) -> None:
    """Also where a savepoint was released before, which is no commit."""
    async with tenant_session(session, world.a):
        mine = await session.get_one(Invoice, world.ids["a1"])
        async with session.begin_nested():
            mine.note = "undone"
            session.add(new := Invoice(note="new"))
        async with tenant_session(session, world.b):
            assert await visible(session) == ["b1", "b2"]
            new_id = new.id
            await getattr(session, method)()
        assert await session.get(Invoice, new_id) is None
        await session.refresh(mine)
        assert mine.note == "a1"


@pytest.mark.parametrize("expire_on_commit", [False, True])
@pytest.mark.parametrize("commits", [False, True])
async def test_objects_put_back_after_no_loss_are_as_they_were(
    engine: AsyncEngine, world: World, commits: bool, expire_on_commit: bool
) -> None:
    async with (
        AsyncSession(engine, expire_on_commit=expire_on_commit) as session,
        tenant_session(session, world.a),
    ):
        mine = await session.get_one(Invoice, world.ids["a1"])
        async with tenant_session(session, world.b):
            async with session.begin_nested():
                assert await visible(session) == ["b1", "b2"]
            if commits:
                await session.commit()
                await session.close()
        assert mine in session
        assert inspect(mine).expired is (commits and expire_on_commit)


async def test_leaving_begins_no_transaction(session: AsyncSession, world: World) -> None:
    country = Country(code=uuid4().hex, name="shared")
    session.add(country)
    await session.commit()
    async with tenant_session(session, world.a):
        await session.commit()
    assert country in session
    assert not session.in_transaction()


async def test_an_object_of_no_tenant_does_not_bring_a_tenants_objects_along(
    session: AsyncSession, world: World
) -> None:
    country = Country(code=uuid4().hex, name="shared")
    session.add(country)
    await session.commit()
    async with tenant_session(session, world.a):
        invoice = await session.get_one(Invoice, world.ids["a1"])
        await session.refresh(country, ["invoices"])
        country.invoices.append(invoice)
        await session.commit()
        async with tenant_session(session, world.b):
            assert country in session
            assert invoice not in session
            assert await session.get(Invoice, invoice.id) is None
    assert country in session
    assert invoice not in session


async def test_a_copy_of_a_sessions_info_is_in_no_scope(
    session: AsyncSession, engine: AsyncEngine, world: World
) -> None:
    async with tenant_session(session, world.a):
        await session.commit()
        async with AsyncSession(engine, info=dict(session.info)) as other:
            assert current_tenant(other) is None
            assert await visible(other) == []


async def test_a_session_without_autobegin(engine: AsyncEngine, world: World) -> None:
    async with AsyncSession(engine, autobegin=False) as session:
        country = Country(code=uuid4().hex, name="shared")
        async with session.begin():
            session.add(country)
        async with tenant_session(session, world.a), session.begin():
            assert await visible(session) == ["a1", "a2"]
        assert country in session
        async with session.begin():
            assert await visible(session) == []


@pytest.mark.parametrize("rolls_back", [False, True])
async def test_a_session_closed_for_good_inside_the_block(
    engine: AsyncEngine, world: World, rolls_back: bool
) -> None:
    session = AsyncSession(engine, close_resets_only=False)
    async with tenant_session(session, world.a):
        invoice = await session.get_one(Invoice, world.ids["a1"])
        async with tenant_session(session, world.b):
            if rolls_back:
                await session.rollback()
            await session.close()
    assert inspect(invoice).detached


@pytest.mark.parametrize("inner", [True, False], ids=["nested", "one after the other"])
async def test_a_relationship_of_an_object_of_no_tenant_is_loaded_for_each_tenant(
    session: AsyncSession, world: World, inner: bool
) -> None:
    country = Country(code=uuid4().hex, name="shared")
    session.add(country)
    await session.commit()
    for note, tenant in (("a1", world.a), ("b1", world.b)):
        async with tenant_session(session, tenant):
            (await session.get_one(Invoice, world.ids[note])).country_code = country.code
            await session.commit()

    async def notes() -> list[str]:
        await session.refresh(country, ["invoices"]) if inner else None
        loaded = await session.scalars(
            select(Country)
            .where(Country.code == country.code)
            .options(selectinload(Country.invoices))
        )
        return [invoice.note for invoice in loaded.one().invoices]

    assert await notes() == []
    async with AsyncExitStack() as scopes:
        for note, tenant in (("a1", world.a), ("b1", world.b)):
            if not inner:
                await scopes.aclose()
            await scopes.enter_async_context(tenant_session(session, tenant))
            assert "invoices" in inspect(country).unloaded
            assert await notes() == [note]
    assert await notes() == []


async def test_a_computed_column_of_an_object_of_no_tenant_is_computed_for_each_tenant(
    session: AsyncSession, world: World
) -> None:
    country = Country(code=uuid4().hex, name="shared")
    session.add(country)
    await session.commit()
    await session.refresh(country, ["visible_invoices"])
    counts = [country.visible_invoices]
    for tenant in (world.a, world.b):
        async with tenant_session(session, tenant):
            assert "visible_invoices" in inspect(country).unloaded
            await session.refresh(country, ["visible_invoices"])
            counts.append(country.visible_invoices)
            async with session.begin_nested():
                session.add(Invoice(note="one more"))
    assert counts == [0, 2, 2]
    assert "visible_invoices" in inspect(country).unloaded


async def test_a_relationship_that_was_declared_after_the_first_scope(
    session: AsyncSession, world: World
) -> None:
    """By a backref of a class that is imported later, or as it is here."""

    class LateBase(DeclarativeBase):
        pass

    class LateCountry(LateBase):
        __tablename__ = "country"

        code: Mapped[str] = mapped_column(primary_key=True)
        name: Mapped[str]
        if TYPE_CHECKING:  # made below
            invoices: Mapped[list[LateInvoice]]

    class LateInvoice(LateBase):
        __tablename__ = "invoice"

        id: Mapped[int] = mapped_column(primary_key=True)
        country_code: Mapped[str | None] = mapped_column(ForeignKey("country.code"))

    session.add(country := LateCountry(code=uuid4().hex, name="shared"))
    await session.commit()
    async with tenant_session(session, world.a):
        mine = await session.get_one(LateInvoice, world.ids["a1"])
        mine.country_code = country.code
        await session.commit()
    LateCountry.invoices = relationship(LateInvoice)
    async with tenant_session(session, world.a):
        loaded = await session.run_sync(lambda _: list(country.invoices))
        assert [one.id for one in loaded] == [mine.id]
    async with tenant_session(session, world.b):
        assert await session.run_sync(lambda _: list(country.invoices)) == []


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("how", ["refresh", "refresh of one", "query"])
async def test_what_an_object_of_no_tenant_has_loaded_again_is_forgotten(
    session: AsyncSession, world: World, how: str, nested: bool
) -> None:
    """It may be of a view: the same row for all tenants, and in it what each of them may see."""
    session.add(Country(code=(code := uuid4().hex), name="shared"))
    await session.commit()
    summary = await session.get_one(Summary, code)
    async with AsyncExitStack() as scopes:
        await scopes.enter_async_context(tenant_session(session, world.a))
        if how == "query":
            await session.get(Summary, code, populate_existing=True)
        else:
            await session.refresh(summary, None if how == "refresh" else ["notes"])
        assert summary.notes == "a1, a2"
        if not nested:
            await scopes.aclose()
            assert "notes" in inspect(summary).unloaded
        await scopes.enter_async_context(tenant_session(session, world.b))
        again = await session.get_one(Summary, code)
        assert again is summary
        assert await session.run_sync(lambda _: again.notes) == "b1, b2"


async def test_an_object_of_no_tenant_that_was_not_loaded_again_stays_as_it_is(
    session: AsyncSession, world: World
) -> None:
    session.add_all(Country(code=uuid4().hex, name=name) for name in ("one", "two"))
    one, two = session.new
    await session.commit()
    async with tenant_session(session, world.a):
        await session.refresh(one)
    assert two.name == "two"
    assert "name" in inspect(one).unloaded
    await session.refresh(one)
    async with tenant_session(session, world.b):
        assert one.name == "one"


@pytest.mark.parametrize("how", ["evaluate", "fetch", "by primary key"])
async def test_an_update_of_rows_whose_objects_are_loaded(
    session: AsyncSession, world: World, how: str
) -> None:
    """SQLAlchemy changes the objects along with the rows, and tells of that without a session."""
    code = uuid4().hex
    session.add(country := Country(code=code, name="shared"))
    await session.commit()

    async def rename(name: str) -> None:
        if how == "by primary key":
            await session.execute(update(Country), [{"code": code, "name": name}])
        else:
            statement = update(Country).where(Country.code == code).values(name=name)
            await session.execute(statement, execution_options={"synchronize_session": how})

    await rename("once")
    assert country.name == "once"
    async with tenant_session(session, world.a):
        await rename("twice")
        assert country.name == "twice"
    assert "name" in inspect(country).unloaded


async def test_a_change_by_somebody_else_is_noticed_after_a_change_in_a_scope(
    session: AsyncSession, world: World
) -> None:
    """By the version that the UPDATE of the scope counted; one loaded later would hide it."""
    code = uuid4().hex
    session.add(currency := Currency(code=code, name="shared"))
    await session.commit()
    async with tenant_session(session, world.a):
        currency.name = "changed"
        await session.commit()
    await world.truth(
        "UPDATE currency SET name = 'theirs', version = version + 1 WHERE code = $1", code
    )
    currency.name += "!"
    with pytest.raises(StaleDataError):
        await session.commit()


async def test_a_composite_of_an_object_that_was_changed(
    session: AsyncSession, world: World
) -> None:
    """SQLAlchemy makes it again when it is read, and tells of that without a session."""
    code = uuid4().hex
    session.add(label := Label(code=code, name="shared"))
    await session.commit()
    assert label.both == Both(code, "shared")
    async with tenant_session(session, world.a):
        label.name = "changed"
        await session.commit()
        assert label.both == Both(code, "changed")
    assert label.both == Both(code, "changed")


async def test_objects_of_an_inner_scope_do_not_stay_where_the_outer_one_has_none(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        async with tenant_session(session, world.b):
            theirs = await session.get_one(Invoice, world.ids["b1"])
        assert theirs not in session
        assert await session.get(Invoice, world.ids["b1"]) is None


async def test_cascades_of_objects_of_no_tenant_keep_no_tenants_object(
    engine: AsyncEngine, world: World
) -> None:
    """With cascade="all" expunging one object takes others along."""
    async with AsyncSession(engine, expire_on_commit=False) as session:
        family = CountryWithAll(code=uuid4().hex, name="shared")
        session.add(family)
        await session.commit()
        async with tenant_session(session, world.a):
            invoice = InvoiceWithAll(note="in a", lines=[LineWithAll(amount=1)])
            await session.refresh(family, ["invoices"])
            family.invoices.append(invoice)
            await session.commit()
        assert family in session
        assert invoice not in session
        async with tenant_session(session, world.b):
            assert await session.get(InvoiceWithAll, invoice.id) is None


async def test_what_an_object_was_given_while_set_aside_does_not_come_back_with_it(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        family = CountryWithAll(code=uuid4().hex, name="of a", invoices=[])
        session.add(family)
        async with tenant_session(session, world.b):
            theirs = InvoiceWithAll(note="b3", lines=[LineWithAll(amount=1)])
            session.add(theirs)
            await session.flush()
            family.invoices.append(theirs)
        assert list(session) == [family]
        family.invoices.remove(theirs)
        assert await session.get(InvoiceWithAll, theirs.id) is None
        assert await session.get(LineWithAll, theirs.lines[0].id) is None


async def test_objects_that_cannot_come_back_are_an_error_and_leave_nothing(
    session: AsyncSession, engine: AsyncEngine, world: World
) -> None:
    """One of them brings along what is attached to another session."""
    async with AsyncSession(engine) as other:
        elsewhere = InvoiceWithAll(note="other")
        other.add(elsewhere)
        async with tenant_session(session, world.a):
            family = CountryWithAll(code=uuid4().hex, name="of a", invoices=[])
            session.add(family)
            with pytest.raises(InvalidRequestError, match="already attached"):
                async with tenant_session(session, world.b):
                    theirs = await session.get_one(InvoiceWithAll, world.ids["b1"])
                    family.invoices += [theirs, elsewhere]
            assert list(session) == []
            assert await session.get(InvoiceWithAll, world.ids["b1"]) is None
            assert await visible(session) == ["a1", "a2"]


@pytest.mark.parametrize("expire_on_commit", [False, True])
@pytest.mark.parametrize("end", ["flush", "commit"])
async def test_an_object_deleted_in_the_inner_scope_does_not_come_back(
    engine: AsyncEngine, world: World, end: str, expire_on_commit: bool
) -> None:
    """The session lets go of it at the commit only where that expires objects."""
    async with (
        AsyncSession(engine, expire_on_commit=expire_on_commit) as session,
        tenant_session(session, world.a),
    ):
        mine = await session.get_one(Invoice, world.ids["a1"])
        country = Country(code=uuid4().hex, name="of a")
        session.add(country)
        async with tenant_session(session, world.b):
            await session.delete(country)
            await getattr(session, end)()
        assert list(session) == [mine]


async def test_an_object_that_came_into_the_inner_scope_goes_back_to_its_own(
    session: AsyncSession, world: World
) -> None:
    async with tenant_session(session, world.a):
        invoice = await session.get_one(Invoice, world.ids["a1"])
        async with tenant_session(session, world.b):
            session.add(invoice)
        assert invoice in session
        invoice.note = "changed"
        await session.commit()
    assert await world.notes(world.a) == ["a2", "changed"]


async def test_scopes_left_in_the_wrong_order_are_an_error_and_leave_no_tenant(
    session: AsyncSession, world: World
) -> None:
    first, second = tenant_session(session, world.a), tenant_session(session, world.b)
    await first.__aenter__()
    mine = await session.get_one(Invoice, world.ids["a1"])
    await second.__aenter__()
    with pytest.raises(TenantScopeError, match="reverse order"):
        await first.__aexit__(None, None, None)
    assert current_tenant(session) == world.b
    assert await visible(session) == ["b1", "b2"]
    await second.__aexit__(None, None, None)
    assert current_tenant(session) is None
    assert mine not in session
    assert await visible(session) == []


async def test_scopes_of_one_tenant_left_in_the_wrong_order(
    session: AsyncSession, world: World
) -> None:
    """The one that is still open stays in force."""
    first, second = tenant_session(session, world.a), tenant_session(session, world.a)
    await first.__aenter__()
    await second.__aenter__()
    with pytest.raises(TenantScopeError, match="reverse order"):
        await first.__aexit__(None, None, None)
    assert await visible(session) == ["a1", "a2"]
    await second.__aexit__(None, None, None)
    assert current_tenant(session) is None
    assert await visible(session) == []


async def test_a_repeated_scope_left_in_the_wrong_order_keeps_the_order_of_the_others(
    session: AsyncSession, world: World
) -> None:
    outer, repeated = tenant_session(session, world.a), tenant_session(session, world.a)
    await outer.__aenter__()
    mine = await session.get_one(Invoice, world.ids["a1"])
    await repeated.__aenter__()
    async with tenant_session(session, world.b):
        with pytest.raises(TenantScopeError, match="reverse order"):
            await repeated.__aexit__(None, None, None)
        assert await visible(session) == ["b1", "b2"]
    assert await visible(session) == ["a1", "a2"]
    assert mine in session
    await outer.__aexit__(None, None, None)
    assert await visible(session) == []


async def test_scopes_left_in_the_wrong_order_around_a_rollback(
    session: AsyncSession, world: World
) -> None:
    """What it puts back may be out of date by what came before it was entered, too."""
    async with tenant_session(session, world.a):
        mine = await session.get_one(Invoice, world.ids["a1"])
        mine.note = "undone"
        first, second = tenant_session(session, world.b), tenant_session(session, world.a)
        await first.__aenter__()
        await session.rollback()
        await second.__aenter__()
        with pytest.raises(TenantScopeError, match="reverse order"):
            await first.__aexit__(None, None, None)
        await second.__aexit__(None, None, None)
        await session.refresh(mine, ["country_code"])
        assert await session.run_sync(lambda _: mine.note) == "a1"


async def test_an_expired_object_is_not_loaded_in_another_tenants_scope(
    expiring: AsyncSession, world: World
) -> None:
    session = expiring
    async with tenant_session(session, world.a):
        invoice = await session.get_one(Invoice, world.ids["a1"])
        await session.commit()
        async with tenant_session(session, world.b):
            await assert_cannot_be_loaded(session, invoice)
            session.add(invoice)
            for names in (None, ["lines"], ["country"]):
                with pytest.raises(InvalidRequestError, match="Could not refresh"):
                    await session.refresh(invoice, names)
        await session.refresh(invoice)
        assert invoice.note == "a1"


async def test_an_expired_object_is_not_loaded_after_the_block(
    expiring: AsyncSession, world: World
) -> None:
    session = expiring
    async with tenant_session(session, world.a):
        invoice = await session.get_one(Invoice, world.ids["a1"])
        await session.commit()
    await assert_cannot_be_loaded(session, invoice)
    async with tenant_session(session, world.b):
        await assert_cannot_be_loaded(session, invoice)


async def assert_cannot_be_loaded(session: AsyncSession, invoice: Invoice) -> None:
    with pytest.raises(InvalidRequestError, match="not persistent"):
        await session.refresh(invoice)
    with pytest.raises(DetachedInstanceError):
        await session.run_sync(lambda _: invoice.note)
    with pytest.raises(DetachedInstanceError):
        await session.run_sync(lambda _: invoice.lines)


async def test_a_relationship_of_an_expired_object_of_no_tenant(
    expiring: AsyncSession, world: World
) -> None:
    """Loaded on access, also after a commit, it holds what the tenant in force may see."""
    session = expiring
    country = Country(code=uuid4().hex, name="shared")
    session.add(country)
    await session.commit()

    async def notes() -> list[str]:
        return await session.run_sync(lambda _: [one.note for one in country.invoices])

    for note, tenant in (("a1", world.a), ("b1", world.b)):
        async with tenant_session(session, tenant):
            await session.refresh(country)
            (await session.get_one(Invoice, world.ids[note])).country_code = country.code
            await session.commit()
            assert await notes() == [note]
            await session.commit()
    assert await notes() == []


async def test_objects_expired_by_a_commit_in_the_inner_scope_come_back_expired(
    expiring: AsyncSession, world: World
) -> None:
    async with tenant_session(expiring, world.a):
        invoice = await expiring.get_one(Invoice, world.ids["a1"])
        async with tenant_session(expiring, world.b):
            await expiring.commit()
        assert inspect(invoice).expired
