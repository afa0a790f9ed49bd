"""Keys that carry the tenant neither tell of other tenants' rows nor lead to them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    configure_mappers,
    mapped_column,
    relationship,
    selectinload,
)

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls import (
    TenantMixin,
    protect_metadata,
    tenant_foreign_key,
    tenant_unique,
)

if TYPE_CHECKING:
    from harness.schemas import Database

A, B = uuid4(), uuid4()


class Base(DeclarativeBase):
    pass


class Product(TenantMixin, Base):
    __tablename__ = "product"
    __table_args__ = (tenant_unique("id"), tenant_unique("code", name="product_code"))
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str]


class Order(TenantMixin, Base):
    __tablename__ = "order"
    __table_args__ = (tenant_unique("id"), {"schema": "sales"})
    id: Mapped[int] = mapped_column(primary_key=True)
    lines: Mapped[list[Line]] = relationship(
        back_populates="order", foreign_keys="Line.order_id", cascade="all, delete-orphan"
    )


class Line(TenantMixin, Base):
    __tablename__ = "line"
    __table_args__ = (
        tenant_foreign_key("order_id", "sales.order.id", ondelete="CASCADE"),
        tenant_foreign_key("product_id", "product.id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column()
    product_id: Mapped[int | None] = mapped_column()
    order: Mapped[Order] = relationship(back_populates="lines", foreign_keys=[order_id])
    product: Mapped[Product | None] = relationship(foreign_keys=[product_id])


protect_metadata(Base.metadata, role="app")


@pytest.fixture
async def world(database: Database) -> Database:
    database.run("CREATE SCHEMA sales")
    database.create(Base.metadata)
    async with database.scope(B, "product", "line", 'sales."order"') as session:
        session.add(Order(id=1, lines=[Line(product=Product(id=1, code="x"))]))
        await session.commit()
    return database


async def test_relationships_follow_them(world: Database) -> None:
    loaded = selectinload(Order.lines).joinedload(Line.product)
    async with world.scope(B) as session:
        order = (await session.scalars(sa.select(Order).options(loaded))).one()
        (line,) = order.lines
        assert line.tenant_id == B
        assert line.product is not None
        assert line.product.code == "x"


async def test_a_relationship_leaves_the_tenant_alone(world: Database) -> None:
    """Without foreign_keys= it would set the tenant to NULL as well."""
    lines = sa.select(Line).options(selectinload(Line.product))
    async with world.scope(B) as session:
        line = (await session.scalars(lines)).one()
        assert line.product is not None
        line.product = None
        await session.commit()
        assert (line.product_id, line.tenant_id) == (None, B)


async def test_the_same_value_may_stand_in_each_tenant(world: Database) -> None:
    async with world.scope(A) as session:
        session.add(Product(id=2, code="x"))
        await session.commit()


async def test_a_value_stands_once_within_a_tenant(world: Database) -> None:
    async with world.scope(B) as session:
        session.add(Product(id=2, code="x"))
        with pytest.raises(IntegrityError, match="product_code"):
            await session.commit()


@pytest.mark.parametrize("order_id", [1, 99])
async def test_a_row_of_others_and_one_that_is_not_there_look_the_same(
    world: Database, order_id: int
) -> None:
    async with world.scope(A) as session:
        session.add(Line(order_id=order_id))
        with pytest.raises(IntegrityError, match="violates foreign key constraint"):
            await session.commit()


async def test_a_cascade_stays_within_the_tenant(world: Database) -> None:
    async with world.scope(B) as session:
        await session.delete((await session.scalars(sa.select(Order))).one())
        await session.commit()
    assert world.ask("SELECT count(*) FROM line") == 0


def test_mapping_gives_no_warning() -> None:
    configure_mappers()  # a warning would be an error
    assert str(Line.order.property.primaryjoin) == 'sales."order".id = line.order_id'


def test_no_index_is_added_beside_the_key() -> None:
    assert Base.metadata.tables["product"].indexes == set()


def test_the_tenant_columns_may_have_names_of_their_own() -> None:
    key = tenant_foreign_key(["a", "b"], ["t.x", "t.y"], column="owner", parent_column="tenant")

    assert key.column_keys == ["owner", "a", "b"]
    assert [element.target_fullname for element in key.elements] == ["t.tenant", "t.x", "t.y"]


def test_a_reference_without_a_table_is_refused() -> None:
    with pytest.raises(AppConfigError, match="refers to 'id'; name the table too"):
        tenant_foreign_key("order_id", "id")
