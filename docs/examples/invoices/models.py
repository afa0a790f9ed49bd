"""What the service stores: invoices, each of which belongs to one tenant."""

from __future__ import annotations

from uuid import UUID  # noqa: TC003 - SQLAlchemy reads it from the annotations

from sqlalchemy import BigInteger, Identity, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# The tenant whose scope the transaction is in, else NULL. Written as PostgreSQL prints it, so that
# comparing the models with the database finds no difference.
CURRENT_TENANT = "(NULLIF(current_setting('app.current_tenant'::text, true), ''::text))::uuid"


class Base(DeclarativeBase):
    pass


class Invoice(Base):
    __tablename__ = "invoice"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    # A new row belongs to the tenant that writes it: nobody needs to name it.
    tenant_id: Mapped[UUID] = mapped_column(server_default=text(CURRENT_TENANT), index=True)
    customer: Mapped[str] = mapped_column(Text)
    amount: Mapped[int] = mapped_column(BigInteger)
