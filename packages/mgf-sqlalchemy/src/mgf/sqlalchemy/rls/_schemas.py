"""What a connection calls the schemas of a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mgf.sqlalchemy.rls._names import RelationName
    from mgf.sqlalchemy.rls._state import TableProtection, ViewProtection


def schema_map(connection: object) -> Mapping[str | None, str | None]:
    """Return the connection's ``schema_translate_map``; what only prints statements has none."""
    if not isinstance(connection, Connection):
        return {}
    options: Mapping[str, Any] = connection.get_execution_options()
    return options.get("schema_translate_map") or {}


def effective_schema(connection: object, schema: str | None) -> str | None:
    """Return what the connection calls a schema."""
    schema = None if schema is None else str(schema)
    return schema_map(connection).get(schema, schema)


def shorten_name(name: RelationName, default: str | None) -> RelationName:
    """Write the default schema as None, as what is read from the catalogs has it."""
    schema, relation = name
    return None if schema == default else schema, relation


def shorten_table(protection: TableProtection, default: str | None) -> TableProtection:
    """Write the default schema as None wherever it stands."""
    schema, _ = shorten_name(protection.key, default)
    return replace(
        protection,
        schema=schema,
        grants=tuple(replace(one, schema=schema) for one in protection.grants),
        policies=tuple(replace(one, schema=schema) for one in protection.policies),
        parents=tuple(shorten_name(one, default) for one in protection.parents),
    )


def shorten_view(protection: ViewProtection, default: str | None) -> ViewProtection:
    """Write the default schema as None wherever it stands."""
    schema, _ = shorten_name(protection.key, default)
    return replace(
        protection,
        schema=schema,
        grants=tuple(replace(one, schema=schema) for one in protection.grants),
        reads=tuple(shorten_name(one, default) for one in protection.reads),
    )
