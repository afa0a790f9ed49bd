"""The live probe, as programs call it."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy._binding import SETTING, binding_of
from mgf.sqlalchemy.audit._finding import Finding, NotProven, by_rank
from mgf.sqlalchemy.audit._look import (
    check_reasons,
    is_ignored,
    look,
    names_of,
    refuse_read_only,
)
from mgf.sqlalchemy.audit._probe._findings import leak
from mgf.sqlalchemy.audit._probe._run import Run
from mgf.sqlalchemy.audit._probe._session import limit
from mgf.sqlalchemy.audit._report import Report
from mgf.sqlalchemy.rls._scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, MetaData
    from sqlalchemy.ext.asyncio import AsyncConnection

    from mgf.sqlalchemy.audit._probe._outcome import Outcome
    from mgf.sqlalchemy.audit._snapshot import Subject

_CURRENT = text("SELECT current_setting(:setting, true)")


async def probe(
    bind: AsyncEngine | AsyncConnection,
    *,
    role: str | None = None,
    metadata: MetaData | None = None,
    tenant_column: str = "tenant_id",
    setting: str = SETTING,
    tenants: Sequence[UUID] = (),
    ignore: Mapping[str, str] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Attack every relation that has tenants' rows, live, as the application's role.

    All of it is one transaction, or a savepoint in an open one, that is rolled back. First, rows
    of two tenants that nobody else has are put in: by the login, where it is another one than
    the role, else by the role, as far as policies let each tenant write its own. Then the role
    reads, writes, moves and removes across tenants, in every way and in both directions, and
    without a tenant; so it does in and through views, in partitions and as each role that it can
    become, and it looks for those rows in what triggers and rules wrote beside them, when they were
    put in and when the role updates and deletes them, and in materialized views that functions
    fill.
    Nothing is taken for held unless the same statement reached the tenant's own rows, and an open
    table that is made for it was found open; what was not shown is not proven. Where a table's own
    trigger refuses an UPDATE or DELETE, it is made again without triggers, if the login may.

    Made to be run on staging. No row that was there is written but by the database's own triggers
    and rules: an UPDATE or DELETE without WHERE carries a condition that fails at the first row
    within its reach, which is what shows a leak. A lock is waited for 2 s, a statement takes 30 s
    at most, and what takes longer is not proven. What a rollback does not undo stays: sequences go
    on, tables keep dead rows until they are vacuumed, and triggers fire, so whatever they do
    outside of the database is done; NOTIFY is not sent. Tables take the locks that writing takes
    until the end; TRUNCATE, where it is granted, and REFRESH of a materialized view that the role
    may read, also by a view, lock everyone out for their own time. Foreign tables are read only,
    since what is written elsewhere may not be undone. A table that is partitioned by lists of
    tenants gets a partition, if the login owns it, and who writes to tables that foreign keys tie
    it to waits until the end. A log that was written is searched for new rows, which on a large one
    takes a while.

    Only a session that never set a tenant shows what NULL in the setting opens; it is read first,
    and ``probed["unscoped"]`` is ``"never set"`` then. A pooled connection that was used may have
    set one, and after that it is ``"reset"``. A connection that is used again is stood for by a
    rollback to a savepoint, which gives the setting back in the same way.

    In ``Report.probed`` are ``"tenants"``, ``"control"`` (``"caught"``, ``"missed"`` or
    ``"not_proven"``), ``"unscoped"``, ``"seconds"`` and ``"relations"``: for each relation and
    ``"role NAME"``, by attack, ``"held"``, ``"leaked"``, ``"not_proven"`` or
    ``"not_applicable"``, which says that the role has no privilege for it, or that a view takes no
    such command. Takes about 135 statements for each table that the role may read and write.

    Args:
        bind: engine or connection, to PostgreSQL, not in AUTOCOMMIT and in no tenant's scope.
        role: that the application connects as; the connection's own unless given.
        metadata: one that is protected (`mgf.sqlalchemy.rls.protect_metadata`); what it declares
            to be shared is no leak.
        tenant_column: name of the column that says whose a row is, a UUID or text.
        setting: that holds the tenant in force.
        tenants: whose rows may be copied, where made-up values do not fulfil what a table or its
            triggers ask for.
        ignore: what to leave out, each with the reason, as for `audit`:
            ``{"probe-move": "..."}`` or ``{"probe-move public.invoice": "..."}``. It counts for
            leaks and for what is not proven.
        progress: is called before each relation and role, with how many are done, how many there
            are, and its name.

    Raises:
        AppConfigError: there is no such role, or the login cannot become it; the database is not
            PostgreSQL, or a standby; the connection is in AUTOCOMMIT, in a tenant's scope or
            read-only; the metadata is not protected; or a reason is blank.
        sqlalchemy.exc.DBAPIError: the connection was lost, or a table is locked so that not even
            its policies can be read (SQLSTATE 55P03).
    """
    options: dict[str, Any] = {
        "role": role,
        "metadata": metadata,
        "tenant_column": tenant_column,
        "setting": setting,
        "tenants": tenants,
        "ignore": ignore,
        "progress": progress,
    }
    if isinstance(bind, AsyncEngine):
        async with bind.connect() as connection:
            return await probe(connection, **options)
    return await bind.run_sync(lambda connection: probe_connection(connection, **options))


