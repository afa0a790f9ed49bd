"""What an audit found, and what could not be proven: one object for people and for programs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mgf.sqlalchemy.audit._finding import SEVERITIES, Finding, NotProven

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Raised when a key of the JSON is renamed, removed or means something else.
_VERSION = 1

# ECMA-48, "select graphic rendition".
_COLOURS: Final[dict[str, str]] = {
    "critical": "1;31",
    "error": "31",
    "warning": "33",
    "info": "36",
    "good": "32",
}
_WIDTH = max(map(len, SEVERITIES))


@dataclass(frozen=True)
class Report:
    """The outcome of an audit.

    Args:
        database: its name.
        role: that everything is said about.
        findings: worst first.
        not_proven: what the catalogs cannot tell, and what a live probe could not try.
        probed: what a live probe tried, by relation and attack; empty where none ran.
        ignored: ids that were asked to be left out, each with the reason given; only those that
            left out something.
    """

    database: str
    role: str
    findings: tuple[Finding, ...] = ()
    not_proven: tuple[NotProven, ...] = ()
    probed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    ignored: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; where a probe ran, whether everything was proven, too."""
        if self.probed and self.not_proven:
            return False
        return all(one.severity == "info" for one in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, with the keys of `to_json`."""
        return {
            "version": _VERSION,
            "database": self.database,
            "role": self.role,
            "findings": [asdict(one) for one in self.findings],
            "not_proven": [asdict(one) for one in self.not_proven],
            "probed": dict(self.probed),
            "ignored": dict(self.ignored),
            "ok": self.ok,
        }

    def to_json(self) -> str:
        """Return the report as JSON.

        ``{"version", "database", "role", "findings": [{"id", "severity", "object", "message",
        "remedy"}], "not_proven": [{"object", "attack", "reason"}], "probed": {...}, "ignored":
        {id: reason}, "ok"}``. Keys are only added while ``"version"`` stays the same.
        """
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def render(self, *, colour: bool = False) -> str:
        """Return the report as text for people.

        Args:
            colour: with a terminal's escape sequences.
        """
        return "\n".join(_lines(self, colour=colour)) + "\n"


def _lines(report: Report, *, colour: bool) -> Iterator[str]:
    where, who = _printable(report.database), _printable(report.role)
    yield f"Tenant isolation in database {where} for role {who}"
    yield ""
    for finding in report.findings:
        yield from _finding(finding, colour=colour)
    for one in report.not_proven:
        yield f"not proven  {_printable(one.object)}  {_printable(one.attack)}"
        yield f"    {_printable(one.reason)}"
    for name, reason in report.ignored.items():
        yield f"ignored  {_printable(name)}: {_printable(reason)}"
    yield _paint(_summary(report), "good" if report.ok else "critical", colour=colour)


def _finding(finding: Finding, *, colour: bool) -> Iterator[str]:
    severity = _paint(finding.severity.ljust(_WIDTH), finding.severity, colour=colour)
    yield f"{severity}  {finding.id}  {_printable(finding.object)}"
    yield f"    {_printable(finding.message)}"
    for line in finding.remedy.splitlines():
        yield f"    > {_printable(line)}"
    yield ""


def _summary(report: Report) -> str:
    counts = Counter(one.severity for one in report.findings)
    said = [f"{counts[one]} {one}" for one in SEVERITIES if counts[one]]
    said += [f"{len(report.not_proven)} not proven"] if report.not_proven else []
    verdict = "ok" if report.ok else "not ok"
    probe = "" if report.probed else "; catalogs only, nothing was probed"
    return f"{verdict}: {', '.join(said) or 'no findings'}{probe}"


def _paint(text: str, kind: str, *, colour: bool) -> str:
    return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if colour else text


def _printable(text: str) -> str:
    """Return a text whose control characters do nothing: names come from the database."""
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in text)
