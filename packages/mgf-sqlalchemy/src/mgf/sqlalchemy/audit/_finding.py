"""One thing that is wrong, and one that nobody can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Severity: TypeAlias = Literal["critical", "error", "warning", "info"]

# Worst first.
SEVERITIES: Final[tuple[Severity, ...]] = ("critical", "error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or with severity ``"info"`` worth knowing.

    Args:
        id: of the check, stable over releases.
        severity: ``"critical"``: another tenant's rows can be had. ``"error"``: they can under
            some condition, or the protection is not what it should be. ``"warning"``: it takes
            another mistake. ``"info"``: does not count.
        object: ``schema.name`` of a relation or function, or the name of a role or setting.
        message: what an attacker or a bug could do with it.
        remedy: SQL that puts it right; a comment where no statement does.
    """

    id: str
    severity: Severity
    object: str
    message: str
    remedy: str


def by_rank(finding: Finding) -> tuple[int, str, str]:
    """Return what findings are sorted by: the worst first."""
    return SEVERITIES.index(finding.severity), finding.id, finding.object


@dataclass(frozen=True)
class NotProven:
    """Something that was neither shown to hold nor to fail.

    Args:
        object: as in `Finding`.
        attack: what would have to be tried.
        reason: why it could not be told.
    """

    object: str
    attack: str
    reason: str
