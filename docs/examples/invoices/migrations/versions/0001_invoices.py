"""Invoices, the policy that keeps tenants apart, and the role that the service connects as."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ROLE = "invoices_app"
CURRENT_TENANT = "(NULLIF(current_setting('app.current_tenant'::text, true), ''::text))::uuid"


def upgrade() -> None:
    # Roles belong to the whole server: take the one that is there. Who owns a table, is a
    # superuser or may bypass row-level security is not held by policies, so the service is none
    # of these. Without a password nobody can log in as it; that is set where secrets are kept.
    op.execute(
        f"""
        DO $$ BEGIN
            CREATE ROLE {ROLE} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
        END $$
        """
    )
    op.create_table(
        "invoice",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("tenant_id", sa.Uuid, server_default=sa.text(CURRENT_TENANT), nullable=False),
        sa.Column("customer", sa.Text, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_invoice_tenant_id", "invoice", ["tenant_id"])
    op.execute("ALTER TABLE invoice ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE invoice FORCE ROW LEVEL SECURITY")
    op.execute(
        f"""
        CREATE POLICY tenant_isolation ON invoice TO {ROLE}
            USING (tenant_id = {CURRENT_TENANT})
            WITH CHECK (tenant_id = {CURRENT_TENANT})
        """
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON invoice TO {ROLE}")


def downgrade() -> None:
    # The role stays: other databases of the server may use it.
    op.drop_table("invoice")
