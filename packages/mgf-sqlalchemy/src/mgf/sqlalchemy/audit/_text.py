"""A report as text: for a terminal, or for a log."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Final

from mgf.sqlalchemy.audit._finding import SEVERITIES
from mgf.sqlalchemy.audit._outcomes import (
    OUTCOMES,
    attacks_of,
    group_findings,
    group_gaps,
    matrix,
    printable,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mgf.sqlalchemy.audit._data import ReportData
    from mgf.sqlalchemy.audit._outcomes import Gap, Group

# ECMA-48, "select graphic rendition".
_COLOURS: Final[dict[str, str]] = {
    "critical": "1;31",
    "error": "31",
    "warning": "33",
    "info": "36",
    "good": "32",
    "title": "1",
    "sql": "2",
}
_INDENT = " " * (max(map(len, SEVERITIES)) + 2)
# Narrower than this nothing can be read, wrapped or not.
_NARROWEST = 40


def render_text(report: ReportData, *, colour: bool, width: int) -> str:
    """Return a report as text; the arguments are those of `Report.render`."""
    return _Text(max(width, _NARROWEST), colour=colour).render(report)


class _Text:
    def __init__(self, width: int, *, colour: bool) -> None:
        self._width = width
        self._colour = colour

    def render(self, report: ReportData) -> str:
        return "\n".join(self._lines(report)) + "\n"

    def _lines(self, report: ReportData) -> Iterator[str]:
        title = f"Tenant isolation in database {report.database} for role {report.role}"
        yield from (self._paint(line, "title") for line in self._wrap(title))
        yield ""
        for group in group_findings(report):
            yield from self._group(group)
        yield from self._section("Not proven", map(self._gap, group_gaps(report)))
        ignored = ([f"{name}: {reason}"] for name, reason in report.ignored.items())
        yield from self._section("Ignored", map(self._listed, ignored))
        yield from self._probe(report)
        kind = "good" if report.ok else "critical"
        yield from (self._paint(one, kind) for one in self._wrap(summary(report)))
        yield from self._wrap(verdict(report))

    def _group(self, group: Group) -> Iterator[str]:
        severity = self._paint(group.severity.ljust(len(_INDENT) - 2), group.severity)
        first, *more = self._wrap(", ".join(group.ids), _INDENT)
        for line in (f"{severity}  {self._paint(first.strip(), 'title')}", *more):
            yield line
        yield from self._wrap(", ".join(group.objects), _INDENT)
        for message in dict.fromkeys(group.messages):
            yield from self._wrap(message, _INDENT)
        for remedy in group.remedies:
            for line in remedy.splitlines():
                yield self._paint(f"{_INDENT}    {printable(line)}", "sql")
        yield ""

    def _section(self, title: str, items: Iterable[list[str]]) -> Iterator[str]:
        lines = [line for item in items for line in item]
        if lines:
            yield from (self._paint(title, "title"), *lines, "")

    def _gap(self, gap: Gap) -> list[str]:
        names = f"{', '.join(gap.objects)}: {', '.join(gap.attacks)}"
        return [*self._listed([names]), *self._wrap(gap.reason, "      ")]

    def _listed(self, texts: Iterable[str]) -> list[str]:
        return [line for one in texts for line in self._wrap(one, "  ", "      ")]

    def _probe(self, report: ReportData) -> Iterator[str]:
        rows = matrix(report)
        if not rows:
            return
        indent = max(len(printable(name)) for name, _ in rows)
        counts = [Counter(outcomes.values()) for _, outcomes in rows]
        kinds = [one for one in OUTCOMES if any(count[one] for count in counts)]
        yield self._paint(f"Probed with {len(attacks_of(report))} attacks", "title")
        yield "  ".join(["", "relation".ljust(indent), *(OUTCOMES[one] for one in kinds)])
        for (name, outcomes), count in zip(rows, counts, strict=True):
            cells = [str(count[one] or ".").rjust(len(OUTCOMES[one])) for one in kinds]
            kind = "critical" if count["leaked"] else "warning" if count["not_proven"] else "good"
            yield self._paint("  ".join(["", printable(name).ljust(indent), *cells]), kind)
            leaks = [attack for attack, outcome in outcomes.items() if outcome == "leaked"]
            if leaks:
                yield from self._wrap(f"leaked: {', '.join(leaks)}", "      ")
        yield ""

    def _wrap(self, text: str, indent: str = "", more: str | None = None) -> list[str]:
        return textwrap.wrap(
            printable(text),
            self._width,
            initial_indent=indent,
            subsequent_indent=indent if more is None else more,
            break_long_words=False,
            break_on_hyphens=False,
        )

    def _paint(self, text: str, kind: str) -> str:
        return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if self._colour else text


def summary(report: ReportData) -> str:
    """Return the outcome, and how much of what was found, in a line."""
    counts = Counter(one.severity for one in report.findings)
    said = [f"{counts[one]} {one}" for one in SEVERITIES if counts[one]]
    said += [f"{len(report.not_proven)} not proven"] if report.not_proven else []
    said += [f"{len(report.ignored)} ignored"] if report.ignored else []
    probe = "" if report.probed else "; catalogs only, nothing was probed"
    return f"{'ok' if report.ok else 'not ok'}: {', '.join(said) or 'no findings'}{probe}"
