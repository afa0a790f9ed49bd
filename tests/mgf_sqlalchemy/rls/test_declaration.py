"""Every table says whose rows it holds, and what cannot work is said where it is declared."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Integer, MetaData, Table, Text, Uuid
from sqlalchemy.orm import DeclarativeBase, Mapped, declarative_base, mapped_column, registry

from harness.schemas import key, refers_to, tenant_id
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.rls import (
    Grant,
    Policy,
    TableProtection,
    TenantMixin,
    child_table,
    declared_protection,
    protect_metadata,
    share_rows,
    shared_table,
    tenant_predicate,
    tenant_table,
    tenant_unique,
)


@pytest.fixture
def metadata() -> MetaData:
    return MetaData()


@pytest.fixture
def invoice(metadata: MetaData) -> Table:
    return tenant_table()(Table("invoice", metadata, key(), tenant_id()))


def protection(metadata: MetaData, name: str) -> TableProtection:
    found = declared_protection(metadata).table(name)
    assert found is not None
    return found


def test_a_model_with_the_mixin_is_a_tenant_table() -> None:
    class Base(DeclarativeBase):
        pass

    class Invoice(TenantMixin, Base):
        __tablename__ = "invoice"
        id: Mapped[int] = mapped_column(primary_key=True)

    protect_metadata(Base.metadata, role="app")

    column = Invoice.__table__.c.tenant_id
    assert isinstance(column.type, Uuid)
    assert not column.nullable
    assert [policy.name for policy in protection(Base.metadata, "invoice").policies] == [
        "tenant_floor",
        "tenant_isolation",
    ]


def test_the_mixin_works_in_every_style_of_mapping() -> None:
    class Base(DeclarativeBase):
        pass

    class After(Base, TenantMixin):
        __tablename__ = "after"
        id: Mapped[int] = mapped_column(primary_key=True)

    old_base: Any = declarative_base(metadata=Base.metadata)

    class Older(TenantMixin, old_base):  # type: ignore[misc]
        __tablename__ = "older"
        id: Mapped[int] = mapped_column(primary_key=True)

    @registry(metadata=Base.metadata).mapped
    class Decorated(TenantMixin):
        __tablename__ = "decorated"
        id: Mapped[int] = mapped_column(primary_key=True)

    protect_metadata(Base.metadata, role="app")

    tables = declared_protection(Base.metadata).tables
    assert [(one.name, len(one.policies)) for one in tables] == [
        ("after", 2),
        ("decorated", 2),
        ("older", 2),
    ]


def test_a_table_can_have_its_own_tenant_column(metadata: MetaData) -> None:
    tenant_table(column="Owner")(Table("invoice", metadata, key(), tenant_id("Owner")))
    protect_metadata(metadata, role="app")

    policies = protection(metadata, "invoice").policies
    assert {policy.using for policy in policies} == {tenant_predicate("Owner")}
    assert tenant_predicate("Owner").startswith('"Owner" = ')


def test_a_mapped_class_is_declared_by_a_decorator() -> None:
    class Base(DeclarativeBase):
        pass

    @tenant_table(column="owner")
    class Invoice(Base):
        __tablename__ = "invoice"
        id: Mapped[int] = mapped_column(primary_key=True)
        owner: Mapped[UUID]

    protect_metadata(Base.metadata, role="app")
    assert protection(Base.metadata, "invoice").indexed == ("owner",)


def test_tables_that_say_nothing_are_all_listed(metadata: MetaData, invoice: Table) -> None:
    Table("line", metadata, key())
    Table("note", metadata, key(), tenant_id(), schema="crm")

    with pytest.raises(AppConfigError, match=r"2 tables .*: 'crm\.note', 'line'; give each"):
        protect_metadata(metadata, role="app")


def test_a_refused_metadata_can_be_protected_when_it_is_mended(metadata: MetaData) -> None:
    line = Table("line", metadata, key())
    with pytest.raises(AppConfigError):
        protect_metadata(metadata, role="app")

    shared_table(reason="no tenant's data")(line)
    protect_metadata(metadata, role="app")


def test_a_metadata_is_protected_once(metadata: MetaData, invoice: Table) -> None:
    protect_metadata(metadata, role="app")
    with pytest.raises(AppConfigError, match="protected already"):
        protect_metadata(metadata, role="app")


def test_what_is_declared_needs_a_protected_metadata(metadata: MetaData) -> None:
    with pytest.raises(AppConfigError, match=r"call protect_metadata\(metadata, role="):
        declared_protection(metadata)


def test_something_that_is_no_metadata_is_refused() -> None:
    with pytest.raises(TypeError, match=r"takes a MetaData such as Base\.metadata, not 'x'"):
        protect_metadata("x", role="app")  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["PUBLIC", "public", "", None, "x" * 64])
def test_the_role_is_one_role(metadata: MetaData, role: Any) -> None:
    with pytest.raises(AppConfigError, match=r"name the role|application's role"):
        protect_metadata(metadata, role=role)


@pytest.mark.parametrize("declare", [shared_table, child_table])
@pytest.mark.parametrize("reason", ["", " \n"])
def test_a_reason_is_given(declare: Any, reason: str) -> None:
    with pytest.raises(AppConfigError, match="blank reason"):
        declare(reason=reason)


def test_an_unknown_tenant_column_is_refused(metadata: MetaData) -> None:
    tenant_table(column="tenent_id")(Table("invoice", metadata, key(), tenant_id()))

    with pytest.raises(AppConfigError, match=r"'invoice' has no column 'tenent_id'.*'tenant_id'"):
        protect_metadata(metadata, role="app")


def test_a_nullable_tenant_column_is_refused(metadata: MetaData) -> None:
    tenant_table()(Table("invoice", metadata, key(), tenant_id(nullable=True)))

    with pytest.raises(AppConfigError, match=r"invoice\.tenant_id may be NULL.*nullable=False"):
        protect_metadata(metadata, role="app")


@pytest.mark.parametrize("kind", [Text, Integer, Uuid(native_uuid=False)])
def test_a_tenant_column_of_another_type_is_refused(metadata: MetaData, kind: Any) -> None:
    column = Column("tenant_id", kind, nullable=False)
    tenant_table()(Table("invoice", metadata, key(), column))

    with pytest.raises(AppConfigError, match=r"invoice\.tenant_id is .* uuids; give it the type"):
        protect_metadata(metadata, role="app")


class TextOfUuid(sa.TypeDecorator[str]):
    """A type of the user's own, which is a uuid in the database."""

    impl = Uuid(as_uuid=False)
    cache_ok = True


