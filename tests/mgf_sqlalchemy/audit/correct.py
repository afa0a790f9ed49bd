"""A schema in which nothing is wrong, and the role that policies hold there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import sqlalchemy as sa
from mgf_sqlalchemy.audit.documented import SEVERITIES
from sqlalchemy import Column, Identity, Integer, MetaData, Table, Text, Uuid

from harness.schemas import Database, refers_to, tenant_id
from mgf.sqlalchemy.audit import audit_connection, probe_connection
from mgf.sqlalchemy.rls import (
    child_table,
    ensure_app_role,
    invoker_view,
    protect_metadata,
    protect_partitions,
    shared_table,
    tenant_foreign_key,
    tenant_table,
    tenant_unique,
)

if TYPE_CHECKING:
    from mgf.sqlalchemy.audit import Finding, Report


def identity() -> Column[Any]:
    return Column("id", Integer, Identity(always=True), primary_key=True)


def make_metadata(role: str) -> MetaData:
    metadata = MetaData()
    account = Table("account", metadata, Column("id", Uuid, primary_key=True))
    tenant_table(column="id")(account)
    country = Table("country", metadata, Column("code", Text, primary_key=True))
    shared_table(reason="the world's")(country)
    invoice = Table(
        "invoice",
        metadata,
        identity(),
        tenant_id(),
        Column("number", Text),
        Column("country", sa.ForeignKey("country.code")),
        tenant_unique("id"),
        tenant_unique("number"),
        sa.ForeignKeyConstraint(["tenant_id"], ["account.id"]),
    )
    line = Table(
        "line",
        metadata,
        identity(),
        tenant_id(),
        Column("invoice_id", Integer, nullable=False),
        tenant_foreign_key("invoice_id", "invoice.id", ondelete="CASCADE"),
    )
    event = Table(
        "event",
        metadata,
        tenant_id(primary_key=True),
        Column("day", Integer, primary_key=True),
        postgresql_partition_by="RANGE (day)",
    )
    for table in (invoice, line, event):
        tenant_table()(table)
    remark = Table("remark", metadata, identity(), refers_to("invoice.id", "invoice_id"))
    child_table(reason="reached by its invoice alone")(remark)
    invoker_view("numbers", metadata, sa.select(invoice.c.id, invoice.c.number))
    protect_metadata(metadata, role=role)
    return metadata


class Correct:
    """A database with that schema, in which tests break one thing at a time."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.role = f"app_{uuid4().hex[:12]}"
        ensure_app_role(database.owner, self.role)
        self.metadata = make_metadata(self.role)
        self.metadata.create_all(database.owner)
        database.owner.commit()
        self.change(
            "CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM (0) TO (100)",
            "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)",
            "CREATE VIEW all_numbers WITH (security_invoker = on) AS SELECT * FROM numbers",
            "GRANT SELECT ON all_numbers TO {role}",
        )
        protect_partitions(database.owner, self.metadata)
        database.owner.commit()

    def change(self, *statements: str) -> None:
        """Run statements as superuser; the fixture rolls them back."""
        for one in statements:
            sql = one.replace("{role}", self.role).replace("%", "%%")
            self.database.owner.exec_driver_sql(sql)

    def audit(self, **options: Any) -> Report:
        report = audit_connection(self.database.owner, **{"role": self.role, **options})
        assert [one for one in report.findings if one.severity not in SEVERITIES[one.id]] == []
        return report

    def probe(self, **options: Any) -> Report:
        return probe_connection(self.database.owner, **{"role": self.role, **options})

    def ids(self, **options: Any) -> set[str]:
        """Return the ids of what counts."""
        return {one.id for one in counted(self.audit(**options))}


def counted(report: Report) -> list[Finding]:
    """Return what counts, but for the age of the server, and that a superuser asks."""
    asked = {"server-cve-floor": "error", "login-resets-role": "warning"}
    return [
        one
        for one in report.findings
        if one.severity != "info" and asked.get(one.id) != one.severity
    ]
