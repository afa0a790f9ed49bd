"""The parent's side of the supervisor: start it, hold its lifeline, let it go."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from mgf.common.exceptions import AppConfigError, OperationError
from mgf.sqlalchemy.testing import _supervisor

if TYPE_CHECKING:
    from mgf.sqlalchemy.testing._protocol import Failed, Job, Ready

__all__ = ["SupervisedServer"]

_ORPHAN_PATIENCE: Final = 10.0


class SupervisedServer:
    """A running server and the process that keeps it.

    Args:
        job: What to start.

    Raises:
        AppConfigError: The data folder is not one to start a server in.
        OperationError: The server did not start. No process and no folder is left behind.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ready: Ready | None = None
        self._process = subprocess.Popen(  # noqa: S603 - this package's own script
            [sys.executable, "-I", "-S", _supervisor.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,  # a forked child must not flush anything into the lifeline
            cwd=Path(job["work"]).parent,
            start_new_session=True,  # Ctrl-C in the terminal is for the parent
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # on Windows
        )
        _running.add(self)
        try:
            self._ready = self._hand_over()
        except BaseException:
            self.end()
            raise
        self.port, self.password = self._ready["port"], self._ready["password"]

    @property
    def data_dir(self) -> Path:
        return Path(self._job["data"])

    @property
    def log(self) -> str:
        try:
            return Path(self._job["work"], "server.log").read_text(errors="replace")
        except OSError:  # the folder is gone, of a server that was ended by others
            return ""

    def end(self) -> None:
        """Stop the server, and return when it has ended and its temporary folder is gone."""
        _running.discard(self)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        if self._process.wait() != 0:
            self._clear_up()

    def _hand_over(self) -> Ready:
        lifeline, answer = self._process.stdin, self._process.stdout
        assert lifeline is not None  # noqa: S101 - narrows the types: both are pipes
        assert answer is not None  # noqa: S101
        with contextlib.suppress(BrokenPipeError):  # it ended already; its output says why
            lifeline.write(json.dumps(self._job).encode() + b"\n")
        line = answer.readline()
        try:
            reply = cast("Ready | Failed", json.loads(line))
        except ValueError:
            output = (line + answer.read()).decode(errors="replace").strip()
            msg = f"the process that keeps PostgreSQL ended before the server was ready: {output}"
            raise OperationError(msg) from None
        if "error" not in reply:
            return reply
        kind = AppConfigError if reply["misuse"] else OperationError
        raise kind("\n".join(filter(None, (reply["error"], reply["log"]))))

    def _clear_up(self) -> None:
        """Do what a supervisor that was killed could not: end the server, delete its folder."""
        patience = time.monotonic() + _ORPHAN_PATIENCE
        while self._orphan_runs() and time.monotonic() < patience:
            time.sleep(0.01)
        _supervisor.remove(Path(self._job["work"]))

    def _orphan_runs(self) -> bool:
        try:
            pid = int(Path(self._job["data"], "postmaster.pid").read_text().split("\n")[0])
            if self._ready is None or pid != self._ready["pid"]:
                return False  # another server's, in a kept folder
            # Linux has done so already, see the supervisor.
            os.kill(pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGQUIT)
        except (OSError, ValueError):
            return False
        return True


_running: weakref.WeakSet[SupervisedServer] = weakref.WeakSet()


def _let_go() -> None:
    """Close the lifelines in a forked child, so that they end when the parent does.

    The supervisors are not its children: there is nothing for it to wait for.
    """
    for server in list(_running):
        server.end()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_go)
