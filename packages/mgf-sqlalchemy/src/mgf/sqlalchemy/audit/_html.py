"""A report as one HTML page, which loads nothing and runs nothing."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from html import escape
from itertools import count, groupby
from typing import TYPE_CHECKING, Any, Final

from mgf.sqlalchemy.audit._finding import SEVERITIES
from mgf.sqlalchemy.audit._outcomes import (
    ATTACKS,
    OUTCOMES,
    attacks_of,
    count_outcomes,
    group_findings,
    group_gaps,
    matrix,
    printable,
    verdict,
)
from mgf.sqlalchemy.audit._style import STYLE
from mgf.sqlalchemy.audit._titles import TITLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mgf.sqlalchemy.audit._data import ReportData
    from mgf.sqlalchemy.audit._outcomes import Gap, Group

# Told apart without colour, too.
_MARKS: Final = {"held": "✓", "leaked": "✗", "not_proven": "?", "not_applicable": "·"}
# More names than these fold up.
_MANY = 12


def render_html(report: ReportData) -> str:
    """Return a report as an HTML page."""
    return "\n".join(_page(report)) + "\n"


def _page(report: ReportData) -> Iterator[str]:
    title = f"Tenant isolation in database {_text(report.database)} for role {_text(report.role)}"
    yield "<!DOCTYPE html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    # Whatever a name from the database might slip in, no browser runs or loads it.
    yield (
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    )
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title><style>{STYLE}</style></head><body><main>"
    yield (
        f"<h1>Tenant isolation in database <code>{_text(report.database)}</code> "
        f"for role <code>{_text(report.role)}</code></h1>"
    )
    yield from _verdict(report)
    groups = group_findings(report)
    yield from _matrix(report, _anchors(groups))
    yield from _findings(groups)
    yield from _gaps(report)
    yield from _ignored(report)
    yield from _footer(report)
    yield "</main></body></html>"


def _verdict(report: ReportData) -> Iterator[str]:
    state = "ok" if report.ok else "bad"
    yield f'<div class="card verdict {state}"><strong>{"Ok" if report.ok else "Not ok"}</strong>'
    yield f"<p>{_text(verdict(report))}</p></div>"
    counts = Counter(one.severity for one in report.findings)
    yield '<div class="tiles">'
    for severity in SEVERITIES:
        yield _tile(counts[severity], severity, severity)
    yield _tile(len(report.not_proven), "not proven", "not-proven")
    if report.probed:
        held = count_outcomes(report)["held"]
        yield _tile(held, "attacks held off", "attacks")
    yield "</div>"


def _tile(count: int, label: str, target: str) -> str:
    inner = f"<b>{count}</b>{label}"
    if not count:
        return f'<div class="card tile">{inner}</div>'
    return f'<a class="card tile some {target}" href="#{target}">{inner}</a>'


def _anchors(groups: list[Group]) -> dict[tuple[str, str], str]:
    """Return where on the page each check's finding on an object stands."""
    return {
        (check, name): f"finding-{number}"
        for number, group in enumerate(groups, 1)
        for check in group.ids
        for name in group.objects
    }


def _matrix(report: ReportData, anchors: Mapping[tuple[str, str], str]) -> Iterator[str]:
    if not report.probed:
        return
    yield '<h2 id="attacks">What was tried</h2>'
    yield f'<p class="soft">{_about_probe(report.probed)}</p>'
    attacks, rows, counts = attacks_of(report), matrix(report), count_outcomes(report)
    yield '<div class="bar" aria-hidden="true">'
    yield "".join(
        f'<i class="{one}" style="flex:{counts[one]}"></i>' for one in OUTCOMES if counts[one]
    )
    yield '</div><ul class="legend">'
    for one, name in OUTCOMES.items():
        mark = f'<span class="mark {one}" aria-hidden="true">{_MARKS[one]}</span>'
        yield f"<li>{mark} {name} <b>{counts[one]}</b></li>"
    yield "</ul>"
    if rows:
        yield '<div class="card matrix" tabindex="0" role="region" aria-label="Attacks"><table>'
        heads = "".join(map(_head, attacks))
        yield f'<thead><tr><th scope="col">relation</th>{heads}</tr></thead><tbody>'
        for name, outcomes in rows:
            bad = ' class="bad"' if "leaked" in outcomes.values() else ""
            cells = "".join(_cell(name, one, outcomes.get(one), anchors) for one in attacks)
            yield f'<tr><th scope="row"{bad}><code>{_breakable(name)}</code></th>{cells}</tr>'
        yield "</tbody></table></div>"
    yield "<details><summary>What each attack tries</summary><dl>"
    for one in attacks:
        yield f"<dt><code>{_text(one)}</code></dt><dd>{_text(ATTACKS.get(one, ''))}</dd>"
    yield "</dl></details>"


