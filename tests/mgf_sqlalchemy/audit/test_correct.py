"""A schema in which nothing is wrong gives no finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mgf_sqlalchemy.audit.correct import Correct


def test_with_its_metadata_nothing_is_found(correct: Correct) -> None:
    assert correct.ids(metadata=correct.metadata) == set()


def test_without_metadata_nothing_is_found(correct: Correct) -> None:
    correct.change("DROP TABLE remark")

    assert correct.ids() == set()
