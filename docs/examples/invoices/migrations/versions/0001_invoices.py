"""Invoices, the policies that keep tenants apart, and the role that the service connects as."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from mgf.sqlalchemy.rls import (
    Grant,
    Policy,
    TableProtection,
    ensure_app_role,
    protect_table,
    tenant_default,
    tenant_predicate,
)

revision = "0001"
down_revision = None

ROLE = "invoices_app"
MINE = tenant_predicate("tenant_id")
PROTECTION = TableProtection(
    "invoice",
    policies=(
        Policy("tenant_isolation", "invoice", to=ROLE, using=MINE, with_check=MINE),
        Policy("tenant_floor", "invoice", restrictive=True, using=MINE, with_check=MINE),
    ),
    grants=(Grant(("SELECT", "INSERT", "UPDATE", "DELETE"), "invoice", to=ROLE),),
)


def upgrade() -> None:
    # Without a password nobody can log in as it; that is set where secrets are kept.
    ensure_app_role(op.get_bind(), ROLE)
    op.create_table(
        "invoice",
        sa.Column("tenant_id", sa.Uuid, server_default=tenant_default(), nullable=False),
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("customer", sa.Text, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("due", sa.Date, nullable=False),
        sa.Column("late_fee", sa.BigInteger),
    )
    op.create_index("ix_invoice_tenant_id_id", "invoice", ["tenant_id", "id"])
    for statement in protect_table(PROTECTION):
        op.execute(statement)
    # The service compares it with the migrations that it knows before it serves.
    op.execute(f"GRANT SELECT ON alembic_version TO {ROLE}")


def downgrade() -> None:
    # The role stays: other databases of the server may use it.
    op.drop_table("invoice")
