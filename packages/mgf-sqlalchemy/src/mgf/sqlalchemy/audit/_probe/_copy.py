"""COPY TO STDOUT, which goes past SQLAlchemy."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mgf.sqlalchemy.audit._sql import identifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from mgf.sqlalchemy.audit._snapshot import Relation

# Bytes that are kept; what comes after is not looked at.
_MOST = 1_000_000


class CopyUnsupportedError(Exception):
    """This driver has no COPY that the probe knows."""


def copy_out(connection: Connection, relation: Relation, columns: Sequence[str]) -> str:
    """Return what COPY TO STDOUT gives: of a table, or of a query where COPY takes no other.

    Args:
        connection: in a transaction.
        relation: to copy.
        columns: of it, at least one.

    Raises:
        CopyUnsupportedError: the driver is neither asyncpg nor psycopg.
        Exception: what the driver raises; no exception of SQLAlchemy.
    """
    adapted: Any = connection.connection.dbapi_connection
    shown = ", ".join(map(identifier, columns))
    query = f"SELECT {shown} FROM {relation.sql}"  # noqa: S608
    is_table = relation.kind == "r"
    sql = f"COPY {f'{relation.sql} ({shown})' if is_table else f'({query})'} TO STDOUT"
    output = bytearray()
    driver = connection.dialect.driver
    if driver == "asyncpg":
        table = (relation.schema, relation.name, columns) if is_table else None
        adapted.run_async(partial(_asyncpg, table=table, query=query, output=output))
    elif driver == "psycopg" and hasattr(adapted, "run_async"):
        adapted.run_async(partial(_psycopg, sql=sql, output=output))
    elif driver == "psycopg":
        with adapted.cursor() as cursor, cursor.copy(sql) as copy:
            for data in copy:
                _add(output, data)
    elif driver == "psycopg2":
        with adapted.cursor() as cursor:
            cursor.copy_expert(sql, _File(output))
    else:
        raise CopyUnsupportedError(f"nothing is known of COPY with the driver {driver!r}")
    return output.decode(errors="replace")


def _add(output: bytearray, data: bytes) -> None:
    if len(output) < _MOST:
        output += data


class _File:
    def __init__(self, output: bytearray) -> None:
        self._output = output

    def write(self, data: str) -> int:
        _add(self._output, data.encode())
        return len(data)


async def _asyncpg(
    raw: Any, *, table: tuple[str, str, Sequence[str]] | None, query: str, output: bytearray
) -> None:
    async def keep(data: bytes) -> None:
        _add(output, data)

    if table is None:
        await raw.copy_from_query(query, output=keep)
    else:
        schema, name, columns = table
        await raw.copy_from_table(name, schema_name=schema, columns=columns, output=keep)


async def _psycopg(raw: Any, *, sql: str, output: bytearray) -> None:
    async with raw.cursor() as cursor, cursor.copy(sql) as copy:
        async for data in copy:
            _add(output, data)
