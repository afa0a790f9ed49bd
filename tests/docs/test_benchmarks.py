"""The commands behind the figures in docs/explanation/cost.md."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from architecture.workspace import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_the_benchmark_measures_every_way_and_draws_a_chart(tmp_path: Path) -> None:
    chart = tmp_path / "chart.svg"
    run = subprocess.run(
        [
            *(sys.executable, ROOT / "tests/benchmarks/scope.py"),
            *("--rounds", "2", "--units", "2", "--chart", chart),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("tenant_scope is") == 2
    assert chart.read_text().count("<rect") == 1 + 2 * 5
