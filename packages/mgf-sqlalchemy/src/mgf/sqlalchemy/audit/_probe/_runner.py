"""The live probe, as programs call it."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy._binding import SETTING, binding_of
from mgf.sqlalchemy.audit._finding import Finding, NotProven, by_rank
from mgf.sqlalchemy.audit._look import check_reasons, is_ignored, look, names_of
from mgf.sqlalchemy.audit._probe._findings import leak
from mgf.sqlalchemy.audit._probe._run import Run
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
    """Attack every relation that has tenants' rows, as the application's role."""
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
