"""Names as they stand in remedies."""

from __future__ import annotations

from mgf.sqlalchemy.rls._predicates import quote_column


def identifier(name: str) -> str:
    """Return a name as it stands in SQL."""
    return name if name == "PUBLIC" else quote_column(name)


def literal(value: str) -> str:
    """Return a string as it stands in SQL."""
    return "'" + value.replace("'", "''") + "'"
