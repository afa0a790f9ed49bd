"""What an audit and a probe found: one object for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.audit._data import ReportData
from mgf.sqlalchemy.audit._finding import by_rank
from mgf.sqlalchemy.audit._html import render_html
from mgf.sqlalchemy.audit._labels import is_relation
from mgf.sqlalchemy.audit._text import render_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from mgf.sqlalchemy.audit._finding import NotProven

# Raised when a key of the JSON is renamed, removed or means something else.
_VERSION = 1


@dataclass(frozen=True)
class Report(ReportData):
    """The outcome of an audit, of a probe, or of both.

    Args:
        database: its name.
        role: that everything is said about.
        findings: worst first.
        not_proven: what the catalogs cannot tell, and what a live probe could not try.
        probed: what a live probe tried: ``"relations"`` has, for each, the outcome of each attack;
            empty where none ran.
        ignored: ids that were asked to be left out, each with the reason given; only those that
            left out something.
    """

    def merged(self, other: Report) -> Report:
        """Return what this report and another one say together: an audit and a probe.

        What the audit could not prove about a policy is settled where the probe tried everything
        on that relation; what the probe found there is among the findings.

        Raises:
            AppConfigError: they are about different databases or roles, or a probe ran for both.
        """
        if (self.database, self.role) != (other.database, other.role):
            raise AppConfigError(
                f"a report on {self.database!r} and role {self.role!r} cannot be merged with one "
                f"on {other.database!r} and role {other.role!r}"
            )
        if self.probed and other.probed:
            raise AppConfigError("a probe ran for both reports; merge an audit with one probe")
        probed = self.probed or other.probed
        audited, tried = (other, self) if self.probed else (self, other)
        open_ = (one for one in audited.not_proven if not _is_settled(one, probed))
        return replace(
            self,
            findings=tuple(sorted(_unique(self.findings + other.findings), key=by_rank)),
            not_proven=tuple(_unique((*open_, *tried.not_proven))),
            probed=probed,
            ignored={**self.ignored, **other.ignored},
        )

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
        "remedy"}], "not_proven": [{"object", "attack", "reason"}], "probed": {"tenants",
        "control", "seconds", "relations": {object: {attack: "held" | "leaked" | "not_proven" |
        "not_applicable"}}}, "ignored": {id: reason}, "ok"}``. ``"probed"`` is empty where no probe
        ran. Keys are only added while ``"version"`` stays the same.
        """
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, default=str)

    def to_html(self) -> str:
        """Return the report as one HTML page, which loads and runs nothing."""
        return render_html(self)

    def render(self, *, colour: bool = False, width: int = 100) -> str:
        """Return the report as text for people.

        Args:
            colour: with a terminal's escape sequences.
            width: in characters, of the lines; SQL, and names that are longer, are not broken.
        """
        return render_text(self, colour=colour, width=width)


def restricted(report: Report, relations: Collection[str]) -> Report:
    """Return a probe's report on some relations: on no other, but on roles and on the probe."""
    others = {
        one for one in report.probed["relations"] if is_relation(one) and one not in relations
    }
    return replace(
        report,
        findings=tuple(one for one in report.findings if one.object not in others),
        not_proven=tuple(one for one in report.not_proven if one.object not in others),
    )


def _unique(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def _is_settled(one: NotProven, probed: Mapping[str, Any]) -> bool:
    """Say whether a probe left nothing open on the relation of a policy."""
    outcomes = probed.get("relations", {}).get(one.object)
    return (
        one.attack.startswith("policy ")
        and bool(outcomes)
        and "not_proven" not in outcomes.values()
    )
