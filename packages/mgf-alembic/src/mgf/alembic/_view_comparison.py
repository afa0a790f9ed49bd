"""Let autogenerate see what views show, and make them in the order of what they read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects import postgresql

from mgf.alembic._dependencies import table_key
from mgf.alembic._views import AlterViewSecurityOp, CreateInvokerViewOp, DropInvokerViewOp
from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy import rls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Connection, MetaData, SelectBase

    from mgf.alembic._dependencies import TableKey


class ViewComparison:
    """Compares the views that are declared with those that are there.

    Args:
        connection: to PostgreSQL.
        metadatas: those that are protected.
        expected: the views that count.
        there: what is there.

    Attributes:
        changed: schema and name of views that are there and are made anew, since they or what
            they read show something else than declared; and what they show.
    """

    def __init__(
        self,
        connection: Connection,
        metadatas: Sequence[MetaData],
        expected: Iterable[rls.ViewProtection],
        there: rls.Protection,
    ) -> None:
        self._metadatas = metadatas
        self._default = connection.dialect.default_schema_name
        self._expected = {one.key: one for one in expected}
        self._there = {one.key: one for one in there.views}
        self.changed: dict[TableKey, str] = {
            key: select
            for metadata in metadatas
            for key, select in rls.changed_views(connection, metadata).items()
            if key in self._expected
        }

    def drop(self) -> Iterator[DropInvokerViewOp]:
        """Yield what drops the views that are made anew."""
        for key, select in reversed(self.changed.items()):
            schema, name = key
            yield DropInvokerViewOp(
                name,
                select.strip().removesuffix(";"),
                schema=schema,
                grants=self._there[key].grants,
            )

    def create(self) -> Iterator[CreateInvokerViewOp]:
        """Yield what creates the views that are missing or made anew.

        What others than the declared roles may do on one stays as it is.
        """
        for key, select in self._declared():
            expected, there = self._expected.get(key), self._there.get(key)
            if expected is not None and (there is None or key in self.changed):
                roles = {one.to for one in expected.grants}
                shown = {one.name for one in select.selected_columns}
                others = () if there is None else there.grants
                kept = (one for one in others if one.to not in roles and shown >= {*one.columns})
                grants = (*expected.grants, *kept)
                schema, name = key
                yield CreateInvokerViewOp(name, _write(select), schema=schema, grants=grants)

    def _declared(self) -> Iterator[tuple[TableKey, SelectBase]]:
        for metadata in self._metadatas:
            for one in rls.create_views(metadata):
                yield table_key(one.schema, one.name, self._default), one.select


def secure_view(view: rls.ViewProtection) -> AlterViewSecurityOp:
    """Return what lets a view be read with the rights of who reads it.

    Raises:
        AppConfigError: it is a materialized view.
    """
    if view.materialized:
        raise AppConfigError(
            f"{view.key!r} (schema, name) is declared as invoker_view(), but is a materialized "
            "view in the database, which no policy can protect; drop it"
        )
    return AlterViewSecurityOp(view.name, schema=view.schema, invoker=True)


def _write(select: SelectBase) -> str:
    # "named", because the driver's own style would double every percent sign.
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    options: dict[str, Any] = {"literal_binds": True}
    return str(select.compile(dialect=dialect, compile_kwargs=options))
