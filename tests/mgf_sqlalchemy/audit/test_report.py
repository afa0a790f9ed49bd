"""What was found, as text and as a page: all of it, told once, and nothing that names can break."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from mgf_sqlalchemy.audit.sample import AUDITED, BOTH, CLEAN, INDEX, PROBED, VIEW

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.audit import Finding, NotProven, Report

NASTY = "pub.\x1b[2J<script>alert(1)</script>&\"'\u202e"


class Page(HTMLParser):
    """The elements of a page, and its text; one that is not closed, or twice, is an error."""

    VOID = frozenset({"meta", "wbr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, attribute: str) -> list[str]:
        return [str(has[attribute]) for _, has in self.elements if attribute in has]


def test_an_audit_and_a_probe_are_one_report() -> None:
    assert [one.severity for one in BOTH.findings] == [
        *("critical", "critical", "error", "warning", "warning", "info")
    ]
    assert BOTH.probed == PROBED.probed
    assert BOTH.ignored == AUDITED.ignored
    assert PROBED.merged(AUDITED) == BOTH


def test_what_both_found_is_told_once() -> None:
    assert AUDITED.merged(AUDITED) == AUDITED


def test_a_probe_settles_what_the_catalogs_could_not_tell() -> None:
    """All was tried on line, and not all on remark."""
    assert [(one.object, one.attack) for one in BOTH.not_proven] == [
        ("public.remark", "policy more"),
        ("public.remark", "own-read"),
        ("public.remark", "read"),
    ]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Report("other", "shop_app"), "'other'"),
        (Report("shop", "other"), "'other'"),
        (PROBED, "both reports"),
    ],
)
def test_what_does_not_belong_together_is_refused(other: Report, message: str) -> None:
    with pytest.raises(AppConfigError, match=message):
        PROBED.merged(other)


def test_a_probe_that_missed_its_open_table_is_not_ok() -> None:
    assert CLEAN.ok
    assert not Report("shop", "shop_app", probed={**CLEAN.probed, "control": "missed"}).ok


def test_a_report_is_the_same_after_json() -> None:
    assert json.loads(BOTH.to_json())["probed"] == BOTH.probed
    assert json.loads(BOTH.to_json())["ok"] is False


def test_the_text_says_the_same_of_many_objects_once() -> None:
    text = BOTH.render()

    assert text.count(INDEX) == 1
    assert "public.event, public.line" in text
    assert text.count(VIEW) == 2  # the audit's and the probe's


def test_the_text_says_the_verdict_last() -> None:
    assert BOTH.render().splitlines()[-2:] == [
        "not ok: 2 critical, 1 error, 2 warning, 1 info, 3 not proven, 1 ignored",
        "Tenants are not kept apart: another tenant's rows can be had.",
    ]
    assert CLEAN.render().splitlines()[-2].startswith("ok: no findings")


@pytest.mark.parametrize(
    ("severity", "words"),
    [
        ("critical", "not kept apart"),
        ("error", "under some condition"),
        ("warning", "one more mistake"),
        ("info", "Nothing was tried"),
    ],
)
def test_the_verdict_is_that_of_the_worst_finding(severity: str, words: str) -> None:
    finding = Finding("x", severity, "public.t", "m", "r")  # type: ignore[arg-type]
    assert words in Report("shop", "app", (finding,)).render()


def test_the_verdict_of_a_probe_tells_held_from_not_proven() -> None:
    assert "every attack was held off" in CLEAN.render()
    open_ = (NotProven("public.t", "read", "no rows"),)
    assert (
        "not everything could be tried"
        in CLEAN.merged(Report("shop", "shop_app", (), open_)).render()
    )


def test_the_text_counts_outcomes_and_names_leaks() -> None:
    lines = BOTH.render().splitlines()

    start = next(number for number, one in enumerate(lines) if "4 attacks" in one)
    assert [line.split() for line in lines[start + 1 : start + 7]] == [
        ["relation", "leaked", "not", "proven", "held", "not", "applicable"],
        ["public.numbers", "2", ".", "1", "1"],
        ["leaked:", "read,", "unscoped"],
        ["public.remark", ".", "2", "1", "1"],
        ["public.line", ".", ".", "3", "1"],
        ["role", "reader", ".", ".", "1", "."],
    ]


@pytest.mark.parametrize("width", [1, 60, 120])
def test_lines_are_as_wide_as_asked_for_but_for_sql(width: int) -> None:
    long = Finding("rls-off", "critical", "public.t", "word " * 60, "SELECT 1;")
    lines = Report("shop", "app", (long,)).render(width=width).splitlines()
    assert max(map(len, lines)) <= max(width, 40)


def test_colour_changes_nothing_but_colour() -> None:
    coloured = BOTH.render(colour=True)

    assert "\x1b[1;31m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == BOTH.render()


def test_the_page_has_a_cell_for_every_relation_and_attack() -> None:
    page = Page(BOTH.to_html())

    titles = [one for one in page.values("title") if ": " in one and one.startswith(("pub", "rol"))]
    assert len(titles) == 16
    assert "public.numbers, read: leaked" in titles
    assert "public.line, truncate: not applicable" in titles
    assert "public.remark, own-read: not proven" in titles
    assert "role reader, unscoped: not applicable" in titles  # was not tried


def test_a_leak_on_the_page_leads_to_its_finding() -> None:
    page = Page(BOTH.to_html())

    targets = set(page.values("id"))
    links = [one.removeprefix("#") for one in page.values("href")]
    assert len(links) >= 2
    assert set(links) <= targets
    assert len(targets) == len(page.values("id"))


def test_the_page_says_everything_that_the_report_says() -> None:
    text = Page(BOTH.to_html()).text.lower()

    for one in BOTH.findings:
        for said in (one.id, one.severity, one.object, one.message, one.remedy):
            assert said.lower() in text
    for unproven in BOTH.not_proven:
        assert unproven.attack in text
        assert unproven.reason in text
    for name, reason in BOTH.ignored.items():
        assert name in text
        assert reason in text
    for tenant in BOTH.probed["tenants"]:
        assert tenant in text


def test_the_page_loads_and_runs_nothing() -> None:
    html = BOTH.to_html()
    page = Page(html)

    assert "default-src 'none'" in html
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "img", "iframe"})
    assert page.values("src") == []
    assert "url(" not in html
    assert not re.search(r"https?:", html)


def test_no_name_breaks_out_of_the_page_or_the_text() -> None:
    finding = Finding(NASTY, "critical", NASTY, NASTY, NASTY)
    probe = {"control": NASTY, "tenants": [NASTY], "relations": {NASTY: {NASTY: NASTY}}}
    report = Report(
        NASTY, NASTY, (finding,), (NotProven(NASTY, NASTY, NASTY),), probe, {NASTY: NASTY}
    )

    html, text = report.to_html(), report.render()

    assert "<script" not in html
    assert not any(not one.isprintable() and one != "\n" for one in html + text)
    Page(html)


def test_many_objects_fold_up_on_the_page() -> None:
    many = tuple(
        Finding("rls-off", "critical", f"public.t{number}", "is open", f"ALTER TABLE t{number};")
        for number in range(50)
    )
    page = Page(Report("shop", "app", many).to_html())

    assert "50 objects" in page.text
    assert [tag for tag, _ in page.elements].count("article") == 1


def test_a_report_without_a_probe_has_no_matrix() -> None:
    page = Page(AUDITED.to_html())

    assert "What was tried" not in page.text
    assert "the catalogs alone" in page.text


def test_a_probe_that_missed_its_open_table_says_that_it_proves_nothing() -> None:
    report = Report("shop", "app", probed={"control": "missed", "relations": {}})
    assert "proves nothing" in Page(report.to_html()).text


def test_a_name_at_the_start_of_a_sentence_stays_as_it_is() -> None:
    gaps = (NotProven("public.t", "read", "public.t: 23514"), NotProven("b.t", "read", "no row"))
    text = Page(Report("shop", "app", not_proven=gaps).to_html()).text

    assert "public.t: 23514" in text
    assert "No row" in text
