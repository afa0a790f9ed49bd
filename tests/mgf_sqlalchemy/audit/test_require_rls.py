"""A program that is not held by row-level security does not start."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from harness.schemas import Database, key, tenant_id
from harness.servers import new_database
from harness.tenants import APP_PASSWORD
from mgf.common.exceptions import AppConfigError, OperationError
from mgf.sqlalchemy import create_engine
from mgf.sqlalchemy.audit import RlsNotActiveError, audit, require_rls
from mgf.sqlalchemy.rls import ensure_app_role, protect_metadata, shared_table, tenant_table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import URL

ROLE = "starter"


def make_metadata() -> sa.MetaData:
    metadata = sa.MetaData()
    for name in ("invoice", "line"):
        tenant_table()(sa.Table(name, metadata, key(), tenant_id()))
    shared = sa.Table("country", metadata, key(), sa.Column("tenant_id", sa.Text))
    shared_table(reason="named badly")(shared)
    protect_metadata(metadata, role=ROLE)
    return metadata


@pytest.fixture
async def started(any_postgres_url: URL) -> AsyncIterator[Database]:
    """A protected database of its own; the role is as it was at the end."""
    database = Database(await new_database(any_postgres_url))
    ensure_app_role(database.owner, ROLE, password=APP_PASSWORD)
    database.create(make_metadata())
    yield database
    for name in ("starter_a", "starter_b"):
        database.run(f"DROP ROLE IF EXISTS {name}")
    database.run(f"ALTER ROLE {ROLE} RESET ALL", f"ALTER ROLE {ROLE} NOSUPERUSER NOBYPASSRLS")
    await database.dispose()


async def require(database: Database, **options: object) -> None:
    engine = create_engine(database.url.set(username=ROLE, password=APP_PASSWORD))
    try:
        await require_rls(engine, **{"metadata": make_metadata(), **options})  # type: ignore[arg-type]
    finally:
        await engine.dispose()


async def test_a_protected_database_is_served(started: Database) -> None:
    await require(started)


async def test_without_metadata_tables_are_known_by_their_column(started: Database) -> None:
    with pytest.raises(RlsNotActiveError, match="country"):
        await require(started, metadata=None)

    started.run("DROP TABLE country")
    await require(started, metadata=None)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("ALTER ROLE starter SUPERUSER", "is a superuser"),
        ("ALTER ROLE starter BYPASSRLS", "BYPASSRLS"),
        ("CREATE ROLE starter_a BYPASSRLS; GRANT starter_a TO starter", "become 'starter_a'"),
        ("ALTER ROLE starter SET app.current_tenant = 'x'", "set outside every scope"),
        ("ALTER TABLE invoice DISABLE ROW LEVEL SECURITY", r"does not hold .* 'public.invoice'"),
        (
            (
                "ALTER TABLE invoice NO FORCE ROW LEVEL SECURITY;"
                "ALTER TABLE invoice OWNER TO starter"
            ),
            r"does not hold .* 'public.invoice'",
        ),
        ("ALTER TABLE invoice OWNER TO starter", "the owner of 'public.invoice'"),
        ("DROP TABLE line", "'public.line': declared to be protected"),
        ("CREATE TABLE other (tenant_id int)", "public.other"),
    ],
)
async def test_what_lets_it_past_policies_is_refused(
    started: Database, mistake: str, message: str
) -> None:
    started.run(mistake)

    with pytest.raises(RlsNotActiveError, match=message):
        await require(started)


async def test_what_does_not_hold_another_owner_is_the_audits_to_tell(started: Database) -> None:
    started.run("ALTER TABLE invoice NO FORCE ROW LEVEL SECURITY")

    await require(started)

    engine = create_async_engine(started.url.set(drivername="postgresql+asyncpg"))
    report = await audit(engine, role=ROLE, metadata=make_metadata())
    await engine.dispose()
    assert ("rls-not-forced", "public.invoice") in {(one.id, one.object) for one in report.findings}


async def test_a_login_that_can_reset_to_more_is_refused(started: Database) -> None:
    engine = create_async_engine(started.url.set(drivername="postgresql+asyncpg"))
    async with engine.connect() as connection:
        await connection.execute(sa.text(f"SET ROLE {ROLE}"))

        with pytest.raises(RlsNotActiveError, match="RESET ROLE"):
            await require_rls(connection, metadata=make_metadata())
    await engine.dispose()


async def test_an_empty_database_proves_nothing(started: Database) -> None:
    started.run("DROP TABLE invoice, line, country")

    with pytest.raises(RlsNotActiveError, match="no table"):
        await require(started, metadata=None)


async def test_a_partition_counts_when_it_can_be_named(started: Database) -> None:
    started.run(
        "CREATE TABLE event (tenant_id uuid) PARTITION BY LIST (tenant_id)",
        "CREATE TABLE event_1 PARTITION OF event DEFAULT",
        "ALTER TABLE event ENABLE ROW LEVEL SECURITY",
    )
    await require(started)

    started.run(f"GRANT DELETE ON event_1 TO {ROLE}")
    with pytest.raises(RlsNotActiveError, match="event_1"):
        await require(started)


PARENT = "CREATE TABLE parent (note text)"
HEIR = "ALTER TABLE invoice ADD note text, INHERIT parent"


async def test_a_parent_counts_when_it_can_be_read(started: Database) -> None:
    """It shows the rows of its heirs under its own policies alone."""
    started.run(PARENT, "CREATE TABLE sibling () INHERITS (parent)", HEIR)
    started.run(f"GRANT SELECT ON sibling TO {ROLE}")
    await require(started)

    started.run(f"GRANT SELECT ON parent TO {ROLE}")
    with pytest.raises(RlsNotActiveError, match=r"on 'public\.parent' \(what inherits"):
        await require(started)

    started.run("ALTER TABLE parent ENABLE ROW LEVEL SECURITY")
    with pytest.raises(RlsNotActiveError, match=r"on 'public\.sibling'"):
        await require(started)

    started.run("ALTER TABLE sibling NO INHERIT parent")
    await require(started)


async def test_a_parent_that_is_declared_to_be_shared_counts(started: Database) -> None:
    started.run(PARENT, HEIR, f"GRANT SELECT ON parent TO {ROLE}")
    metadata = make_metadata()
    shared_table(reason="seems so")(sa.Table("parent", metadata, sa.Column("note", sa.Text)))

    with pytest.raises(RlsNotActiveError, match=r"public\.parent"):
        await require(started, metadata=metadata)


@pytest.mark.parametrize(
    "made", ["() INHERITS (owned)", "PARTITION OF owned DEFAULT"], ids=["heir", "partition"]
)
async def test_a_child_without_the_tenant_column_counts(started: Database, made: str) -> None:
    """Its parent is protected by another column."""
    how = " PARTITION BY LIST (org)" if made.startswith("PARTITION") else ""
    started.run(
        f"CREATE TABLE owned (org uuid){how}",
        "ALTER TABLE owned ENABLE ROW LEVEL SECURITY",
        f"CREATE TABLE below {made}",
    )
    await require(started)

    started.run(f"GRANT SELECT ON below TO {ROLE}")
    with pytest.raises(RlsNotActiveError, match=r"public\.below"):
        await require(started)


async def test_another_database_is_refused() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")

    with pytest.raises(AppConfigError, match="PostgreSQL"):
        await require_rls(engine)
    await engine.dispose()


def test_its_error_is_an_operation_error() -> None:
    assert issubclass(RlsNotActiveError, OperationError)


def test_it_loads_nothing_of_the_report() -> None:
    code = (
        "import sys; from mgf.sqlalchemy.audit import require_rls;"
        "names = [one for one in sys.modules if one.startswith('mgf.sqlalchemy.audit.')];"
        "assert names == ['mgf.sqlalchemy.audit._require'], names"
    )

    subprocess.run([sys.executable, "-c", code], check=True)
