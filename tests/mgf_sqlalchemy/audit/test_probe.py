"""The live probe finds what leaks, and nothing in a schema in which nothing is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgf.sqlalchemy import create_engine
from mgf.sqlalchemy.audit import probe, probe_connection

if TYPE_CHECKING:
    from mgf_sqlalchemy.audit.correct import Correct


def test_nothing_leaks_where_nothing_is_wrong(correct: Correct) -> None:
    report = probe_connection(correct.database.owner, role=correct.role, metadata=correct.metadata)

    assert report.findings == ()
    assert report.not_proven == ()
    assert report.probed["control"] == "caught"


async def test_an_engine_is_probed(correct: Correct) -> None:
    engine = create_engine(correct.database.url)
    seen: list[tuple[int, int, str]] = []

    try:
        report = await probe(engine, role=correct.role, progress=lambda *one: seen.append(one))
    finally:
        await engine.dispose()

    assert (report.findings, report.not_proven) == ((), ())
    assert [one for _, _, one in seen] == list(report.probed["relations"])
