"""What is handed on to Alembic, and what is put beside it."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic import command, context
from sqlalchemy import URL, Connection, MetaData, Table, UniqueConstraint

from harness.migrations import ACCOUNT, Project, rows
from mgf.alembic import configure_env
from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONVENTION = {
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "ix": "ix_%(column_0_label)s",
    "pk": "pk_%(table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
}

LOGGING = """
[loggers]
keys = root
[handlers]
keys =
[formatters]
keys =
[logger_root]
level = CRITICAL
handlers =
"""


@pytest.fixture
def url(tmp_path: Path) -> URL:
    return URL.create("sqlite", database=str(tmp_path / "a.db"))


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `alembic.context.configure` is called with, which runs all the same."""
    calls: list[dict[str, Any]] = []
    configure: Callable[..., None] = context.configure

    def record(**options: Any) -> None:
        calls.append(options)
        configure(**options)

    monkeypatch.setattr("alembic.context.configure", record)
    return calls


def include_all(*_: Any) -> bool:
    return True


class TestContextConfigure:
    """`alembic.context.configure` gets everything, in every mode."""

    @pytest.fixture(params=["offline", "sync", "async", "given connection"])
    def run(self, request: pytest.FixtureRequest, project: Project, url: URL) -> Callable[..., Any]:
        def run(**options: Any) -> None:
            if request.param == "offline":
                project.sql(url, **options)
            elif request.param == "given connection":
                engine = sa.create_engine(url, poolclass=sa.NullPool)
                with engine.begin() as connection:
                    project.upgrade(None, connection=connection, **options)
            else:
                driver = "sqlite+aiosqlite" if request.param == "async" else "sqlite"
                project.upgrade(url.set(drivername=driver), **options)

        return run

    def test_include_object_and_include_schemas_arrive_as_given(
        self, run: Callable[..., Any], configured: list[dict[str, Any]]
    ) -> None:
        run(include_object=include_all, include_schemas=True)

        assert configured[0]["include_object"] is include_all
        assert configured[0]["include_schemas"] is True

    def test_the_defaults_compare_everything(
        self, run: Callable[..., Any], configured: list[dict[str, Any]]
    ) -> None:
        run()

        defaults = {"include_object": None, "include_schemas": False, "target_metadata": None}
        defaults |= {"compare_type": True, "compare_server_default": True}
        assert defaults.items() <= configured[0].items()

    def test_further_options_arrive_as_given(
        self, run: Callable[..., Any], configured: list[dict[str, Any]]
    ) -> None:
        options = {"include_name": include_all, "version_table": "versions"}

        run(**options)

        assert options.items() <= configured[0].items()

    def test_the_naming_convention_is_on_the_metadata_by_then(
        self, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        metadata = MetaData()
        seen: list[Any] = []
        configure: Callable[..., None] = context.configure

        def look(**options: Any) -> None:
            seen.append(metadata.naming_convention)
            configure(**options)

        monkeypatch.setattr("alembic.context.configure", look)

        run(target_metadata=metadata, naming_convention=CONVENTION)

        assert seen == [CONVENTION]


@pytest.mark.parametrize("option", ["connection", "url", "dialect", "dialect_name"])
def test_an_option_that_the_url_settles_is_refused(project: Project, option: str) -> None:
    config = project.config(database_url="sqlite://")
    config.attributes["arguments"][option] = "x"

    with pytest.raises(AppConfigError, match=f"takes no '{option}'.*database_url"):
        command.current(config)


@pytest.mark.parametrize(
    ("scheme", "batch"), [("sqlite", True), ("sqlite+aiosqlite", True), ("postgresql", False)]
)
def test_batch_operations_are_rendered_for_sqlite_alone(
    project: Project, configured: list[dict[str, Any]], scheme: str, batch: bool
) -> None:
    project.sql(f"{scheme}://")

    assert configured[0]["render_as_batch"] is batch


@pytest.mark.parametrize("scheme", ["sqlite", "postgresql"])
def test_render_as_batch_is_the_callers_when_given(
    project: Project, configured: list[dict[str, Any]], scheme: str
) -> None:
    project.sql(f"{scheme}://", render_as_batch=scheme != "sqlite")

    assert configured[0]["render_as_batch"] is (scheme != "sqlite")


def test_the_version_table_and_its_schema_are_used(project: Project, database: URL) -> None:
    project.add('op.execute("CREATE SCHEMA own")')
    project.upgrade(database)
    project.add(ACCOUNT)
    project.run(
        command.stamp,
        "r1",
        database_url=database,
        version_table="versions",
        version_table_schema="own",
    )

    project.upgrade(database, version_table="versions", version_table_schema="own")

    assert rows(database, "SELECT version_num FROM own.versions") == ["r2"]


def test_transaction_per_migration_keeps_what_was_done(project: Project, database: URL) -> None:
    project.add(ACCOUNT)
    project.add('raise LookupError("halfway")')

    with pytest.raises(LookupError, match="halfway"):
        project.upgrade(database, transaction_per_migration=True)
    assert rows(database, "SELECT version_num FROM alembic_version") == ["r1"]


def test_include_object_leaves_out_a_table(project: Project, url: URL) -> None:
    metadata = MetaData()
    Table("mine", metadata, sa.Column("id", sa.Integer))
    Table("theirs", metadata, sa.Column("id", sa.Integer))

    def include(_object: Any, name: str | None, *_: Any) -> bool:
        return name != "theirs"

    autogenerate(project, url, metadata, include_object=include)

    assert "mine" in written(project)
    assert "theirs" not in written(project)


def test_a_changed_server_default_is_found(project: Project, url: URL) -> None:
    project.add('op.create_table("t", sa.Column("n", sa.Integer, server_default="1"))')
    project.upgrade(url)
    metadata = MetaData()
    Table("t", metadata, sa.Column("n", sa.Integer, server_default="2"))

    with pytest.raises(Exception, match="modify_default"):
        project.run(command.check, database_url=url, target_metadata=metadata)


def test_several_metadata_are_compared_together(project: Project, url: URL) -> None:
    metadata = [MetaData(), MetaData()]
    for number, one in enumerate(metadata):
        Table(f"t{number}", one, sa.Column("id", sa.Integer))

    autogenerate(project, url, metadata)

    assert "'t0'" in written(project)
    assert "'t1'" in written(project)


def test_a_test_may_replace_the_functions_of_alembic_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are looked up in `alembic.context` at each call, and no command has to run."""
    calls: list[dict[str, Any]] = []
    ran: list[bool] = []
    monkeypatch.setattr("alembic.context.is_offline_mode", lambda: False)
    monkeypatch.setattr("alembic.context.configure", lambda **options: calls.append(options))
    monkeypatch.setattr("alembic.context.begin_transaction", nullcontext)
    monkeypatch.setattr("alembic.context.run_migrations", lambda: ran.append(True))

    configure_env(database_url="sqlite+aiosqlite://", target_metadata=None)

    assert isinstance(calls[0]["connection"], Connection)
    assert ran == [True]


def test_logging_is_left_alone(project: Project, url: URL) -> None:
    project.add(ACCOUNT)
    project.write("alembic.ini", (project.folder / "alembic.ini").read_text() + LOGGING)
    logger = logging.getLogger("some.application")
    before = logging.root.level, list(logging.root.handlers)

    project.upgrade(url)

    assert not logger.disabled
    assert (logging.root.level, logging.root.handlers) == before


def autogenerate(
    project: Project, url: URL, metadata: MetaData | list[MetaData], **options: Any
) -> None:
    project.run(
        lambda config: command.revision(config, autogenerate=True),
        database_url=url,
        target_metadata=metadata,
        **options,
    )


def written(project: Project) -> str:
    """The revision that autogenerate wrote."""
    (script,) = (project.folder / "migrations" / "versions").glob("*_.py")
    return script.read_text()


class TestNamingConvention:
    """Tables made before the convention was known are named as those made under it."""

    @staticmethod
    def models() -> MetaData:
        metadata = MetaData()
        Table("account", metadata, sa.Column("id", sa.Integer, primary_key=True))
        Table(
            "note",
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("account_id", sa.ForeignKey("account.id")),
            sa.Column("slug", sa.String, unique=True),
            sa.Column("own", sa.Integer),
            sa.CheckConstraint("id > 0"),
            UniqueConstraint("own", name="mine"),
        )
        return metadata

    def test_they_get_their_names(self, project: Project) -> None:
        metadata = self.models()

        project.sql("sqlite://", target_metadata=metadata, naming_convention=CONVENTION)

        names = {c.name for c in metadata.tables["note"].constraints}
        assert names == {
            "fk_note_account_id_account",
            "pk_note",
            "uq_note_slug",
            "mine",
            None,  # a check: its convention asks for a name to begin with
        }

    def test_names_that_were_given_stay(self, project: Project) -> None:
        """Also beside an unnamed one on the same column."""
        metadata = self.models()
        note = metadata.tables["note"]
        note.append_constraint(UniqueConstraint("slug", name="own_slug"))
        note.append_constraint(UniqueConstraint("own", name="mine_too"))

        project.sql("sqlite://", target_metadata=metadata, naming_convention=CONVENTION)

        names = {c.name for c in note.constraints if isinstance(c, UniqueConstraint)}
        assert names == {"uq_note_slug", "own_slug", "mine", "mine_too"}

    def test_a_kind_without_convention_stays_unnamed(self, project: Project) -> None:
        metadata = self.models()

        project.sql(
            "sqlite://", target_metadata=metadata, naming_convention={"pk": "pk_%(table_name)s"}
        )

        names = {c.name for c in metadata.tables["note"].constraints}
        assert names == {"pk_note", "mine", None}

    @pytest.mark.parametrize("several", [False, True])
    def test_autogenerate_writes_the_names(self, project: Project, url: URL, several: bool) -> None:
        metadata = self.models()

        autogenerate(
            project, url, [metadata] if several else metadata, naming_convention=CONVENTION
        )

        assert "name=op.f('uq_note_slug')" in written(project)
        assert "name=op.f('fk_note_account_id_account')" in written(project)

    def test_operations_in_a_migration_use_it(self, project: Project) -> None:
        project.add('op.create_unique_constraint(None, "account", ["name"])')

        script = project.sql(
            "postgresql://", target_metadata=MetaData(), naming_convention=CONVENTION
        )

        assert "ADD CONSTRAINT uq_account_name UNIQUE (name)" in script

    def test_without_one_the_metadata_is_left_alone(self, project: Project) -> None:
        metadata = MetaData(naming_convention=CONVENTION)

        project.sql("sqlite://", target_metadata=metadata)

        assert metadata.naming_convention == CONVENTION
