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
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("tenant_scope is") == 2
    assert chart.read_text().count("<rect") == 1 + 2 * 4


def test_the_load_command_finds_nothing_wrong_under_faults() -> None:
    run = subprocess.run(
        [
            *(sys.executable, ROOT / "tests/benchmarks/serve.py"),
            *("--clients", "200", "--requests", "400", "--seconds", "60"),
            *("--turns", "1", "--per-turn", "20"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, (run.stdout, run.stderr)
    assert "faults {'" in run.stdout
    assert "foreign 0, unseen 0, lost 0, uncalled_for 0, checked out 0" in run.stdout
