"""What the service stores: invoices, each of which belongs to one tenant."""

from __future__ import annotations

from sqlalchemy import BigInteger, Identity, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from mgf.sqlalchemy.rls import TenantMixin, protect_metadata

ROLE = "invoices_app"


class Base(DeclarativeBase):
    pass


class Invoice(TenantMixin, Base):
    __tablename__ = "invoice"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    customer: Mapped[str] = mapped_column(Text)
    amount: Mapped[int] = mapped_column(BigInteger)


protect_metadata(Base.metadata, role=ROLE)
