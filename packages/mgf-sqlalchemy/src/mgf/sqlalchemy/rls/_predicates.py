"""The SQL that says whose rows these are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Dialect, Uuid
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles

from mgf.sqlalchemy._binding import SETTING

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler

    from mgf.sqlalchemy.rls._names import RelationName

# The tenant in force, or NULL: once the setting was used in a session it is empty, not NULL.
_CURRENT_TENANT = f"NULLIF(current_setting('{SETTING}', true), '')::uuid"
# Asked for once in a statement, not once for every row that no index finds.
CURRENT_TENANT_SUBSELECT = f"(SELECT {_CURRENT_TENANT})"
# The same as PostgreSQL writes it down. Any other spelling of a default differs from what the
# database shows, whenever the two are compared.
_CURRENT_TENANT_DEPARSED = f"(NULLIF(current_setting('{SETTING}'::text, true), ''::text))::uuid"

# With a driver's own style of parameters every percent sign in a name would be doubled.
POSTGRESQL: Dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]  # SQLAlchemy's
_quote = POSTGRESQL.identifier_preparer.quote


class TenantDefault(ColumnElement[Any]):
    """The tenant in force; on databases without such a setting NULL, which NOT NULL refuses."""

    inherit_cache = True
    type = Uuid()


@compiles(TenantDefault)
def _without_setting(_element: TenantDefault, _compiler: SQLCompiler, **_options: Any) -> str:
    return "(NULL)"


@compiles(TenantDefault, "postgresql")
def _by_setting(_element: TenantDefault, _compiler: SQLCompiler, **_options: Any) -> str:
    return _CURRENT_TENANT_DEPARSED


def tenant_default() -> ColumnElement[Any]:
    """Return the server default of a tenant column: the tenant in force.

    An INSERT in a scope need not name the tenant; outside every scope the value is NULL, which
    the column refuses. It is written as PostgreSQL prints it, so that comparing a model with the
    database finds no difference. On other databases it is NULL.
    """
    return TenantDefault()


def tenant_predicate(
    column: str = "tenant_id", *, of: RelationName | None = None, subselect: bool = True
) -> str:
    """Return the SQL that is true for rows of the tenant in force, and never without one.

    Args:
        column: the tenant column's name.
        of: schema and name of the table, for a predicate in which the column alone would be
            ambiguous.
        subselect: ask for the tenant once in a statement, not once for every row that no index
            finds. Citus refuses policies with sub-selects.
    """
    value = CURRENT_TENANT_SUBSELECT if subselect else _CURRENT_TENANT
    return f"{quote_column(column, of)} = {value}"


def quote_relation(name: RelationName) -> str:
    """Return schema and name as they stand in SQL."""
    return ".".join(_quote(part) for part in name if part is not None)


def quote_column(name: str, of: RelationName | None = None) -> str:
    """Return a column as it stands in SQL, with its table where one is given."""
    return _quote(name) if of is None else f"{quote_relation(of)}.{_quote(name)}"