def _about_probe(probed: Mapping[str, Any]) -> str:
    tenants = " and ".join(f"<code>{_text(str(one))}</code>" for one in probed.get("tenants", ()))
    said = "In a transaction that was rolled back"
    said += f", as the tenants {tenants}" if tenants else ""
    said += f", in {probed['seconds']:.1f} s" if "seconds" in probed else ""
    if probed.get("control") == "caught":
        return f"{said}. A table that was left open on purpose was found to leak, as it has to be."
    return (
        f"{said}. A table that was left open on purpose was <b>not</b> found to leak: this probe "
        "proves nothing."
    )


def _head(attack: str) -> str:
    hint = f' title="{_text(ATTACKS[attack])}"' if attack in ATTACKS else ""
    return f'<th scope="col"{hint}><span>{_text(attack)}</span></th>'


def _cell(
    name: str, attack: str, outcome: str | None, anchors: Mapping[tuple[str, str], str]
) -> str:
    outcome = outcome or "not_applicable"
    label = OUTCOMES.get(outcome, outcome)
    inner = (
        f'<span aria-hidden="true">{_MARKS.get(outcome, "?")}</span>'
        f'<span class="unseen">{_text(label)}</span>'
    )
    what = f'class="mark {_text(outcome)}" title="{_text(f"{name}, {attack}: {label}")}"'
    anchor = anchors.get((f"probe-{attack}", name))
    if anchor is not None:
        return f'<td><a {what} href="#{anchor}">{inner}</a></td>'
    return f"<td><span {what}>{inner}</span></td>"


def _findings(groups: list[Group]) -> Iterator[str]:
    if not groups:
        return
    yield "<h2>What was found</h2>"
    severities: set[str] = set()
    numbers = count(1)
    for (severity, ids), found in groupby(groups, lambda one: (one.severity, one.ids)):
        anchor = "" if severity in severities else f' id="{severity}"'
        severities.add(severity)
        yield f'<article class="card finding {severity}"{anchor}><header>'
        yield f'<span class="pill">{severity}</span><h3>{_text(_title(ids))}</h3>'
        yield f'<code class="soft">{_text(", ".join(ids))}</code></header>'
        for group in found:
            yield from _group(group, f"finding-{next(numbers)}")
        yield "</article>"


def _title(ids: tuple[str, ...]) -> str:
    if ids[0].startswith("probe-"):
        return "An attack got through" if len(ids) == 1 else f"{len(ids)} attacks got through"
    return _sentence(TITLES.get(ids[0], ids[0]))


def _group(group: Group, anchor: str) -> Iterator[str]:
    yield f'<section id="{anchor}">'
    yield from _names(group.objects)
    for message in dict.fromkeys(group.messages):
        yield f"<p>{_text(_sentence(message))}</p>"
    # One click selects all of it.
    sql = "\n".join(_text(line) for one in group.remedies for line in one.splitlines())
    yield f"<pre><code>{sql}</code></pre></section>"


def _names(names: Iterable[str]) -> Iterator[str]:
    items = [f"<li><code>{_text(one)}</code></li>" for one in names]
    listed = f'<ul class="names">{"".join(items)}</ul>'
    if len(items) > _MANY:
        yield f"<details><summary>{len(items)} objects</summary>{listed}</details>"
    else:
        yield listed


def _gaps(report: ReportData) -> Iterator[str]:
    gaps = group_gaps(report)
    if not gaps:
        return
    yield '<h2 id="not-proven">What was not proven</h2><div class="card"><table class="list">'
    yield "<thead><tr><th>object</th><th>attack</th><th>why</th></tr></thead><tbody>"
    for gap in gaps:
        yield f"<tr><td>{''.join(_names(gap.objects))}</td><td>{_attacks(gap)}</td>"
        yield f"<td>{_text(_sentence(gap.reason))}</td></tr>"
    yield "</tbody></table></div>"


def _attacks(gap: Gap) -> str:
    return ", ".join(f"<code>{_text(one)}</code>" for one in gap.attacks)


def _ignored(report: ReportData) -> Iterator[str]:
    if not report.ignored:
        return
    yield '<h2 id="ignored">What was ignored</h2><div class="card"><table class="list">'
    yield "<thead><tr><th>finding</th><th>why</th></tr></thead><tbody>"
    for name, reason in report.ignored.items():
        yield f"<tr><td><code>{_text(name)}</code></td><td>{_text(reason)}</td></tr>"
    yield "</tbody></table></div>"


def _footer(report: ReportData) -> Iterator[str]:
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    how = "the catalogs and a live probe" if report.probed else "the catalogs alone"
    yield (
        f"<footer>Made on {made} from {how}. Row-level security by a setting protects from "
        "forgotten filters and from bugs; whoever can run any SQL can change the setting.</footer>"
    )


def _breakable(name: str) -> str:
    """Return a name that a narrow column may break after its schema."""
    schema, dot, rest = name.partition(".")
    return f"{_text(schema)}{dot}<wbr>{_text(rest)}" if dot else _text(name)


def _sentence(text: str) -> str:
    """Return a text with a capital letter, unless it begins with the name of a relation."""
    is_name = "." in text.partition(" ")[0]
    return text if is_name else text[:1].upper() + text[1:]


def _text(text: str) -> str:
    return escape(printable(text))
