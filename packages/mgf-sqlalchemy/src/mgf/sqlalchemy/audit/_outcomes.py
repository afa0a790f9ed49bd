"""What renderings of a report share: the attacks, their outcomes, and findings in groups."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mgf.sqlalchemy.audit._data import ReportData
    from mgf.sqlalchemy.audit._finding import Finding, Severity

# In the order in which a probe makes them.
ATTACKS: Final = {
    "own-read": "positive control: a tenant reads its own rows",
    "own-write": "positive control: a tenant writes its own rows",
    "read": "read another tenant's rows",
    "unscoped": "read with no tenant set",
    "empty": "read with an empty tenant, as reused connections have it",
    "nonsense": "read with a tenant that is no tenant",
    "insert": "insert a row of another tenant",
    "insert-returning": "insert one, and have it returned",
    "insert-unscoped": "insert a row while no tenant is set",
    "upsert": "insert one on top of another tenant's (ON CONFLICT DO UPDATE)",
    "move": "give an own row to another tenant, by UPDATE",
    "blind-update": "UPDATE without WHERE",
    "blind-delete": "DELETE without WHERE",
    "truncate": "TRUNCATE",
    "copy": "COPY ... TO",
    "other-settings": "set every other setting that a policy names, then read",
    "prepared": "prepare a statement for one tenant, run it for the other, and for none",
    "reused": "read on a connection that another tenant has used",
}
# By outcome: what a person reads.
OUTCOMES: Final = {
    "leaked": "leaked",
    "not_proven": "not proven",
    "held": "held",
    "not_applicable": "not applicable",
}
# Worst first.
_VERDICTS: Final[dict[Severity, str]] = {
    "critical": "Tenants are not kept apart: another tenant's rows can be had.",
    "error": "Tenants' rows can be had under some condition, or are not protected as they should.",
    "warning": "Tenants are kept apart for now: one more mistake, and they are not.",
}


class Group(NamedTuple):
    """Findings that say the same of several objects.

    Those of a probe are told by object: one that several attacks got at is one group, with the
    ids and messages in the same order.
    """

    severity: Severity
    ids: tuple[str, ...]
    messages: tuple[str, ...]
    objects: tuple[str, ...]
    remedies: tuple[str, ...]


class Gap(NamedTuple):
    """What was not proven for one reason, by the same attacks on several objects."""

    objects: tuple[str, ...]
    attacks: tuple[str, ...]
    reason: str


def group_findings(report: ReportData) -> list[Group]:
    """Return the findings, worst first, those that say the same in one."""
    by_object: defaultdict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for one in report.findings:
        kind = "probe" if one.id.startswith("probe-") else f"{one.id} {one.message}"
        by_object[one.severity, one.object, kind].append(one)
    same: defaultdict[tuple[Severity, tuple[str, ...], tuple[str, ...]], list[Finding]]
    same = defaultdict(list)
    for found in by_object.values():
        ids = tuple(one.id for one in found)
        messages = tuple(one.message for one in found)
        same[found[0].severity, ids, messages] += found
    return [
        Group(
            *key,
            objects=tuple(dict.fromkeys(one.object for one in found)),
            remedies=tuple(dict.fromkeys(one.remedy for one in found)),
        )
        for key, found in same.items()
    ]


def group_gaps(report: ReportData) -> list[Gap]:
    """Return what was not proven: each reason once for all that it is the reason of."""
    attacks: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for one in report.not_proven:
        attacks[one.object, one.reason].append(one.attack)
    objects: defaultdict[tuple[tuple[str, ...], str], list[str]] = defaultdict(list)
    for (name, reason), tried in attacks.items():
        objects[tuple(tried), reason].append(name)
    return [Gap(tuple(names), *key) for key, names in objects.items()]


def attacks_of(report: ReportData) -> list[str]:
    """Return the attacks that a probe made, in their order."""
    made = {attack for outcomes in _relations(report).values() for attack in outcomes}
    return [one for one in ATTACKS if one in made] + sorted(made - ATTACKS.keys())


def matrix(report: ReportData) -> list[tuple[str, Mapping[str, str]]]:
    """Return what a probe tried, with each attack's outcome; what leaked comes first."""

    def worst(item: tuple[str, Mapping[str, str]]) -> tuple[int, int, str]:
        counts = Counter(item[1].values())
        return -counts["leaked"], -counts["not_proven"], item[0]

    return sorted(_relations(report).items(), key=worst)


def count_outcomes(report: ReportData) -> Counter[str]:
    """Return how many attacks ended in each way."""
    return Counter(one for outcomes in _relations(report).values() for one in outcomes.values())


def _relations(report: ReportData) -> Mapping[str, Mapping[str, str]]:
    found: Mapping[str, Mapping[str, str]] = report.probed.get("relations", {})
    return found


def verdict(report: ReportData) -> str:
    """Return what a report says, in a sentence."""
    found = {one.severity for one in report.findings}
    for severity, said in _VERDICTS.items():
        if severity in found:
            return said
    if not report.ok:
        return "Not proven: nothing is known to be wrong, but not everything could be tried."
    if report.probed:
        return "Tenants are kept apart: no mistake was found, and every attack was held off."
    return "No mistake was found in the catalogs. Nothing was tried: that takes a probe."


def printable(text: str) -> str:
    """Return a text whose control characters do nothing: names come from the database."""
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in text)
