"""What the service stores: invoices, each of which belongs to one tenant."""

from __future__ import annotations

from datetime import date  # noqa: TC003 - SQLAlchemy reads it from the annotation

from sqlalchemy import BigInteger, Identity, Index, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from mgf.sqlalchemy.rls import TenantMixin, protect_metadata

ROLE = "invoices_app"


class Base(DeclarativeBase):
    pass


class Invoice(TenantMixin, Base):
    __tablename__ = "invoice"
    # What a page of a tenant's invoices is read by.
    __table_args__ = (Index("ix_invoice_tenant_id_id", "tenant_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    customer: Mapped[str] = mapped_column(Text)
    amount: Mapped[int] = mapped_column(BigInteger)
    due: Mapped[date]
    late_fee: Mapped[int | None] = mapped_column(BigInteger)


protect_metadata(Base.metadata, role=ROLE)
