"""The server itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgf.sqlalchemy.audit._finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgf.sqlalchemy.audit._snapshot import Subject

# CVE-2026-14666, the latest fix that concerns row-level security: the least minor release of
# each major one, from https://www.postgresql.org/support/security/. Later ones have it.
_FLOOR = {14: 24, 15: 19, 16: 15, 17: 11, 18: 6}


def check_server(subject: Subject) -> Iterator[Finding]:
    """Yield what is wrong with the server's version, and what was not asked of it."""
    major, minor = divmod(subject.snapshot.version, 10000)
    floor = _FLOOR.get(major, 0)
    database = subject.snapshot.database
    if major < min(_FLOOR) or minor < floor:
        wanted = f"{major}.{floor}" if floor else f"{max(_FLOOR)}.{_FLOOR[max(_FLOOR)]}"
        yield Finding(
            "server-cve-floor",
            "error",
            database,
            f"PostgreSQL {major}.{minor} has known holes in row-level security: a plan that was "
            "made before a role lost a right goes on showing rows (CVE-2026-14666, or older)",
            f"-- upgrade the server to {wanted} or later",
        )
    if subject.recorded:
        yield Finding(
            "server-recorded-deparse",
            "info",
            database,
            "no temporary table could be made (no TEMPORARY privilege, a standby, or read-only), "
            "so predicates were compared with recorded ones, and the metadata's not at all",
            "-- audit the primary, or GRANT TEMPORARY ON DATABASE to the auditing role",
        )
