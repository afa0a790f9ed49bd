"""A small schema under row-level security, and the role that an application would use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy import ForeignKey, func, select, text
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    column_property,
    composite,
    mapped_column,
    relationship,
)

from harness.servers import dsn, new_database, run_sql

if TYPE_CHECKING:
    from sqlalchemy import URL

TENANT = "NULLIF(current_setting('app.current_tenant', true), '')::uuid"
APP_PASSWORD = "app-password"

SCHEMA = (
    f"""
    DO $$ BEGIN
        CREATE ROLE app LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE PASSWORD '{APP_PASSWORD}';
    EXCEPTION WHEN duplicate_object THEN NULL;
    END $$
    """,
    f"""
    CREATE TABLE country (code text PRIMARY KEY, name text NOT NULL);
    CREATE TABLE invoice (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant_id uuid NOT NULL DEFAULT {TENANT},
        note text NOT NULL,
        country_code text REFERENCES country
    );
    CREATE TABLE line (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant_id uuid NOT NULL DEFAULT {TENANT},
        invoice_id bigint NOT NULL REFERENCES invoice,
        amount int NOT NULL
    );
    GRANT SELECT, INSERT, UPDATE, DELETE ON invoice, line, country TO app;
    CREATE TABLE deferred (note text NOT NULL);
    CREATE TABLE audit (tenant_id uuid DEFAULT {TENANT}, note text NOT NULL);
    CREATE FUNCTION note_down() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO audit (note) VALUES (NEW.note); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER note_down AFTER INSERT ON deferred
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note_down();
    GRANT INSERT ON deferred, audit TO app;
    CREATE TABLE promise (country_code text REFERENCES country DEFERRABLE INITIALLY DEFERRED);
    GRANT INSERT ON promise TO app;
    CREATE TABLE currency (code text PRIMARY KEY, name text NOT NULL, version int NOT NULL);
    GRANT SELECT, INSERT, UPDATE ON currency TO app;
    CREATE VIEW summary WITH (security_invoker) AS
        SELECT code, (SELECT string_agg(note, ', ' ORDER BY note) FROM invoice) AS notes
        FROM country;
    GRANT SELECT ON summary TO app;
    """,
    *(
        f"""
        ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
        CREATE POLICY tenant ON {table} TO app
            USING (tenant_id = {TENANT}) WITH CHECK (tenant_id = {TENANT});
        """
        for table in ("invoice", "line")
    ),
)


class Base(DeclarativeBase):
    pass


class Invoice(Base):
    __tablename__ = "invoice"

    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]
    country_code: Mapped[str | None] = mapped_column(ForeignKey("country.code"))
    country: Mapped[Country | None] = relationship(back_populates="invoices")
    lines: Mapped[list[Line]] = relationship(back_populates="invoice")


class Line(Base):
    __tablename__ = "line"

    id: Mapped[int] = mapped_column(primary_key=True)
    invoice_id: Mapped[int] = mapped_column(ForeignKey("invoice.id"))
    amount: Mapped[int]
    invoice: Mapped[Invoice] = relationship(back_populates="lines")


class Country(Base):
    """The same for every tenant: no row-level security."""

    __tablename__ = "country"

    code: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    invoices: Mapped[list[Invoice]] = relationship(back_populates="country")
    if TYPE_CHECKING:  # made below: it counts a class that is not there yet
        visible_invoices: Mapped[int]


Country.visible_invoices = column_property(select(func.count(Invoice.id)).scalar_subquery())


class Currency(Base):
    """The same for every tenant, and changed by many at once."""

    __tablename__ = "currency"

    code: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's spelling


class Summary(Base):
    """A view with a row for each country, whatever the tenant, and what the tenant has in it."""

    __tablename__ = "summary"

    code: Mapped[str] = mapped_column(primary_key=True)
    notes: Mapped[str | None]


@dataclass(frozen=True)
class Both:
    code: str
    name: str


class BaseOfCountry(DeclarativeBase):
    """One of the tables, with a key that is unique for each tenant alone."""


class InvoiceOfCountry(BaseOfCountry):
    __tablename__ = "invoice"

    country_code: Mapped[str] = mapped_column(primary_key=True)
    note: Mapped[str]


class BaseWithComposite(DeclarativeBase):
    """One of the tables, with its columns seen as one value."""


class Label(BaseWithComposite):
    __tablename__ = "country"

    code: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    both: Mapped[Both] = composite("code", "name")


class BaseWithAll(DeclarativeBase):
    """The same tables, mapped with cascades over everything."""


class CountryWithAll(BaseWithAll):
    __tablename__ = "country"

    code: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    invoices: Mapped[list[InvoiceWithAll]] = relationship(cascade="all, delete-orphan")


class InvoiceWithAll(BaseWithAll):
    __tablename__ = "invoice"

    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]
    country_code: Mapped[str | None] = mapped_column(ForeignKey("country.code"))
    lines: Mapped[list[LineWithAll]] = relationship(cascade="all, delete-orphan")


class LineWithAll(BaseWithAll):
    __tablename__ = "line"

    id: Mapped[int] = mapped_column(primary_key=True)
    invoice_id: Mapped[int] = mapped_column(ForeignKey("invoice.id"))
    amount: Mapped[int]


NOTES = text("SELECT note FROM invoice ORDER BY note")
IN_FORCE = text("SELECT NULLIF(current_setting('app.current_tenant', true), '')")


@dataclass
class World:
    """Two tenants with two invoices each, which no other test knows."""

    owner: URL
    app: URL
    a: UUID = field(default_factory=uuid4)
    b: UUID = field(default_factory=uuid4)
    ids: dict[str, int] = field(default_factory=dict)

    async def seed(self) -> World:
        connection = await asyncpg.connect(dsn(self.owner))
        try:
            for tenant, letter in ((self.a, "a"), (self.b, "b")):
                for number in (1, 2):
                    note = f"{letter}{number}"
                    self.ids[note] = await connection.fetchval(
                        "INSERT INTO invoice (tenant_id, note) VALUES ($1, $2) RETURNING id",
                        tenant,
                        note,
                    )
        finally:
            await connection.close()
        return self

    async def truth(self, sql: str, *arguments: Any) -> list[Any]:
        """What the database really holds, seen by a superuser."""
        connection = await asyncpg.connect(dsn(self.owner))
        try:
            return [row[0] for row in await connection.fetch(sql, *arguments)]
        finally:
            await connection.close()

    async def notes(self, tenant: UUID) -> list[str]:
        """One tenant's invoices."""
        return await self.truth(
            "SELECT note FROM invoice WHERE tenant_id = $1 ORDER BY note", tenant
        )


async def make_world(database: URL) -> None:
    await run_sql(database, *SCHEMA)


async def new_world(server: URL, *statements: str) -> URL:
    """Make a database with these tables and what more statements make; return its owner's URL."""
    database = await new_database(server)
    await make_world(database)
    await run_sql(database, *statements)
    return database


async def visible(session_or_connection: Any) -> list[str]:
    """The invoices that a session or connection sees."""
    return list((await session_or_connection.execute(NOTES)).scalars())


async def tenant_in_force(session_or_connection: Any) -> UUID | None:
    """What PostgreSQL says, not what this process believes."""
    value = (await session_or_connection.execute(IN_FORCE)).scalar()
    return None if value is None else UUID(value)
