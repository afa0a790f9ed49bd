"""Real processes for the tests of TemporaryPostgres: one that holds a server, and how it ends."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from sqlalchemy.engine import make_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL

HOLD = """
import json, os, signal, sys, time
from mgf.sqlalchemy.testing import TemporaryPostgres

server = TemporaryPostgres(**json.loads(sys.argv[1]))
server.start()
state = {
    "url": server.url.render_as_string(hide_password=False),
    "data": str(server.data_dir),
    "supervisor": server._server._process.pid,
}
print(json.dumps(state), flush=True)
"""


class Holder(NamedTuple):
    """A Python that runs, or ran, a server of its own."""

    process: subprocess.Popen[str]
    url: URL
    data: Path
    postmaster: int
    supervisor: int

    def go(self) -> None:
        """Let it do what it was told to do then."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    @property
    def has_ended(self) -> bool:
        return not alive(self.postmaster) and not alive(self.supervisor)


@contextlib.contextmanager
def holder(then: str = "time.sleep(60)", **arguments: Any) -> Iterator[Holder]:
    """Run a Python that starts a server, tells it, waits for a line and does what ``then`` says."""
    code = f"{HOLD}\nsys.stdin.readline()\n{then}\n"
    with subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        state = json.loads(line)
        data = Path(state["data"])
        yield Holder(
            process, make_url(state["url"]), data, postmaster_pid(data), state["supervisor"]
        )
        process.kill()


def postmaster_pid(data: Path) -> int:
    return int((data / "postmaster.pid").read_text().split("\n")[0])


def alive(pid: int) -> bool:
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return state != "" and not state.startswith("Z")


def eventually(condition: Callable[[], bool], *, within: float = 15.0) -> bool:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def ask(url: URL | str, statement: str) -> Any:
    """Return the first column of the first row, through a connection of its own."""
    conninfo = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None
