"""Prove it: what in a live PostgreSQL database keeps one tenant's rows from the others."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mgf.sqlalchemy.audit._require import RlsNotActiveError, require_rls

if TYPE_CHECKING:
    from mgf.sqlalchemy.audit._audit import audit, audit_connection
    from mgf.sqlalchemy.audit._finding import Finding, NotProven
    from mgf.sqlalchemy.audit._probe._runner import probe, probe_connection
    from mgf.sqlalchemy.audit._report import Report

__all__ = [
    "Finding",
    "NotProven",
    "Report",
    "RlsNotActiveError",
    "audit",
    "audit_connection",
    "probe",
    "probe_connection",
    "require_rls",
]

# Loaded when asked for: a program that only calls `require_rls` before it serves needs none.
_ELSEWHERE = {
    "Finding": "_finding",
    "NotProven": "_finding",
    "Report": "_report",
    "audit": "_audit",
    "audit_connection": "_audit",
    "probe": "_probe._runner",
    "probe_connection": "_probe._runner",
}


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ELSEWHERE[name]}"), name)
