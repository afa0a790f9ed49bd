"""`mgf.alembic.op` is Alembic's `op`, and type checkers know what this package adds to it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import alembic.op
import pytest
from alembic.operations import MigrateOperation, Operations

from mgf.alembic import op
from mgf.alembic._operation import ProtectionOp

if TYPE_CHECKING:
    from harness.migrations import Project
    from harness.schemas import Database

# Type checkers read the stub, which has no list of names.
NAMES: list[str] = vars(op)["__all__"]
IMPORTS = "from mgf.alembic import op\nfrom mgf.sqlalchemy import rls"
# As Alembic's own template has it, in short.
ENV = """
import os
from alembic import context
from sqlalchemy import create_engine

engine = create_engine(os.environ["DATABASE_URL"])
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
STUB = ast.parse(Path(op.__file__).with_suffix(".pyi").read_text())
STUBBED = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}


def parameters(function: Any) -> list[tuple[str, str]]:
    """Name and default of what a call of the operation takes, with the stars."""
    names = iter(inspect.signature(function).parameters.values())
    next(names)  # Alembic's own
    return [(str(one.kind), one.name + ("" if one.default is one.empty else "=")) for one in names]


def written(node: ast.FunctionDef) -> list[tuple[str, str]]:
    """The same of a function in the stub."""
    source = ast.unparse(node.args)
    scope: dict[str, Any] = {"rls": None, "Iterable": dict}
    code = f"from __future__ import annotations\ndef function(_operations, {source}): ..."
    exec(code, scope)
    return parameters(scope["function"])


def test_the_stub_names_what_the_module_does() -> None:
    assert sorted(STUBBED) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_has_the_signature_of_the_operation(name: str) -> None:
    assert written(STUBBED[name]) == parameters(getattr(Operations, name))


def test_every_operation_of_this_package_is_in_the_stub() -> None:
    kinds = [ProtectionOp]
    for kind in kinds:
        kinds += kind.__subclasses__()
    ours = {kind.call for kind in kinds if "call" in vars(kind)} | {"rls_suspended"}

    assert ours == set(NAMES)


def test_it_has_all_that_alembic_has_also_what_others_register_later() -> None:
    @Operations.register_operation("of_others")
    class _OfOthers(MigrateOperation):
        @classmethod
        def of_others(cls, operations: Operations) -> None:
            """Do nothing."""

    for name in ("create_table", "get_bind", "batch_alter_table", "of_others"):
        assert getattr(op, name) is getattr(alembic.op, name)
    with pytest.raises(AttributeError, match="nosuch"):
        _ = op.nosuch  # type: ignore[attr-defined]


def test_a_migration_that_imports_it_needs_no_env_py_that_does(
    project: Project, empty: Database
) -> None:
    """The application's env.py may be of Alembic's own making."""
    project.write("migrations/env.py", ENV)
    policy = "op.create_policy(rls.Policy('p', 't', using='true'))"
    project.add(f'op.create_table("t", sa.Column("id", sa.Integer))\n{policy}')
    script = project.folder / "migrations/versions/r1.py"
    script.write_text(
        script.read_text()
        .replace(
            "from alembic import op", "from mgf.alembic import op\nfrom mgf.sqlalchemy import rls"
        )
        .replace("op.drop_policy", "op.create_policy(rls.Policy('p', 't', using='true'))")
    )

    project.alembic("upgrade", "head", database_url=empty.url.set(drivername="postgresql+psycopg"))

    assert empty.ask("SELECT polname::text FROM pg_policy") == "p"
