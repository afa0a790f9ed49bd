"""Whoever creates a table creates its protection, or is told why not."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Integer, MetaData, Table, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import create_async_engine

from harness.schemas import key, refers_to, tenant_id
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls import (
    Grant,
    Policy,
    UnprotectedViewWarning,
    child_table,
    compare_protection,
    declared_protection,
    ensure_app_role,
    expected_protection,
    protect_metadata,
    protect_partitions,
    protect_table,
    read_protection,
    shared_table,
    tenant_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.schemas import Database

TENANT = "6f1e7f3c-32a1-4a7e-9d0e-0a4c2f6b8d11"


@pytest.fixture
def metadata() -> MetaData:
    metadata = MetaData()
    tenant_table()(Table("invoice", metadata, key(), tenant_id(), Column("note", Text)))
    invoice_id = refers_to("invoice.id", "invoice_id")
    child_table(reason="x")(Table("line", metadata, key(), invoice_id))
    shared_table(reason="x")(Table("country", metadata, Column("code", Text, primary_key=True)))
    protect_metadata(metadata, role="app")
    return metadata


def is_as_declared(database: Database, metadata: MetaData) -> bool:
    expected = expected_protection(database.owner, metadata)
    schemas = {table.schema for table in expected.tables}
    there = read_protection(database.owner, schemas=schemas)
    database.owner.rollback()
    return list(compare_protection(expected, there)) == []


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_all_tables_at_once(database: Database, metadata: MetaData, driver: str) -> None:
    engine = sa.create_engine(database.url.set(drivername=f"postgresql+{driver}"))
    metadata.create_all(engine)
    engine.dispose()

    assert is_as_declared(database, metadata)


async def test_all_tables_at_once_by_asyncpg(database: Database, metadata: MetaData) -> None:
    engine = create_async_engine(database.url.set(drivername="postgresql+asyncpg"))
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await engine.dispose()

    assert is_as_declared(database, metadata)


def test_one_table_after_the_other(database: Database, metadata: MetaData) -> None:
    for table in metadata.sorted_tables:
        table.create(database.owner)
    database.owner.commit()

    assert is_as_declared(database, metadata)


def test_a_second_time_nothing_is_done(database: Database, metadata: MetaData) -> None:
    database.create(metadata)
    database.create(metadata)

    assert is_as_declared(database, metadata)


def test_all_tables_without_a_transaction(database: Database, metadata: MetaData) -> None:
    metadata.create_all(database.engine.execution_options(isolation_level="AUTOCOMMIT"))

    assert is_as_declared(database, metadata)


def test_only_some_tables(database: Database, metadata: MetaData) -> None:
    metadata.create_all(database.owner, tables=[metadata.tables["invoice"]])

    tables = read_protection(database.owner).tables
    assert [(one.name, len(one.policies)) for one in tables] == [("invoice", 2)]


def test_a_table_that_is_defined_later(database: Database, metadata: MetaData) -> None:
    tenant_table()(Table("late", metadata, key(), tenant_id()))
    database.create(metadata)

    assert read_protection(database.owner).table("late") is not None
    assert is_as_declared(database, metadata)


@pytest.mark.parametrize("how", ["create_all", "create"])
def test_a_later_table_that_says_nothing_is_refused(
    database: Database, metadata: MetaData, how: str
) -> None:
    late = Table("late", metadata, key())
    create = metadata.create_all if how == "create_all" else late.create

    with pytest.raises(AppConfigError, match=r"1 tables say nothing .* 'late'"):
        create(database.owner)
    assert read_protection(database.owner).tables == ()


def test_tables_that_refer_to_each_other(database: Database) -> None:
    metadata = MetaData()
    first_line: Column[Any] = sa.Column(
        "first", sa.ForeignKey("a_line.id", use_alter=True, name="first")
    )
    tenant_table()(Table("z_invoice", metadata, key(), tenant_id(), first_line))
    child_table(reason="x")(
        Table("a_line", metadata, key(), refers_to("z_invoice.id", "invoice_id"))
    )
    protect_metadata(metadata, role="app")
    database.create(metadata)

    assert is_as_declared(database, metadata)


def test_a_policy_may_name_a_table_that_comes_later(database: Database) -> None:
    metadata = MetaData()
    tenant_table()(Table("account", metadata, key(), tenant_id()))
    tenant_table()(Table("member", metadata, key(), tenant_id()))
    policy = Policy("own", "account", using="id IN (SELECT member.id FROM member)")
    protect_metadata(metadata, role="app", policies=[policy])
    database.create(metadata)

    assert is_as_declared(database, metadata)


def test_schemas_are_translated(database: Database) -> None:
    metadata = MetaData()
    tenant_table()(Table("invoice", metadata, key(), tenant_id()))
    child_table(reason="x")(
        Table("line", metadata, refers_to("invoice.id", "invoice_id", primary_key=True))
    )
    policies = [Policy("own", "line", using="invoice_id > 0", restrictive=True)]
    protect_metadata(metadata, role="app", policies=policies)
    database.run("CREATE SCHEMA one")
    translated = database.owner.execution_options(schema_translate_map={None: "one"})

    metadata.create_all(translated)

    expected = expected_protection(translated, metadata)
    assert {one.schema for one in expected.tables} == {"one"}
    there = read_protection(translated, schemas=["one"])
    assert list(compare_protection(expected, there)) == []
    assert read_protection(translated).tables == ()


def test_columns_with_numbers_of_their_own(database: Database) -> None:
    """SERIAL needs a privilege on its sequence, an identity column does not."""
    metadata = MetaData()
    identity = Column("id", Integer, sa.Identity(always=True), primary_key=True)
    tenant_table()(Table("by_identity", metadata, identity, tenant_id()))
    tenant_table()(Table("by_serial", metadata, key(), tenant_id()))
    named = Column("id", Integer, sa.Sequence("numbers"), primary_key=True)
    tenant_table()(Table("by_sequence", metadata, named, tenant_id()))
    # On PostgreSQL SQLAlchemy makes it a SERIAL.
    optional = Column("id", Integer, sa.Sequence("unused", optional=True), primary_key=True)
    tenant_table()(Table("by_optional_sequence", metadata, optional, tenant_id()))
    default = sa.Sequence("others", metadata=metadata).next_value()
    by_default = Column("id", Integer, server_default=default, primary_key=True)
    tenant_table()(Table("by_default", metadata, by_default, tenant_id()))
    protect_metadata(metadata, role="app")
    database.create(metadata)

    database.run("SET ROLE app", f"SET app.current_tenant = '{TENANT}'")
    for table in metadata.tables.values():
        database.owner.execute(table.insert())
        assert database.owner.scalar(sa.select(table.c.id)) == 1


def test_a_sequence_whose_name_was_taken(database: Database) -> None:
    metadata = MetaData()
    tenant_table()(Table("invoice", metadata, key(), tenant_id()))
    protect_metadata(metadata, role="app")
    database.run("CREATE SEQUENCE invoice_id_seq")
    database.create(metadata)

    may_use = "SELECT has_sequence_privilege('app', :name, 'USAGE')"
    assert database.ask(may_use, name="invoice_id_seq") is False
    assert database.ask(may_use, name="invoice_id_seq1") is True
    assert is_as_declared(database, metadata)


def test_what_default_privileges_gave_is_taken_back(database: Database, metadata: MetaData) -> None:
    database.run(
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO app",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT, TRUNCATE ON TABLES TO PUBLIC",
    )
    database.create(metadata)

    acl = "SELECT string_agg(relname || ' ' || one::text, ', ' ORDER BY relname, one::text) "
    acl += "FROM pg_class, unnest(relacl) AS one WHERE one::text NOT LIKE 'postgres=%' "
    acl += "AND relkind = 'r' AND relnamespace = 'public'::regnamespace"
    assert database.ask(acl) == (
        "country app=r/postgres, invoice app=arwd/postgres, line app=arwd/postgres"
    )


def test_what_default_privileges_gave_on_sequences_is_taken_back(database: Database) -> None:
    """Of which last_value tells how many rows all tenants have, and setval() breaks them."""
    metadata = MetaData()
    tenant_table()(Table("Ser'ial", metadata, key(), tenant_id()))
    identity = Column("id", Integer, sa.Identity(always=True), primary_key=True)
    tenant_table()(Table("identity", metadata, identity, tenant_id()))
    shared_table(reason="x")(Table("country", metadata, key()))
    protect_metadata(metadata, role="app")
    database.run("ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO app, PUBLIC")

    database.create(metadata)

    assert is_as_declared(database, metadata)
    held = "SELECT string_agg(relname || ' ' || one::text, ', ' ORDER BY relname) FROM pg_class, "
    held += "unnest(relacl) AS one WHERE relkind = 'S' AND one::text NOT LIKE 'postgres=%'"
    assert database.ask(held) == "Ser'ial_id_seq app=U/postgres"


def test_a_shared_table_may_be_writable(database: Database) -> None:
    metadata = MetaData()
    shared_table(reason="x", writable=True)(Table("country", metadata, key()))
    protect_metadata(metadata, role="app")
    database.create(metadata)

    assert is_as_declared(database, metadata)
    assert database.ask("SELECT has_table_privilege('app', 'country', 'INSERT')")


def test_a_role_whose_name_needs_quotes(database: Database) -> None:
    name = f"App's % {uuid4().hex}"
    ensure_app_role(database.owner, name)
    metadata = MetaData(schema="billing")
    tenant_table()(Table("invoice", metadata, key(), tenant_id()))
    protect_metadata(metadata, role=name)
    database.run("CREATE SCHEMA billing")
    database.create(metadata)

    assert is_as_declared(database, metadata)
    database.run(f'DROP OWNED BY "{name}"', f'DROP ROLE "{name}"')


def test_the_role_may_use_the_schema(database: Database) -> None:
    metadata = MetaData(schema="billing")
    tenant_table()(Table("invoice", metadata, key(), tenant_id()))
    protect_metadata(metadata, role="app")
    database.run("CREATE SCHEMA billing")
    database.create(metadata)

    assert database.ask("SELECT has_schema_privilege('app', 'billing', 'USAGE')")


def test_a_schema_that_everybody_may_use_is_left_alone(
    database: Database, metadata: MetaData
) -> None:
    database.create(metadata)

    grants = read_protection(database.owner).grants
    assert grants == (Grant("USAGE", "public", to="PUBLIC", kind="SCHEMA"),)


def test_who_creates_tables_need_not_own_the_default_schema(
    database: Database, metadata: MetaData
) -> None:
    database.run("GRANT CREATE ON SCHEMA public TO pg_monitor", "SET ROLE pg_monitor")
    database.create(metadata)

    database.run("RESET ROLE")
    assert is_as_declared(database, metadata)


@pytest.mark.parametrize("convention", [None, {"uq": "uq_%(table_name)s"}])
def test_the_index_of_a_long_name_is_made(
    database: Database, convention: dict[str, str] | None
) -> None:
    metadata = MetaData(naming_convention=convention)
    tenant_table()(Table("n" * 63, metadata, key(), tenant_id()))
    protect_metadata(metadata, role="app")

    database.create(metadata)

    assert is_as_declared(database, metadata)


def test_identifiers_of_every_kind(database: Database) -> None:
    """Names that need quotes, with quotes, percent signs and dollars in them."""
    metadata = MetaData(schema='sch"e$$ma %s')
    parent = tenant_table(column="Te%nant")(
        Table("Or'd%er", metadata, Column('I"d%', Integer, primary_key=True), tenant_id("Te%nant"))
    )
    columns = Column("$$", Integer, primary_key=True), refers_to(parent.c['I"d%'], "select")
    child_table(reason="x")(Table("user", metadata, *columns))
    policy = Policy("100% o'wn", parent, using="'a:b%' LIKE '%:b\\%'", to=["app", "PUBLIC"])
    protect_metadata(metadata, role="app", policies=[policy])
    database.owner.execute(sa.schema.CreateSchema('sch"e$$ma %s'))
    database.create(metadata)

    assert is_as_declared(database, metadata)


def test_statements_can_be_printed(metadata: MetaData) -> None:
    protection = declared_protection(metadata).table("invoice")
    assert protection is not None
    dialect: Any = postgresql.dialect
    printed = [
        f"{one.compile(dialect=dialect(paramstyle='named'))};" for one in protect_table(protection)
    ]

    predicate = "tenant_id = (SELECT NULLIF(current_setting('app.current_tenant', true), '')::uuid)"
    assert (
        "\n".join(printed)
        == f"""\