def test_a_type_that_is_a_uuid_in_the_database_is_one(metadata: MetaData) -> None:
    column = Column("tenant_id", TextOfUuid, nullable=False)
    tenant_table()(Table("invoice", metadata, key(), column))

    protect_metadata(metadata, role="app")


def test_a_table_is_declared_to_be_one_thing(metadata: MetaData, invoice: Table) -> None:
    with pytest.raises(AppConfigError, match=r"'invoice' is declared to be SharedTable.*already"):
        shared_table(reason="x")(invoice)


def test_the_mixin_and_another_declaration_contradict_each_other() -> None:
    class Base(DeclarativeBase):
        pass

    @shared_table(reason="x")
    class Invoice(TenantMixin, Base):
        __tablename__ = "invoice"
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(AppConfigError, match="drop the one or the other"):
        protect_metadata(Base.metadata, role="app")


def test_a_declaration_is_about_one_table_though_tables_share_their_info() -> None:
    """SQLAlchemy gives each table the very dictionary of an abstract base's __table_args__."""

    class Base(DeclarativeBase):
        __abstract__ = True
        metadata = MetaData()
        __table_args__: Any = {"info": {"team": "billing"}}  # noqa: RUF012 - SQLAlchemy's spelling

    class Country(Base):
        __tablename__ = "country"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Secret(Base):
        __tablename__ = "secret"
        id: Mapped[int] = mapped_column(primary_key=True)

    shared_table(reason="x")(Country)

    with pytest.raises(AppConfigError, match=r"1 tables say nothing .* 'secret'"):
        protect_metadata(Base.metadata, role="app")


