"""Run the fenced blocks of a documentation page, in order, as a reader would.

By the word behind its fence, a block
python  runs; all of a page share one namespace, and may await.
bash    runs in the page's folder. A line that ends in ``# until Ctrl-C`` is stopped once its
        program has said so too, and has to end well. What CHECKED lists is not run but checked.
sql     runs as superuser.
text    is what the block before it printed; ``...`` stands for anything.

A block whose first line is a comment with a path (``# app/models.py``) is written there, whatever
its language. Any other block is an error: nothing stands on a page unproven. A block in an HTML
comment is run too, which serves for what a reader need not see.

DATABASE_URL connects as the role "app", no superuser, which may create tables; OWNER_DATABASE_URL
as a superuser. The page has that database to itself. CHECKOUT is the folder of this repository.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import inspect
import io
import os
import re
import shlex
import signal
import subprocess
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from architecture.workspace import ROOT

from harness.servers import run_sql

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from sqlalchemy import URL

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*).*?\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_ANY_FENCE = re.compile(r"^[\s>*-]*(?:```|~~~)", re.MULTILINE)
_FILE = re.compile(r"# (?P<path>[\w./-]+\.\w+)\n")
# What differs from run to run: ports, versions, seconds.
_VARYING = re.compile(r"(?<=127\.0\.0\.1:)\d+|(?<=PostgreSQL )[\d.]+|\d+(\.\d+)?(?=s\b)")
_SAYS_CTRL_C = re.compile("ctrl.c", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    place: str


def read_blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    blocks = list(_FENCE.finditer(text))
    assert len(_ANY_FENCE.findall(text)) == 2 * len(blocks), f"{page.name}: a fence is not closed"
    for match in blocks:
        line = text.count("\n", 0, match.start()) + 1
        yield Block(match["language"], textwrap.dedent(match["code"]), f"{page.name}:{line}")


@dataclass
class Page:
    """What the blocks of one page share.

    Args:
        folder: where they run; also on `sys.path`.
        owner: the URL of their database, as superuser.
        environment: of their commands.
        runner: the event loop of their Python.
    """

    folder: Path
    owner: URL
    environment: Mapping[str, str]
    runner: asyncio.Runner
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    printed: str | None = None

    def run(self, block: Block) -> None:
        """Run one block, or fail with an error that names it."""
        if written := _FILE.match(block.code):
            path = self.folder / written["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)
            return
        kinds: dict[str, Callable[[Block], str | None]] = {
            "python": self._run_python,
            "bash": self._run_bash,
            "sql": self._run_sql,
            "text": self._compare,
        }
        assert block.language in kinds, (
            f"{block.place}: a block of {block.language!r} is neither run nor checked; "
            f"use one of {sorted(kinds)}, or begin it with the comment '# path/to/file'"
        )
        self.printed = kinds[block.language](block)

    def _run_python(self, block: Block) -> str:
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(block.code, block.place, "exec", flags, dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            result = eval(code, self.namespace)
            if inspect.iscoroutine(result):
                self.runner.run(result)
        return printed.getvalue()

    def _run_sql(self, block: Block) -> None:
        self.runner.run(run_sql(self.owner, block.code))

    def _run_bash(self, block: Block) -> str:
        printed, script = "", []
        for line in block.code.splitlines():
            command = line.partition("  #")[0].strip()
            if line.endswith("# until Ctrl-C"):
                printed += self._run_until_ctrl_c(command, block.place)
            elif not is_checked(command):
                script.append(line)
        if script:
            printed += self._execute("\n".join(script), block.place)
        return printed

    def _execute(self, script: str, place: str) -> str:
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, f"{place}: {result.returncode}\n{result}"
        return result.stdout

    def _run_until_ctrl_c(self, command: str, place: str) -> str:
        with subprocess.Popen(
            shlex.split(command),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            printed = ""
            while not _SAYS_CTRL_C.search(printed) and (line := process.stdout.readline()):
                printed += line
            os.killpg(process.pid, signal.SIGINT)
            printed += process.stdout.read()
        assert process.returncode == 0, f"{place}: {process.returncode}\n{printed}"
        return printed

    def _compare(self, block: Block) -> None:
        assert self.printed is not None, f"{block.place}: no block before it printed anything"
        expected, printed = (_VARYING.sub("N", text) for text in (block.code, self.printed))
        same = doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS)
        assert same, f"{block.place}: expected\n{expected}\nbut got\n{printed}"


def is_checked(command: str) -> bool:
    """Check a command that is not run here, and say whether it is one."""
    check = next((CHECKED[one] for one in CHECKED if re.fullmatch(one, command)), None)
    if check is not None:
        check(command)
    return check is not None


def _check_ci(command: str) -> None:
    assert command in (ROOT / ".ci/run").read_text().replace("--no-sync ", ""), command


def _check_paths(command: str) -> None:
    for path in re.findall(r"\S+/\S+", command):
        assert (ROOT / path).exists(), f"{command}: there is no {path}"


CHECKED: dict[str, Callable[[str], None]] = {
    # This suite itself, of which a part would be no other proof than the whole.
    r"uv run pytest --no-cov .*": _check_paths,
    r"\.ci/run": _check_paths,
    # Minutes long; test_benchmarks.py runs it small.
    r"uv run python tests/benchmarks/.*": _check_paths,
    # .ci/run runs them; again, in the copy of the checkout, they would take minutes.
    r"uv run .*|uv sync|uv lock": _check_ci,
    # Fetches a tool that is no part of the locked environment.
    r"uvx pre-commit install": lambda _: _check_paths("./.pre-commit-config.yaml"),
}