def probe_connection(
    connection: Connection,
    *,
    role: str | None = None,
    metadata: MetaData | None = None,
    tenant_column: str = "tenant_id",
    setting: str = SETTING,
    tenants: Sequence[UUID] = (),
    ignore: Mapping[str, str] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Do what `probe` does, on a connection that is not async."""
    reasons = check_reasons(ignore)
    if binding_of(connection).wanted.tenant is not None:
        raise AppConfigError(
            "this connection is in a tenant's scope, and the probe has to choose tenants itself; "
            "use one that is in none"
        )
    started = monotonic()
    is_open = connection.in_transaction()
    with scratch(connection):
        refuse_read_only(connection)
        limit(connection)
        expectation = look(
            connection, role=role, metadata=metadata, tenant_column=tenant_column, setting=setting
        )
        bound = connection.execute(_CURRENT, {"setting": setting}).scalar()
        run = Run(
            connection,
            expectation,
            donors=[str(one) for one in tenants],
            bound=None if is_open else bound,
        )
        outcomes = run.outcomes(progress or (lambda _done, _total, _object: None))
    probed = {
        "tenants": list(run.tenants),
        "control": run.control,
        "unscoped": "never set" if run.was_never_set else "reset",
        "seconds": round(monotonic() - started, 3),
        "relations": {
            label: {name: outcome.result for name, outcome in each.items()}
            for label, each in outcomes.items()
        },
    }
    return _report(expectation.subject, outcomes, reasons, probed)


def _report(
    subject: Subject,
    outcomes: Mapping[str, Mapping[str, Outcome]],
    reasons: Mapping[str, str],
    probed: Mapping[str, Any],
) -> Report:
    relations = {one.label: one for one in subject.snapshot.relations.values()}
    ignored: dict[str, str] = {}
    findings = list[Finding]()
    missing = list[NotProven]()
    for label, each in outcomes.items():
        for name, (result, reason) in each.items():
            if result == "leaked":
                found = leak(subject, relations.get(label), label, name, reason)
                if not is_ignored(names_of(found, found.id), reasons, ignored):
                    findings.append(found)
            elif result == "not_proven":
                unproven = NotProven(label, name, reason)
                if not is_ignored(names_of(unproven, f"probe-{name}"), reasons, ignored):
                    missing.append(unproven)
    return Report(
        database=subject.snapshot.database,
        role=subject.snapshot.role.rolname,
        findings=tuple(sorted(findings, key=by_rank)),
        not_proven=tuple(missing),
        probed=probed,
        ignored=ignored,
    )
