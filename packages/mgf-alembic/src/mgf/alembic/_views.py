"""Operations on views that are read with the rights of who reads them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from alembic.operations import Operations
from sqlalchemy import ExecutableDDLElement, text
from sqlalchemy.ext.compiler import compiles

from mgf.alembic._operation import ProtectionOp
from mgf.sqlalchemy import rls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.sql.compiler import DDLCompiler

# A colon that SQLAlchemy would take for a parameter's.
_PARAMETER = re.compile(r"(?<![:\w\\]):(?=\w)")


class _ViewOp(ProtectionOp):
    def __init__(
        self,
        view_name: str,
        select: str,
        *,
        schema: str | None = None,
        grants: Iterable[rls.Grant] = (),
    ) -> None:
        self.view_name = view_name
        self.select = select
        self.schema = schema
        self.grants = tuple(grants)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        keywords: dict[str, Any] = {"schema": self.schema, "grants": self.grants}
        given = {key: value for key, value in keywords.items() if value}
        return (self.view_name, self.select), given


@Operations.register_operation("create_invoker_view")
class CreateInvokerViewOp(_ViewOp):
    """Create a view that is read with the rights of who reads it."""

    call = "create_invoker_view"

    @classmethod
    def create_invoker_view(
        cls,
        operations: Operations,
        view_name: str,
        select: str,
        *,
        schema: str | None = None,
        grants: Iterable[rls.Grant] = (),
    ) -> None:
        """Create a view that is read with the rights of who reads it.

        Args:
            operations: Alembic's own; not given in a call of ``op.create_invoker_view()``.
            view_name: of the view.
            select: what it shows, as SQL.
            schema: of the view; None is the default schema.
            grants: all that PUBLIC and the roles in it may do; PostgreSQL alone has them.

        Raises:
            AppConfigError: a relation of that name is there, or there is no such table or role.
        """
        operations.invoke(cls(view_name, select, schema=schema, grants=grants))

    def statements(self) -> Iterator[ExecutableDDLElement]:
        select = text(_PARAMETER.sub(r"\\:", self.select)).columns()
        yield rls.CreateInvokerView(self.view_name, select, schema=self.schema)
        nobody = rls.Grant((), self.view_name, schema=self.schema, to="PUBLIC")
        for whole in dict.fromkeys(grant.whole for grant in (nobody, *self.grants)):
            yield rls.RevokePrivileges(whole)
        for grant in self.grants:
            if grant.privileges:
                yield rls.GrantPrivileges(grant)

    def reverse(self) -> DropInvokerViewOp:
        return DropInvokerViewOp(
            self.view_name, self.select, schema=self.schema, grants=self.grants
        )


@Operations.register_operation("drop_invoker_view")
class DropInvokerViewOp(_ViewOp):
    """Drop a view."""

    call = "drop_invoker_view"

    @classmethod
    def drop_invoker_view(
        cls,
        operations: Operations,
        view_name: str,
        select: str,
        *,
        schema: str | None = None,
        grants: Iterable[rls.Grant] = (),
    ) -> None:
        """Drop a view.

        Args:
            operations: Alembic's own; not given in a call of ``op.drop_invoker_view()``.
            view_name: of the view.
            select: what it showed, as SQL; with `grants` it serves to bring the view back.
            schema: of the view; None is the default schema.
            grants: what was granted on it.
        """
        operations.invoke(cls(view_name, select, schema=schema, grants=grants))

    def statements(self) -> Iterator[ExecutableDDLElement]:
        yield rls.DropInvokerView(self.view_name, schema=self.schema)

    def reverse(self) -> CreateInvokerViewOp:
        return CreateInvokerViewOp(
            self.view_name, self.select, schema=self.schema, grants=self.grants
        )


class _SetSecurityInvoker(ExecutableDDLElement):
    def __init__(self, name: str, schema: str | None, *, invoker: bool) -> None:
        self.name = name
        self.schema = schema
        self.invoker = invoker


@compiles(_SetSecurityInvoker)
def _set_security_invoker(
    element: _SetSecurityInvoker, compiler: DDLCompiler, **_options: Any
) -> str:
    name = compiler.preparer.quote(element.name)
    if element.schema is not None:
        name = f"{compiler.preparer.quote_schema(element.schema)}.{name}"
    return f"ALTER VIEW {name} SET (security_invoker = {str(element.invoker).lower()})"


@Operations.register_operation("alter_view_security")
class AlterViewSecurityOp(ProtectionOp):
    """Say with whose rights a view reads its tables."""

    call = "alter_view_security"

    def __init__(self, view_name: str, *, schema: str | None = None, invoker: bool) -> None:
        self.view_name = view_name
        self.schema = schema
        self.invoker = invoker

    @classmethod
    def alter_view_security(
        cls, operations: Operations, view_name: str, *, schema: str | None = None, invoker: bool
    ) -> None:
        """Say with whose rights a view reads its tables.

        Args:
            operations: Alembic's own; not given in a call of ``op.alter_view_security()``.
            view_name: of the view.
            schema: of the view; None is the default schema.
            invoker: those of who reads it, as policies need, or those of its owner. The
                opposite of what was before.

        Raises:
            AppConfigError: there is no such view.
        """
        operations.invoke(cls(view_name, schema=schema, invoker=invoker))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        schema = {} if self.schema is None else {"schema": self.schema}
        return (self.view_name,), {**schema, "invoker": self.invoker}

    def statements(self) -> Iterable[ExecutableDDLElement]:
        return (_SetSecurityInvoker(self.view_name, self.schema, invoker=self.invoker),)

    def reverse(self) -> AlterViewSecurityOp:
        return AlterViewSecurityOp(self.view_name, schema=self.schema, invoker=not self.invoker)
