"""A package under `packages/` that some tool does not know of is noticed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from architecture.registration import PLACES, missing_places
from architecture.workspace import ROOT, copy_sources

if TYPE_CHECKING:
    from pathlib import Path

CONTRIBUTE = ROOT / "docs/how-to/contribute.md"


def test_every_package_is_named_in_every_place() -> None:
    assert missing_places(ROOT) == {}


def test_a_fifth_package_is_missed_in_every_place(tmp_path: Path) -> None:
    copy = copy_sources(tmp_path)
    fifth = copy / "packages/mgf-fifth"
    fifth.mkdir()
    (fifth / "pyproject.toml").write_text(
        '[project]\nname = "mgf-fifth"\nversion = "0.1.0"\ndependencies = ["mgf-common"]\n'
    )

    assert missing_places(copy)["mgf-fifth"] == set(PLACES)


@pytest.mark.parametrize("place", PLACES)
def test_the_how_to_lists_every_place(place: str) -> None:
    assert f"| {place} |" in CONTRIBUTE.read_text()