def test_a_table_of_joined_inheritance_is_the_child_of_its_base_s() -> None:
    """The mixin's column is in the base's table alone, and an heir says nothing by itself."""

    class Base(DeclarativeBase):
        pass

    class Person(TenantMixin, Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Manager(Person):
        __tablename__ = "manager"
        id: Mapped[int] = mapped_column(sa.ForeignKey("person.id"), primary_key=True)

    with pytest.raises(AppConfigError, match=r"1 tables say nothing .* 'manager'"):
        protect_metadata(Base.metadata, role="app")

    child_table(reason="x")(Manager)
    protect_metadata(Base.metadata, role="app")
    using = protection(Base.metadata, "manager").policies[0].using
    assert using is not None
    assert "person.id = manager.id AND person.tenant_id =" in using


def test_a_base_class_can_not_be_declared() -> None:
    with pytest.raises(AppConfigError, match="declare the mapped class"):

        @shared_table(reason="x")
        class Base(DeclarativeBase):
            pass


class TestIndex:
    def test_one_is_added_that_the_tenant_column_leads(
        self, metadata: MetaData, invoice: Table
    ) -> None:
        protect_metadata(metadata, role="app")

        assert [index.name for index in invoice.indexes] == ["ix_invoice_tenant_id"]

    def test_one_has_a_name_where_the_convention_has_none(self) -> None:
        metadata = MetaData(naming_convention={"pk": "pk_%(table_name)s"})
        table = tenant_table()(Table("invoice", metadata, key(), tenant_id()))
        protect_metadata(metadata, role="app")

        assert [index.name for index in table.indexes] == ["ix_invoice_tenant_id"]

    @pytest.mark.parametrize(
        "items",
        [
            [tenant_id(primary_key=True), key()],
            [key(), tenant_id(index=True)],
            [key(), tenant_id(unique=True)],
            [key(), tenant_id(), tenant_unique("id")],
            [key(), tenant_id(), sa.Index("own", "tenant_id", "id")],
        ],
        ids=["primary key", "index=True", "unique=True", "unique key", "index"],
    )
    def test_none_is_added_where_another_does(self, metadata: MetaData, items: list[Any]) -> None:
        table = tenant_table()(Table("invoice", metadata, *items))
        before = set(table.indexes)
        protect_metadata(metadata, role="app")

        assert table.indexes == before

    @pytest.mark.parametrize(
        "index",
        [
            sa.Index("own", "id", "tenant_id"),
            sa.Index("own", "tenant_id", postgresql_where=sa.text("id > 0")),
            sa.Index("own", "tenant_id", postgresql_using="brin"),
            sa.Index("own", sa.text("lower(tenant_id::text)")),
        ],
        ids=["second", "partial", "brin", "expression"],
    )
    def test_one_is_added_beside_an_index_of_no_use(
        self, metadata: MetaData, index: sa.Index
    ) -> None:
        table = tenant_table()(Table("invoice", metadata, key(), tenant_id(), index))
        protect_metadata(metadata, role="app")

        assert len(table.indexes) == 2


class TestPolicies:
    def test_they_may_come_from_the_table_and_from_the_metadata(self, metadata: MetaData) -> None:
        one = Policy("one", "invoice", using="true")
        tenant_table(policies=[one])(Table("invoice", metadata, key(), tenant_id()))
        protect_metadata(metadata, role="app", policies=[Policy("two", "invoice", using="true")])

        names = [policy.name for policy in protection(metadata, "invoice").policies]
        assert names == ["one", "tenant_floor", "tenant_isolation", "two"]

    @pytest.mark.parametrize("name", ["tenant_isolation", "tenant_floor", "own"])
    def test_of_one_name_are_refused(self, metadata: MetaData, invoice: Table, name: str) -> None:
        policies = [Policy("own", invoice, using="true"), Policy(name, invoice, using="true")]

        with pytest.raises(AppConfigError, match=f"'invoice' gets 2 policies of the name '{name}'"):
            protect_metadata(metadata, role="app", policies=policies)

    def test_without_a_predicate_are_refused(self, metadata: MetaData, invoice: Table) -> None:
        with pytest.raises(AppConfigError, match="'own' of table 'invoice' has no predicate"):
            protect_metadata(metadata, role="app", policies=[Policy("own", invoice)])

    @pytest.mark.parametrize(
        "rule", [Policy("own", "invoce", using="true"), share_rows("own", "invoce", using="true")]
    )
    def test_for_no_table_of_the_metadata_are_refused(
        self, metadata: MetaData, invoice: Table, rule: Any
    ) -> None:
        with pytest.raises(AppConfigError, match=r"'own' is for table \(None, 'invoce'\)"):
            protect_metadata(metadata, role="app", policies=[rule])

    def test_on_one_table_but_for_another_are_refused(self, metadata: MetaData) -> None:
        policies = [Policy("own", "line", using="true")]
        tenant_table(policies=policies)(Table("invoice", metadata, key(), tenant_id()))

        with pytest.raises(AppConfigError, match="'own' is declared on table 'invoice', but says"):
            protect_metadata(metadata, role="app")

    def test_on_a_shared_table_are_refused(self, metadata: MetaData) -> None:
        shared_table(reason="x")(Table("country", metadata, key()))
        policies = [Policy("own", "country", using="true")]

        with pytest.raises(AppConfigError, match="'country', which is a shared_table"):
            protect_metadata(metadata, role="app", policies=policies)

    def test_a_grant_for_no_table_of_the_metadata_is_refused(self, metadata: MetaData) -> None:
        with pytest.raises(AppConfigError, match=r"a grant to 'reader' is for table"):
            protect_metadata(metadata, role="app", grants=[Grant("SELECT", "x", to="reader")])

    @pytest.mark.parametrize(
        ("privileges", "columns", "message"),
        [
            ("SELECT", ["id", "nosuch"], r"column 'nosuch' of table 'invoice', which has .*'id'"),
            (["SELECT", "DELETE"], "id", r"DELETE on columns \('id',\) .*on the table"),
            ("ALL", (), r"ALL .*name the privileges"),
            ("ALL", "id", r"ALL .*name the privileges"),
        ],
    )
    def test_a_grant_that_cannot_be_compared_is_refused(
        self, metadata: MetaData, invoice: Table, privileges: Any, columns: Any, message: str
    ) -> None:
        grant = Grant(privileges, invoice, to="reader", columns=columns)

        with pytest.raises(AppConfigError, match=f"a grant to 'reader' .*{message}"):
            protect_metadata(metadata, role="app", grants=[grant])

    def test_a_grant_is_on_columns_by_their_names_or_attributes(self, metadata: MetaData) -> None:
        columns = key(), tenant_id(), Column("Body", Text, key="body")
        note = tenant_table()(Table("note", metadata, *columns))
        protect_metadata(
            metadata,
            role="app",
            grants=[
                Grant("SELECT", note, to="reader", columns=["body", "id"], grantable=True),
                Grant("UPDATE", note, to="reader", columns="Body"),
            ],
        )

        granted = [one for one in protection(metadata, "note").grants if one.to == "reader"]
        assert granted == [
            Grant(["SELECT", "UPDATE"], "note", to="reader", columns="Body"),
            Grant("SELECT", "note", to="reader", columns="Body", grantable=True),
            Grant("SELECT", "note", to="reader", columns="id"),
            Grant("SELECT", "note", to="reader", columns="id", grantable=True),
        ]


class TestChildTables:
    def test_one_finds_its_parent_by_its_foreign_key(
        self, metadata: MetaData, invoice: Table
    ) -> None:
        invoice_id = refers_to("invoice.id", "invoice_id")
        child_table(reason="x")(Table("line", metadata, key(), invoice_id))
        protect_metadata(metadata, role="app")

        (predicate,) = {policy.using for policy in protection(metadata, "line").policies}
        assert predicate == (
            "EXISTS (SELECT FROM invoice WHERE invoice.id = line.invoice_id AND "
            f"{tenant_predicate(of=(None, 'invoice'))})"
        )

    def test_one_is_not_its_own_parent(self, metadata: MetaData, invoice: Table) -> None:
        parents = (
            refers_to("invoice.id", "invoice_id"),
            refers_to("note.id", "answers", nullable=True),
        )
        child_table(reason="x")(Table("note", metadata, key(), *parents))
        protect_metadata(metadata, role="app")

        predicate = protection(metadata, "note").policies[0].using
        assert predicate is not None
        assert "answers" not in predicate

    def test_one_without_a_protected_parent_is_refused(self, metadata: MetaData) -> None:
        shared_table(reason="x")(Table("country", metadata, key()))
        country_id = refers_to("country.id", "country_id")
        child_table(reason="x")(Table("town", metadata, key(), country_id))

        with pytest.raises(AppConfigError, match="'town' has no foreign key to a protected table"):
            protect_metadata(metadata, role="app")

    def test_one_with_several_parents_says_which(self, metadata: MetaData, invoice: Table) -> None:
        pair = refers_to("invoice.id", "left"), refers_to("invoice.id", "right")
        table = Table("pair", metadata, *pair)
        child_table(reason="x", via="left")(table)
        protect_metadata(metadata, role="app")

        predicate = protection(metadata, "pair").policies[0].using
        assert predicate is not None
        assert 'invoice.id = pair."left"' in predicate
        assert "right" not in predicate

    def test_one_with_several_parents_that_says_nothing_is_refused(
        self, metadata: MetaData, invoice: Table
    ) -> None:
        pair = refers_to("invoice.id", "a"), refers_to("invoice.id", "b")
        child_table(reason="x")(Table("pair", metadata, *pair))
        with pytest.raises(AppConfigError, match=r"several foreign keys .*'a'.*'b'.*via="):
            protect_metadata(metadata, role="app")

    def test_a_column_that_leads_nowhere_is_refused(
        self, metadata: MetaData, invoice: Table
    ) -> None:
        invoice_id = refers_to("invoice.id", "invoice_id")
        child_table(reason="x", via="id")(Table("line", metadata, key(), invoice_id))

        with pytest.raises(AppConfigError, match=r"reached via 'id', which is no column of a"):
            protect_metadata(metadata, role="app")

    def test_a_way_to_the_parent_that_may_be_null_is_refused(
        self, metadata: MetaData, invoice: Table
    ) -> None:
        invoice_id = refers_to("invoice.id", "invoice_id", nullable=True)
        child_table(reason="x")(Table("line", metadata, key(), invoice_id))

        with pytest.raises(AppConfigError, match=r"line\.invoice_id .* may be NULL"):
            protect_metadata(metadata, role="app")

    def test_one_that_is_its_own_ancestor_is_refused(self, metadata: MetaData) -> None:
        for name, parent in (("a", "b"), ("b", "a")):
            reference = refers_to(f"{parent}.id", "parent")
            child_table(reason="x")(Table(name, metadata, key(), reference))

        with pytest.raises(AppConfigError, match=r"'[ab]' is its own ancestor"):
            protect_metadata(metadata, role="app")

    def test_a_parent_of_the_same_name_is_refused(self, metadata: MetaData, invoice: Table) -> None:
        same = refers_to("invoice.id", "id", primary_key=True)
        child_table(reason="x")(Table("invoice", metadata, same, schema="archive"))

        with pytest.raises(AppConfigError, match="have the same name"):
            protect_metadata(metadata, role="app")


def test_the_form_without_a_sub_select_has_none(metadata: MetaData, invoice: Table) -> None:
    protect_metadata(metadata, role="app", subselect=False)

    policies = protection(metadata, "invoice").policies
    assert {policy.using for policy in policies} == {
        "tenant_id = NULLIF(current_setting('app.current_tenant', true), '')::uuid"
    }


def test_on_sqlite_the_same_models_are_created_without_protection() -> None:
    class Base(DeclarativeBase):
        pass

    class Invoice(TenantMixin, Base):
        __tablename__ = "invoice"
        id: Mapped[int] = mapped_column(primary_key=True)

    protect_metadata(Base.metadata, role="app")
    tenant = uuid4()
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
        connection.execute(sa.insert(Invoice).values(tenant_id=tenant))

        assert connection.scalar(sa.select(Invoice.tenant_id)) == tenant
        with pytest.raises(sa.exc.IntegrityError, match="NOT NULL"):
            connection.execute(sa.insert(Invoice).values(id=2))
    engine.dispose()
