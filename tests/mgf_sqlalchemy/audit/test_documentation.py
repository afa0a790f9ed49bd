"""docs/how-to/audit.md names every check and every attack, and says of them what the code says.

That each finding has a severity that the page names is seen to wherever a test audits.
"""

from __future__ import annotations

from mgf_sqlalchemy.audit import documented
from mgf_sqlalchemy.audit.sample import BOTH

from mgf.sqlalchemy.audit._outcomes import ATTACKS, OUTCOMES
from mgf.sqlalchemy.audit._titles import TITLES


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def test_every_check_stands_on_the_page_as_in_the_code() -> None:
    assert {id_: capitalised(title) for id_, title in TITLES.items()} == documented.TITLES


def test_every_attack_stands_on_the_page_as_in_the_code() -> None:
    assert dict(ATTACKS) == documented.ATTACKS


def test_every_outcome_stands_on_the_page() -> None:
    assert all(f"`{one}`" in documented.PAGE for one in OUTCOMES)


def test_every_key_of_the_json_stands_on_the_page() -> None:
    assert set(BOTH.to_dict()) == documented.JSON_KEYS