CREATE POLICY tenant_floor ON invoice AS RESTRICTIVE FOR ALL TO PUBLIC
    USING ({predicate})
    WITH CHECK ({predicate});
CREATE POLICY tenant_isolation ON invoice AS PERMISSIVE FOR ALL TO app
    USING ({predicate})
    WITH CHECK ({predicate});
ALTER TABLE invoice ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
DO $$ DECLARE own regclass; BEGIN
    FOR own IN SELECT objid FROM pg_depend JOIN pg_class ON oid = objid AND relkind = 'S'
        WHERE refobjid = 'invoice'::regclass AND deptype IN ('a', 'i')
        AND classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass
    LOOP EXECUTE format('REVOKE ALL ON SEQUENCE %s FROM PUBLIC, %I', own, 'app'); END LOOP;
END $$;
REVOKE ALL ON TABLE invoice FROM PUBLIC;
REVOKE ALL ON TABLE invoice FROM app;
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE invoice TO app;
DO $$ BEGIN EXECUTE format('GRANT USAGE ON SEQUENCE %s TO %I', \
pg_get_serial_sequence('invoice', 'id'), 'app'); END $$;"""
    )


def test_an_engine_that_only_prints_gets_the_protection_too(metadata: MetaData) -> None:
    printed: list[str] = []
    engine: Any = sa.create_mock_engine(
        "postgresql+psycopg://",
        lambda statement, *_: printed.append(str(statement.compile(dialect=engine.dialect))),
    )
    metadata.create_all(engine, checkfirst=False)

    assert [line.split(" ON ")[0] for line in printed if "POLICY" in line] == 2 * [
        "CREATE POLICY tenant_floor",
        "CREATE POLICY tenant_isolation",
    ]


class TestRefusals:
    """Nothing is created when something is wrong."""

    @pytest.fixture(autouse=True)
    def nothing_created(self, database: Database) -> Iterator[None]:
        yield
        database.owner.rollback()
        assert read_protection(database.owner).tables == ()

    def refused(self, database: Database, metadata: MetaData, message: str) -> None:
        for create in (metadata.create_all, metadata.tables["invoice"].create):
            with pytest.raises(AppConfigError, match=message):
                create(database.owner)

    def make(self, **options: Any) -> MetaData:
        metadata = MetaData()
        tenant_table()(Table("invoice", metadata, key(), tenant_id()))
        protect_metadata(metadata, **options)
        return metadata

    def test_a_role_that_is_not_there(self, database: Database) -> None:
        metadata = self.make(role="missing role")
        self.refused(database, metadata, r"no role 'missing role'; .* ensure_app_role\(")

    def test_a_role_of_a_policy_that_is_not_there(self, database: Database) -> None:
        policies = [Policy("own", "invoice", to="reader", using="true")]
        metadata = self.make(role="app", policies=policies)
        self.refused(database, metadata, "no role 'reader'")

    def test_a_role_of_a_grant_that_is_not_there(self, database: Database) -> None:
        metadata = self.make(role="app", grants=[Grant("SELECT", "invoice", to="reader")])
        self.refused(database, metadata, "no role 'reader'")

    def test_a_superuser(self, database: Database) -> None:
        metadata = self.make(role="postgres")
        self.refused(database, metadata, "'postgres' is a superuser, so no policy would hold it")

    def test_a_role_that_bypasses(self, database: Database) -> None:
        with role(database, "BYPASSRLS") as name:
            self.refused(database, self.make(role=name), f"'{name}' has BYPASSRLS")

    def test_a_member_of_one(self, database: Database) -> None:
        with role(database, "BYPASSRLS") as group, role(database, f"IN ROLE {group}") as name:
            self.refused(database, self.make(role=name), f"'{name}' is a member of '{group}'")

    def test_the_one_that_creates_the_tables(self, database: Database) -> None:
        """It would own them: it could TRUNCATE, and drop the policies."""
        with role(database, "NOLOGIN") as name:
            database.run(f"SET ROLE {name}")
            self.refused(database, self.make(role=name), "who would own the tables")
            database.run("RESET ROLE")

    def test_a_member_of_the_one_that_creates_the_tables(self, database: Database) -> None:
        with role(database, "NOLOGIN") as owner, role(database, f"IN ROLE {owner}") as name:
            database.run(f"SET ROLE {owner}")
            self.refused(database, self.make(role=name), f"'{name}' is '{owner}', or a member")
            database.run("RESET ROLE")


@contextmanager
def role(database: Database, options: str) -> Iterator[str]:
    name = f"role_{uuid4().hex}"
    database.run(f"CREATE ROLE {name} {options}")
    yield name
    database.owner.rollback()
    database.run(f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_a_table_that_is_a_view_in_the_database_is_refused(
    database: Database, metadata: MetaData
) -> None:
    database.run("CREATE VIEW invoice AS SELECT 1 AS id")

    with pytest.raises(AppConfigError, match=r"invoice is declared as a table, but is a view"):
        metadata.create_all(database.owner)


def test_a_table_that_was_there_without_protection_is_an_error(
    database: Database, metadata: MetaData
) -> None:
    """create_all() would leave it as it is, for everybody to read."""
    database.run("CREATE TABLE invoice (id int PRIMARY KEY)")

    with pytest.raises(AppConfigError, match=r"^invoice: there already, without row-level"):
        metadata.create_all(database.owner)


def test_a_table_that_was_there_with_a_policy_that_opens_it_is_an_error(
    database: Database, metadata: MetaData
) -> None:
    database.run(
        "CREATE TABLE invoice (id int PRIMARY KEY)",
        "CREATE POLICY open ON invoice USING (true)",
        "ALTER TABLE invoice ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    )

    with pytest.raises(AppConfigError, match=r"^invoice: there already, .* or its floor"):
        metadata.create_all(database.owner)


def test_a_table_that_the_search_path_finds_elsewhere_is_an_error(
    database: Database, metadata: MetaData
) -> None:
    """create_all() takes it for its own, though it is not in the default schema."""
    database.run("CREATE TABLE invoice (id int PRIMARY KEY)", "CREATE SCHEMA first")
    path = {"options": "-csearch_path=first,public"}
    engine = sa.create_engine(database.engine.url, connect_args=path)

    with pytest.raises(AppConfigError, match=r"^invoice: there already"), engine.begin() as first:
        metadata.create_all(first)
    engine.dispose()


@pytest.mark.parametrize("is_parent_shared", [True, False])
def test_a_shared_table_among_a_table_s_heirs_is_refused(
    database: Database, is_parent_shared: bool
) -> None:
    """Who reads the parent reads its heirs' rows, by the parent's policies alone."""
    declare = [tenant_table(), shared_table(reason="x")]
    metadata = MetaData()
    parent = Table("parent", metadata, key(), tenant_id())
    heir = Table("heir", metadata, tenant_id(), postgresql_inherits="parent")
    heir.add_is_dependent_on(parent)
    declare[is_parent_shared](parent)
    declare[not is_parent_shared](heir)
    protect_metadata(metadata, role="app")

    with pytest.raises(AppConfigError, match=r"'heir' is a partition, or child by inheritance"):
        metadata.create_all(database.owner)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ("VIEW seen AS SELECT id FROM invoice", "ALTER VIEW seen SET .security_invoker = true"),
        ("MATERIALIZED VIEW seen AS SELECT id FROM invoice", "REVOKE ALL ON seen"),
    ],
)
def test_a_view_that_shows_rows_of_all_tenants_is_noticed(
    database: Database, metadata: MetaData, view: str, message: str
) -> None:
    database.create(metadata)
    database.run(f"CREATE {view}", "GRANT SELECT ON seen TO app")

    with pytest.warns(UnprotectedViewWarning, match=message):
        metadata.create_all(database.owner)


def test_a_partition_of_a_partition_that_is_a_table_of_the_metadata(database: Database) -> None:
    """It has one parent in the metadata that counts, and gets its protection once."""
    metadata = MetaData()
    for name in ("event", "part"):
        number = Column("id", Integer, primary_key=True, autoincrement=False)
        tenant_table()(
            Table(name, metadata, number, tenant_id(), postgresql_partition_by="LIST (id)")
        )
    protect_metadata(metadata, role="app")
    database.create(metadata)
    database.run(
        "CREATE TABLE leaf PARTITION OF part DEFAULT",
        "ALTER TABLE event ATTACH PARTITION part DEFAULT",
    )

    protect_partitions(database.owner, metadata)
    database.owner.commit()

    assert is_as_declared(database, metadata)


def test_a_view_is_noticed_wherever_it_is_and_whoever_lets_the_role_read_it(
    database: Database, metadata: MetaData
) -> None:
    """In another schema, some columns alone, by membership, or of a partition."""
    database.create(metadata)
    with role(database, "ROLE app") as group:
        database.run(
            "CREATE SCHEMA reports",
            "CREATE VIEW reports.elsewhere AS SELECT id FROM invoice",
            "CREATE VIEW in_part AS SELECT id FROM invoice",
            "CREATE VIEW for_group AS SELECT id FROM invoice",
            "CREATE TABLE heir () INHERITS (invoice)",
            "CREATE VIEW of_heir AS SELECT id FROM heir",
            "GRANT SELECT ON reports.elsewhere, of_heir TO app",
            "GRANT SELECT (id) ON in_part TO app",
            f"GRANT SELECT ON for_group TO {group}",
        )
        with pytest.warns(UnprotectedViewWarning) as warned:
            metadata.create_all(database.owner)

    names = sorted(str(one.message).split()[1] for one in warned)
    assert names == ["for_group", "in_part", "of_heir", "reports.elsewhere"]


def test_a_view_behind_another_view_is_noticed(database: Database, metadata: MetaData) -> None:
    database.create(metadata)
    database.run(
        "CREATE VIEW inner_view WITH (security_invoker = true) AS SELECT id FROM invoice",
        "CREATE VIEW outer_view AS SELECT id FROM inner_view",
        "GRANT SELECT ON outer_view TO PUBLIC",
    )

    with pytest.warns(UnprotectedViewWarning, match="view outer_view shows rows"):
        metadata.create_all(database.owner)


@pytest.mark.parametrize(
    ("view", "reader"),
    [
        ("VIEW seen WITH (security_invoker) AS SELECT id FROM invoice", "app"),
        ("VIEW seen AS SELECT code FROM country", "app"),
        ("VIEW seen AS SELECT id FROM invoice", "pg_monitor"),
    ],
    ids=["read with the reader's rights", "of a shared table", "that the role may not read"],
)
def test_another_view_is_not(
    database: Database, metadata: MetaData, view: str, reader: str
) -> None:
    database.create(metadata)
    database.run(f"CREATE {view}", f"GRANT SELECT ON seen TO {reader}")

    metadata.create_all(database.owner)  # a warning would be an error


class TestPartitions:
    @pytest.fixture
    def metadata(self) -> MetaData:
        metadata = MetaData()
        table = Table(
            "event",
            metadata,
            tenant_id(),
            Column("day", Integer),
            postgresql_partition_by="RANGE (day)",
        )
        ddl: Any = sa.DDL
        partition = "CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM (1) TO (2)"
        sa.event.listen(table, "after_create", ddl(partition))
        tenant_table()(table)
        protect_metadata(metadata, role="app")
        return metadata

    def test_get_the_protection_of_their_table(
        self, database: Database, metadata: MetaData
    ) -> None:
        database.run("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO app")
        database.create(metadata)

        there = read_protection(database.owner).table("event_1")
        assert there is not None
        assert (there.enabled, there.forced, len(there.policies)) == (True, True, 2)
        assert there.grants == ()
        assert there.parents == ((None, "event"),)
        assert is_as_declared(database, metadata)

    def test_get_it_later_too(self, database: Database, metadata: MetaData) -> None:
        database.create(metadata)
        database.run(
            "CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM (2) TO (9) "
            "PARTITION BY LIST (day)",
            "CREATE SCHEMA archive",
            'CREATE TABLE archive."3" PARTITION OF event_2 FOR VALUES IN (3)',
        )
        assert not is_as_declared(database, metadata)

        for _ in range(2):
            protect_partitions(database.owner, metadata)
        database.owner.commit()

        assert is_as_declared(database, metadata)

    @pytest.mark.parametrize(
        "change",
        [
            "DROP POLICY tenant_floor ON event_1",
            "GRANT SELECT ON event_1 TO app",
            "ALTER TABLE event_1 NO FORCE ROW LEVEL SECURITY",
        ],
    )
    def test_get_it_anew_where_it_was_changed(
        self, database: Database, metadata: MetaData, change: str
    ) -> None:
        database.create(metadata)
        database.run(change)

        protect_partitions(database.owner, metadata)
        database.owner.commit()

        assert is_as_declared(database, metadata)

    def test_that_are_foreign_tables_are_refused(
        self, database: Database, metadata: MetaData
    ) -> None:
        database.create(metadata)
        database.run(
            "CREATE FOREIGN DATA WRAPPER nothing",
            "CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing",
            "CREATE FOREIGN TABLE far PARTITION OF event FOR VALUES FROM (2) TO (3) "
            "SERVER elsewhere",
        )

        with pytest.raises(AppConfigError, match=r"\(None, 'far'\).*'event', is a foreign table"):
            protect_partitions(database.owner, metadata)

    def test_that_are_tables_of_the_metadata_keep_what_they_are_declared_to_be(
        self, database: Database, metadata: MetaData
    ) -> None:
        own = tenant_table()(Table("event_9", metadata, tenant_id(), Column("day", Integer)))
        database.create(metadata)
        database.run("ALTER TABLE event ATTACH PARTITION event_9 FOR VALUES FROM (9) TO (10)")

        protect_partitions(database.owner, metadata)
        database.owner.commit()

        assert is_as_declared(database, metadata)
        assert database.ask(f"SELECT has_table_privilege('app', '{own.name}', 'INSERT')") is True

    def test_of_a_child_table_name_themselves(self, database: Database) -> None:
        metadata = MetaData()
        tenant_table()(Table("invoice", metadata, key(), tenant_id()))
        same = refers_to("invoice.id", "id", primary_key=True)
        child_table(reason="x")(
            Table("detail", metadata, same, postgresql_partition_by="LIST (id)")
        )
        protect_metadata(metadata, role="app")
        database.create(metadata)
        database.run("CREATE TABLE detail_1 PARTITION OF detail FOR VALUES IN (1)")
        protect_partitions(database.owner, metadata)

        database.owner.commit()

        assert is_as_declared(database, metadata)
