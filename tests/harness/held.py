"""A database that is migrated by the owner of its tables, whom their policies hold too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.schemas import ROLE
from harness.servers import new_database, run_sql
from harness.tenants import APP_PASSWORD, TENANT

if TYPE_CHECKING:
    from sqlalchemy import URL

MIGRATOR_PASSWORD = "migrator-password"
ONE = "00000000-0000-0000-0000-000000000001"
TWO = "00000000-0000-0000-0000-000000000002"
FORCED = """
    SELECT relname::text FROM pg_class
    WHERE relforcerowsecurity AND relnamespace = 'public'::regnamespace
    ORDER BY relname
"""

_MIGRATOR = f"""
DO $$ BEGIN
    CREATE ROLE migrator LOGIN NOSUPERUSER NOBYPASSRLS PASSWORD '{MIGRATOR_PASSWORD}';
EXCEPTION WHEN duplicate_object THEN NULL;
END $$;
GRANT CREATE ON SCHEMA public TO migrator;
SET ROLE migrator;
"""
_COLUMNS = f"id int PRIMARY KEY, tenant_id uuid NOT NULL DEFAULT {TENANT}, note text"
_TABLES = f"""
CREATE TABLE country (code text PRIMARY KEY, invoice text);
CREATE TABLE invoice ({_COLUMNS});
CREATE TABLE payment ({_COLUMNS},
    invoice_id int REFERENCES invoice DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE "Order" ({_COLUMNS});
CREATE TABLE unforced ({_COLUMNS});
CREATE TABLE event ({_COLUMNS}) PARTITION BY RANGE (id);
CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM (0) TO (10);
INSERT INTO country VALUES ('XX');
"""
_PROTECTED = ("invoice", "payment", '"Order"', "unforced", "event", "event_1")
_ROWS = "".join(
    f"INSERT INTO {table} VALUES (1, '{ONE}'), (2, '{TWO}');" for table in _PROTECTED[:-1]
)
_PROTECTION = "".join(
    f"""
    CREATE POLICY floor ON {table} USING (tenant_id = {TENANT});
    ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO app;
    """
    for table in _PROTECTED
)


async def new_held_database(server: URL) -> URL:
    """Make a database with two tenants' rows, and return the superuser's URL."""
    url = await new_database(server)
    unforce = "ALTER TABLE unforced NO FORCE ROW LEVEL SECURITY"
    await run_sql(url, ROLE, _MIGRATOR, _TABLES + _ROWS, _PROTECTION + unforce)
    return url


def as_migrator(url: URL, driver: str = "postgresql+psycopg2") -> URL:
    return url.set(drivername=driver, username="migrator", password=MIGRATOR_PASSWORD)


def as_app(url: URL) -> URL:
    return url.set(drivername="postgresql+psycopg2", username="app", password=APP_PASSWORD)
