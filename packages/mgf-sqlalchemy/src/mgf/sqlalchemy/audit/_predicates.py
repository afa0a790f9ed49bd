"""What is wrong with a predicate that is not the canonical one.

Equality with the canonical predicate decides; the patterns here only give the reason a name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgf.sqlalchemy.audit._finding import Severity

_SETTINGS = re.compile(r"current_setting\('((?:[^']|'')*)'(?:::text)?(, true)?", re.IGNORECASE)
_TAUTOLOGY = re.compile(r"\(?(?:true|(?P<side>[\w.\"]+) (?:=|IS NOT DISTINCT FROM) (?P=side))\)?")
_OPEN_WHEN_UNBOUND = re.compile(
    r"\bIS NULL\b|\bCOALESCE\(|\bIS NOT DISTINCT FROM\b|\bNOT \(.* IS DISTINCT FROM |= ''::text"
)


class Fault(NamedTuple):
    """A check's id, how bad it is, and what can happen."""

    id: str
    severity: Severity
    consequence: str


def faults(predicate: str, column: str | None, setting: str) -> Iterator[Fault]:
    """Yield what is wrong with a predicate as PostgreSQL prints it; something always is.

    Args:
        predicate: of a permissive policy.
        column: the tenant column's name.
        setting: that holds the tenant.
    """
    found = [*_openings(predicate), *_about_settings(predicate, setting)]
    if column is not None and _changes(column, predicate):
        found.append(
            Fault(
                "policy-column-cast",
                "error",
                "compares a cast or function of the tenant column, which no index on the column "
                "serves: every query reads the rows of all tenants",
            )
        )
    yield from found
    if all(one.severity == "info" for one in found):
        yield Fault(
            "policy-not-canonical",
            "error",
            "is not the canonical predicate, so the catalogs cannot tell whose rows it lets "
            "through; declare it, and let the live probe clear it",
        )


def _openings(predicate: str) -> Iterator[Fault]:
    disjuncts = re.split(r" OR ", predicate)
    if any(_TAUTOLOGY.fullmatch(one.strip(" ()") or "true") for one in disjuncts):
        yield Fault("policy-always-true", "critical", "is true for rows of every tenant")
    elif _OPEN_WHEN_UNBOUND.search(predicate):
        yield Fault(
            "policy-fail-open",
            "critical",
            "can be true where no tenant is set: code that forgot its scope gets every row",
        )
    elif len(disjuncts) > 1:
        yield Fault(
            "policy-widened",
            "critical",
            "has an OR, so rows of other tenants pass whenever its other side is true",
        )


def _about_settings(predicate: str, setting: str) -> Iterator[Fault]:
    named = {match[1].lower(): match[2] for match in _SETTINGS.finditer(predicate)}
    own = setting.lower()
    if named and own not in named:
        yield Fault(
            "policy-wrong-setting",
            "critical",
            f"asks for {', '.join(map(repr, sorted(named)))} and not for {setting!r}: what sets "
            "the tenant does not reach it, and what else sets that reads other tenants' rows",
        )
    elif len(named) > 1:
        others = sorted(named.keys() - {own})
        yield Fault(
            "policy-second-setting",
            "critical",
            f"asks for {', '.join(map(repr, others))} too, which anyone who can run SQL may set",
        )
    if own in named and "NULLIF(" not in predicate:
        yield Fault(
            "policy-no-nullif",
            "error",
            "has no NULLIF(..., ''): the setting is empty, not NULL, once a session has used it, "
            "so reused connections fail with 22P02, or reach rows whose tenant is empty",
        )
    if own in named and named[own] is None:
        yield Fault(
            "policy-setting-required",
            "info",
            "asks for the setting without missing_ok, so sessions that never set it get an error",
        )


def _changes(column: str, predicate: str) -> bool:
    name = re.escape(column.replace('"', '""'))
    word = rf'(?:\w+\.)?"?{name}"?'
    return re.search(rf"\(?{word}\)?::|\b(?!SELECT\b)\w+\({word}[,)]", predicate) is not None
