"""The live probe as one line of a test."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData, Table, bindparam, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, async_sessionmaker

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy._binding import SETTING
from mgf.sqlalchemy.rls import declared_protection, is_protected

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Mapper


__all__ = ["assert_isolated"]

# A table, its partitions and inheritors, what these inherit from, which shows their rows, and the
# views that read one of them.
_CONCERNED = text(
    """
    WITH RECURSIVE concerned (oid, is_above) AS (
        SELECT c.oid, false FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname || '.' || c.relname IN :names
        UNION
        SELECT more.oid, more.is_above FROM concerned, LATERAL (
            SELECT inhrelid, false FROM pg_inherits
            WHERE inhparent = concerned.oid AND NOT concerned.is_above
            UNION ALL
            SELECT inhparent, true FROM pg_inherits WHERE inhrelid = concerned.oid
            UNION ALL
            SELECT r.ev_class, concerned.is_above
            FROM pg_depend AS d JOIN pg_rewrite AS r ON r.oid = d.objid
            WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
              AND d.refobjid = concerned.oid
        ) AS more (oid, is_above)
    )
    SELECT n.nspname || '.' || c.relname
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid IN (SELECT oid FROM concerned)
    """
).bindparams(bindparam("names", expanding=True))


async def assert_isolated(
    bind: AsyncEngine | AsyncConnection | async_sessionmaker[AsyncSession],
    target: MetaData | Table | type[Any],
    *,
    role: str | None = None,
    tenant_column: str = "tenant_id",
    setting: str = SETTING,
    tenants: Sequence[UUID] = (),
    ignore: Mapping[str, str] | None = None,
    not_proven: Mapping[str, str] | None = None,
) -> None:
    """Assert that no attack of `mgf.sqlalchemy.audit.probe` gets at another tenant's rows.

    Everything is attacked in a transaction that is rolled back. What could not be attacked fails
    as well, since nothing was shown of it. It is about what the role can do to rows: what may
    open them one day, such as a table without FORCE, whose owner policies do not hold, is for
    `mgf.sqlalchemy.audit.audit` to tell. ::

        async def test_tenants_are_kept_apart(mgf_engine):
            await assert_isolated(mgf_engine, Base)

    Args:
        bind: of the application's role, or of a login that may take it: an engine, a connection
            outside every tenant's scope, or a sessionmaker on one of them.
        target: what to answer for: a metadata or declarative base; or a model or table, with its
            partitions, what it inherits from and the views that read it. Of a model with several
            tables, all of them.
        role: that the application connects as; the connection's own unless given.
        tenant_column: as for `probe`.
        setting: as for `probe`.
        tenants: as for `probe`.
        ignore: as for `probe`: attacks that may succeed, each with the reason.
        not_proven: objects, ``schema.name``, that need not be attacked, each with the reason.

    Raises:
        AssertionError: rows were had, or an attack could not be tried; the text names for each
            the object, the attack, what happened and the remedy.
        AppConfigError: no table of the target has tenants' rows, a reason is blank, or what
            `probe` raises it for.
        TypeError: `bind` or `target` is something else.
    """
    __tracebackhide__ = True  # pytest shows the line of the test, and the text
    # Not at the top: who only starts a server needs none of it.
    from mgf.sqlalchemy.audit import NotProven, probe
    from mgf.sqlalchemy.audit._report import restricted

    allowed = _check_reasons(not_proven)
    metadata, tables = _read_target(target)
    async with _connect(bind) as connection:
        is_open = connection.in_transaction()
        report = await probe(
            connection,
            role=role,
            metadata=metadata if is_protected(metadata) else None,
            tenant_column=tenant_column,
            setting=setting,
            tenants=tenants,
            ignore=ignore,
        )
        default = connection.dialect.default_schema_name or "public"
        wanted = _tenant_tables(metadata, tables, tenant_column, default)
        if tables is not None:
            found = await connection.execute(_CONCERNED, {"names": sorted(wanted)})
            report = restricted(report, wanted.union(found.scalars()))
        if not is_open:
            await connection.rollback()
    missing = (
        NotProven(one, "any", "it was not attacked: it is not there, or has no tenant column")
        for one in sorted(wanted - report.probed["relations"].keys())
    )
    report = replace(
        report,
        not_proven=tuple(
            one for one in (*report.not_proven, *missing) if one.object not in allowed
        ),
    )
    if not report.ok:
        raise AssertionError(report.render())


def _check_reasons(not_proven: Mapping[str, str] | None) -> Mapping[str, str]:
    allowed = not_proven or {}
    for name, reason in allowed.items():
        if not reason.strip():
            raise AppConfigError(f"not_proven={{{name!r}: {reason!r}}} gives no reason; say why")
    return allowed


def _read_target(
    target: MetaData | Table | type[Any],
) -> tuple[MetaData, Iterable[Table] | None]:
    """Return the metadata, and its tables that are meant, or None for all."""
    if isinstance(target, MetaData):
        return target, None
    if isinstance(target, Table):
        return target.metadata, [target]
    metadata = getattr(target, "metadata", None)
    if isinstance(target, type) and isinstance(metadata, MetaData):
        mapper: Mapper[Any] | None = inspect(target, raiseerr=False)
        if mapper is None:
            return metadata, None
        named = metadata.tables.values()
        return metadata, [one for one in named if one in mapper.tables]
    raise TypeError(
        "assert_isolated() is about a MetaData, a declarative base or model, or a Table, "
        f"not {target!r}"
    )


@asynccontextmanager
async def _connect(
    bind: AsyncEngine | AsyncConnection | async_sessionmaker[AsyncSession],
) -> AsyncGenerator[AsyncConnection]:
    found = bind.kw.get("bind") if isinstance(bind, async_sessionmaker) else bind
    if isinstance(found, AsyncConnection):
        yield found
    elif isinstance(found, AsyncEngine):
        async with found.connect() as connection:
            yield connection
    else:
        # Not its repr(): it may be a URL with a password.
        raise TypeError(
            "assert_isolated() takes an AsyncEngine, an AsyncConnection or an async_sessionmaker "
            f"on one of them, not an object of type {type(found).__name__!r}"
        )


def _tenant_tables(
    metadata: MetaData, tables: Iterable[Table] | None, tenant_column: str, default: str
) -> set[str]:
    """Return the names of the tables that are meant and have tenants' rows."""
    if is_protected(metadata):
        protections = declared_protection(metadata).tables
        names = {(one.schema, one.name) for one in protections if one.enabled}
    else:
        every = metadata.tables.values()
        names = {(one.schema, one.name) for one in every if tenant_column in one.columns}
    if tables is not None:
        names.intersection_update((one.schema, one.name) for one in tables)
    if not names:
        raise AppConfigError(
            f"nothing to isolate: no table that is meant has a column {tenant_column!r} or is "
            "declared to have tenants' rows"
        )
    return {f"{schema or default}.{name}" for schema, name in names}
