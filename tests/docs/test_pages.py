"""Every block of code in the documentation runs, and every link within it leads somewhere."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING

import pytest
from architecture.workspace import ROOT, tracked_files
from docs.checkout import command_environment, copy_checkout
from docs.pages import Block, Page, read_blocks

from harness.servers import new_database, run_sql
from harness.tenants import APP_PASSWORD, SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import URL

# Read in a checkout, and their commands are about it; the others are read anywhere.
IN_A_CHECKOUT = {"README.md", "docs/how-to/contribute.md"}
PAGES = sorted(
    name
    for name in tracked_files(ROOT)
    if name.endswith(".md") and re.match(r"README|docs/|packages/[^/]+/README", name)
)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


@pytest.fixture
def page(postgres_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    owner = asyncio.run(prepare_database(postgres_url))
    urls = {
        "OWNER_DATABASE_URL": owner,
        "DATABASE_URL": owner.set(username="app", password=APP_PASSWORD),
    }
    for name, url in urls.items():
        monkeypatch.setenv(name, url.render_as_string(hide_password=False))
    monkeypatch.setenv("CHECKOUT", str(ROOT))
    folder = tmp_path / "page"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    modules = set(sys.modules)
    with asyncio.Runner() as runner:
        yield Page(folder, owner, command_environment(), runner)
    for name in set(sys.modules) - modules:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


async def prepare_database(server: URL) -> URL:
    owner = await new_database(server)
    # The first statement makes the role "app".
    await run_sql(owner, SCHEMA[0], "GRANT CREATE ON SCHEMA public TO app")
    return owner


@pytest.mark.parametrize("name", PAGES)
def test_every_block_of_the_page_runs(page: Page, name: str) -> None:
    if name in IN_A_CHECKOUT:
        copy_checkout(page.folder)
    for block in read_blocks(ROOT / name):
        page.run(block)


@pytest.mark.parametrize("name", PAGES)
def test_every_link_of_the_page_leads_somewhere(name: str) -> None:
    folder = (ROOT / name).parent
    targets = LINK.findall((ROOT / name).read_text())

    assert [target for target in targets if not (folder / target).exists()] == []


def test_a_block_that_can_not_be_run_is_an_error(page: Page) -> None:
    with pytest.raises(AssertionError, match="neither run nor checked"):
        page.run(Block("yaml", "a: 1\n", "page.md:1"))


@pytest.mark.parametrize(
    "text", ["```python\nassert False\n", "~~~\n1\n~~~\n", "> ```\n> 1\n> ```"]
)
def test_a_block_that_is_not_recognised_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(AssertionError, match="not closed"):
        list(read_blocks(tmp_path / "page.md"))


def test_other_output_than_the_page_shows_is_an_error(page: Page) -> None:
    page.run(Block("python", "print('one')\nprint('two')\n", "page.md:1"))
    page.run(Block("text", "one\n...\n", "page.md:5"))
    with pytest.raises(AssertionError, match="no block before it printed"):
        page.run(Block("text", "one\n", "page.md:9"))
    page.run(Block("bash", "echo one\n", "page.md:12"))
    with pytest.raises(AssertionError, match="but got"):
        page.run(Block("text", "two\n", "page.md:16"))


def test_a_command_that_fails_is_an_error(page: Page) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:1: 3"):
        page.run(Block("bash", "(exit 3) | cat\n", "page.md:1"))


ASK = """
import asyncpg, os
connection = await asyncpg.connect(os.environ[{variable!r}])
print(await connection.fetchval("SELECT row_security_active('held')"))
await connection.close()
"""


@pytest.mark.parametrize(
    ("variable", "held"), [("DATABASE_URL", "True\n"), ("OWNER_DATABASE_URL", "False\n")]
)
def test_policies_hold_the_role_of_the_pages_but_not_their_owner(
    page: Page, variable: str, held: str
) -> None:
    page.run(Block("sql", "CREATE TABLE held (); ALTER TABLE held ENABLE ROW LEVEL SECURITY", "1"))
    page.run(Block("python", ASK.format(variable=variable), "2"))
    assert page.printed == held
