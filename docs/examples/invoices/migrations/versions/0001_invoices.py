"""Invoices, the policies that keep tenants apart, and the role that the service connects as."""

from __future__ import annotations

import sqlalchemy as sa

from mgf.alembic import op
from mgf.sqlalchemy import rls

revision = "0001"
down_revision = None

# As autogenerate wrote it, but for names that stand for what it repeats.
ROLE = "invoices_app"
MINE = "tenant_id = (SELECT NULLIF(current_setting('app.current_tenant', true), '')::uuid)"
PROTECTION = rls.TableProtection(
    "invoice",
    policies=(
        rls.Policy("tenant_floor", "invoice", using=MINE, with_check=MINE, restrictive=True),
        rls.Policy("tenant_isolation", "invoice", to=ROLE, using=MINE, with_check=MINE),
    ),
    grants=(rls.Grant(("SELECT", "INSERT", "UPDATE", "DELETE"), "invoice", to=ROLE),),
)


def upgrade() -> None:
    # By hand. Without a password nobody can log in as it; that is set where secrets are kept.
    rls.ensure_app_role(op.get_bind(), ROLE)
    op.create_table(
        "invoice",
        sa.Column("tenant_id", sa.Uuid, server_default=rls.tenant_default(), nullable=False),
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("customer", sa.Text, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("due", sa.Date, nullable=False),
        sa.Column("late_fee", sa.BigInteger),
    )
    op.create_index("ix_invoice_tenant_id_id", "invoice", ["tenant_id", "id"])
    op.protect_table(PROTECTION)
    # The service compares it with the migrations that it knows before it serves.
    op.execute(f"GRANT SELECT ON alembic_version TO {ROLE}")


def downgrade() -> None:
    # The role stays: other databases of the server may use it.
    op.unprotect_table(PROTECTION)
    op.drop_table("invoice")
