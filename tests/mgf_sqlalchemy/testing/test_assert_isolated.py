"""`assert_isolated` passes where tenants are kept apart, and else says where and how."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from mgf_sqlalchemy.testing.processes import ask
from sqlalchemy import ForeignKey, MetaData, NullPool
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import create_engine, create_sessionmaker, tenant_scope
from mgf.sqlalchemy.rls import TenantMixin, child_table, protect_metadata, shared_table
from mgf.sqlalchemy.testing import assert_isolated, rolled_back
from mgf.sqlalchemy.testing._database import make_template
from mgf.sqlalchemy.testing.pytest_plugin import mgf_tenants

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from uuid import UUID

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

    from mgf.sqlalchemy.testing import TemporaryDatabase, TemporaryPostgres
    from mgf.sqlalchemy.testing._database import Template

__all__ = ["mgf_tenants"]


class Base(DeclarativeBase):
    pass


class Note(TenantMixin, Base):
    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@child_table(reason="a letter is a note with an address")
class Letter(Note):
    __tablename__ = "letter"

    id: Mapped[int] = mapped_column(ForeignKey("note.id"), primary_key=True)
    address: Mapped[str]


class Bill(TenantMixin, Base):
    __tablename__ = "bill"

    id: Mapped[int] = mapped_column(primary_key=True)


@shared_table(reason="the same for all")
class Country(Base):
    __tablename__ = "country"

    code: Mapped[str] = mapped_column(primary_key=True)


protect_metadata(Base.metadata, role="isolated_app")

OPEN = "ALTER TABLE {} DISABLE ROW LEVEL SECURITY"


async def create_schema(owner_url: URL) -> None:
    async with create_engine(owner_url, poolclass=NullPool).begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


@pytest.fixture(scope="module")
def template(each_server: TemporaryPostgres) -> Iterator[Template]:
    with make_template(
        each_server.url,
        role="isolated_app",
        is_shared=False,
        create_schema=create_schema,
        metadata=Base.metadata,
    ) as template:
        yield template


@pytest.fixture(scope="module")
def sound(template: Template) -> Iterator[TemporaryDatabase]:
    """A database in which nothing is wrong."""
    with template.copy() as database:
        yield database


@pytest.fixture
def engine(sound: TemporaryDatabase) -> AsyncEngine:
    return app_engine(sound)


def app_engine(database: TemporaryDatabase) -> AsyncEngine:
    return create_engine(database.app_url, poolclass=NullPool)


@contextmanager
def broken(template: Template, *statements: str) -> Generator[AsyncEngine]:
    with template.copy() as database:
        for statement in statements:
            ask(database.owner_url, statement)
        yield app_engine(database)


@pytest.mark.parametrize(
    "target",
    [Base, Base.metadata, Note, Letter, Note.__table__],
    ids=["base", "metadata", "model", "joined model", "table"],
)
async def test_where_nothing_is_wrong_it_passes(engine: AsyncEngine, target: Any) -> None:
    await assert_isolated(engine, target)


async def test_a_sessionmaker_is_taken_for_its_engine(engine: AsyncEngine) -> None:
    await assert_isolated(create_sessionmaker(engine, require_tenant=True), Note)


async def test_what_was_open_on_a_connection_stays(
    engine: AsyncEngine, mgf_tenants: tuple[UUID, UUID]
) -> None:
    maker = create_sessionmaker(engine)
    async with rolled_back(maker) as connection:
        async with tenant_scope(maker, mgf_tenants[0]) as session:
            session.add(Bill(id=1))
            await session.commit()
        await assert_isolated(maker, Bill)
        await assert_isolated(connection, Bill)
        async with tenant_scope(maker, mgf_tenants[0]) as session:
            assert await session.get(Bill, 1) is not None


async def test_a_connection_is_left_without_a_transaction(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await assert_isolated(connection, Bill)
        assert not connection.in_transaction()


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        pytest.param(
            [OPEN.format("note")],
            ["probe-read", " public.note\n", "ALTER TABLE public.note ENABLE ROW LEVEL SECURITY"],
            id="no row-level security",
        ),
        pytest.param(
            ["DROP POLICY tenant_floor ON note", "CREATE POLICY open ON note USING (true)"],
            ["probe-read", "probe-blind-delete", " public.note\n", "-- the audit tells"],
            id="an open policy",
        ),
        pytest.param(
            ["DROP POLICY tenant_isolation ON note"],
            ["Not proven\n  public.note: own-read"],
            id="no policy that shows anything",
        ),
        pytest.param(
            ["CREATE VIEW notes AS SELECT * FROM note", "GRANT SELECT ON notes TO isolated_app"],
            ["probe-read", " public.notes\n", "SET (security_invoker = true)"],
            id="a view with its owner's rights",
        ),
        pytest.param(
            ["DROP TABLE note CASCADE"], ["Not proven\n  public.note: any"], id="no table"
        ),
    ],
)
async def test_what_is_wrong_is_named_with_attack_and_remedy(
    template: Template, statements: list[str], says: list[str]
) -> None:
    with broken(template, *statements) as engine:
        with pytest.raises(AssertionError) as failed:
            await assert_isolated(engine, Note)
        for one in says:
            assert one in str(failed.value)


async def test_a_role_that_is_exempt_is_named(template: Template) -> None:
    with broken(template, "CREATE ROLE isolated_root SUPERUSER LOGIN PASSWORD 'root'") as engine:
        root = create_engine(
            engine.url.set(username="isolated_root", password="root"), poolclass=NullPool
        )
        with pytest.raises(AssertionError, match="ALTER ROLE isolated_root NOSUPERUSER"):
            await assert_isolated(root, Note)
        ask(template.urls.owner_url, "GRANT isolated_root TO isolated_app")
        with pytest.raises(AssertionError, match="role isolated_root"):
            await assert_isolated(engine, Note)
    ask(template.urls.owner_url, "DROP ROLE isolated_root")


async def test_a_model_answers_for_its_own_relations_alone(template: Template) -> None:
    with broken(template, OPEN.format("note")) as engine:
        await assert_isolated(engine, Bill)
        for target in (Base, Letter):
            with pytest.raises(AssertionError, match=r"public\.note"):
                await assert_isolated(engine, target)


async def test_a_model_answers_for_what_its_table_inherits_from(template: Template) -> None:
    """A parent shows the rows of its heirs, and is no business of its other heirs."""
    parent = (
        "CREATE TABLE parent (id int)",
        "ALTER TABLE bill ALTER id TYPE int, INHERIT parent",
        "GRANT SELECT ON parent TO isolated_app",
    )
    with broken(template, *parent) as engine:
        await assert_isolated(engine, Note)
        with pytest.raises(AssertionError, match=r"public\.parent"):
            await assert_isolated(engine, Bill)


async def test_a_role_may_be_taken_by_another_login(sound: TemporaryDatabase) -> None:
    owner = create_engine(sound.owner_url, poolclass=NullPool)
    await assert_isolated(owner, Bill, role="isolated_app")
    with pytest.raises(AssertionError, match=r"(?s)probe-read.* public\.bill\n"):
        await assert_isolated(owner, Bill)


async def test_what_need_not_be_attacked_or_may_succeed_has_a_reason(template: Template) -> None:
    with broken(template, "DROP POLICY tenant_isolation ON bill") as engine:
        await assert_isolated(engine, Bill, not_proven={"public.bill": "to be built"})
        with pytest.raises(AppConfigError, match="gives no reason"):
            await assert_isolated(engine, Bill, not_proven={"public.bill": " "})
    with broken(template, "GRANT TRUNCATE ON bill TO isolated_app") as engine:
        await assert_isolated(engine, Bill, ignore={"probe-truncate public.bill": "in tests"})


async def test_a_metadata_that_is_not_protected_is_judged_by_the_tenant_column(
    template: Template,
) -> None:
    metadata = MetaData()
    with broken(template) as engine:
        async with engine.connect() as connection:
            await connection.run_sync(metadata.reflect)
        await assert_isolated(engine, metadata)
        await assert_isolated(engine, metadata.tables["bill"])
        with pytest.raises(AppConfigError, match="has a column 'tenant_id'"):
            await assert_isolated(engine, metadata.tables["country"])


@pytest.mark.parametrize("target", [Country, MetaData()], ids=["shared", "empty"])
async def test_a_target_without_tenants_is_refused(engine: AsyncEngine, target: Any) -> None:
    with pytest.raises(AppConfigError, match="nothing to isolate"):
        await assert_isolated(engine, target)


@pytest.mark.parametrize(
    "target", [object, Note(), "note", None], ids=["class", "row", "name", "none"]
)
async def test_another_target_is_refused(engine: AsyncEngine, target: Any) -> None:
    with pytest.raises(TypeError, match="is about a MetaData"):
        await assert_isolated(engine, target)


@pytest.mark.parametrize(
    "make",
    [lambda url: url, lambda _: async_sessionmaker(), lambda _: None],
    ids=["url", "no engine", "none"],
)
async def test_another_bind_is_refused_without_showing_it(
    sound: TemporaryDatabase, make: Callable[[str], Any]
) -> None:
    url = sound.app_url.render_as_string(hide_password=False)
    with pytest.raises(TypeError, match="takes an AsyncEngine") as refused:
        await assert_isolated(make(url), Note)
    assert str(sound.app_url.password) not in str(refused.value)
