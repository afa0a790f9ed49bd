"""How far a run is: one line on the terminal that watches it, else lines in the log."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Sequence
    from contextlib import AbstractContextManager

logger = logging.getLogger("mgf.alembic")

# Seconds between two looks at the clock. A run that is over by the first leaves no line.
_TICK = 1.0


class Progress:
    """Counts the steps of a run, over all of its tries.

    Attributes:
        heads: the revisions of the database after the last step, or None before the first.
    """

    def __init__(self) -> None:
        self.heads: Collection[str] | None = None
        self._steps: Sequence[str] = ()
        self._done = 0
        self._started = time.monotonic()
        self._show: _Show = _Log(self._describe)

    @contextmanager
    def over(self, steps: Sequence[str]) -> Generator[None]:
        """Show the progress over the steps that are left to do."""
        if not steps:
            yield
            return
        self._steps = self._steps or steps
        self._done = len(self._steps) - len(steps)
        self._show = _Line(sys.stderr, self._describe) if _is_watched() else _Log(self._describe)
        with self._show.running():
            yield

    def is_continued_by(self, steps: Sequence[str]) -> bool:
        """Say whether these steps are what was left to do, and not a longer way."""
        return list(steps) == list(self._steps[len(self._steps) - len(steps) :])

    def end_step(self, heads: Collection[str], **_: Any) -> None:
        self.heads = heads
        self._done += 1
        self._show.end_step()

    def _describe(self) -> str:
        seconds = time.monotonic() - self._started
        done, count = self._done, len(self._steps)  # another thread asks
        if done == count:
            return f"all {count} steps done, {seconds:.1f} s"
        return f"step {done + 1} of {count}, {seconds:.1f} s: {self._steps[done]}"


class _Show(Protocol):
    def running(self) -> AbstractContextManager[None]: ...

    def end_step(self) -> None: ...


class _Log:
    """A line when a step begins, and one at the end."""

    def __init__(self, describe: Callable[[], str]) -> None:
        self._describe = describe

    @contextmanager
    def running(self) -> Generator[None]:
        logger.info("%s", self._describe())
        yield

    def end_step(self) -> None:
        logger.info("%s", self._describe())


class _Line:
    """A line that is written anew every second, by a thread, since a driver may block this one."""

    def __init__(self, terminal: TextIO, describe: Callable[[], str]) -> None:
        self._terminal = terminal
        self._describe = describe
        self._ended = threading.Event()
        self._width = 0
        self._was_long = False

    @contextmanager
    def running(self) -> Generator[None]:
        thread = threading.Thread(target=self._tick, name="mgf-alembic progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            if self._was_long:
                self._write(self._describe(), end="\n")

    def end_step(self) -> None:
        """Make place for what others log between two steps."""
        if self._width:
            self._write("", end="\r")

    def _tick(self) -> None:
        while not self._ended.wait(_TICK):
            self._was_long = True
            self._write(self._describe())

    def _write(self, line: str, end: str = "") -> None:
        line = line[: _columns(self._terminal) - 1]
        # Blanks over the rest of the last one: escape sequences are not known everywhere.
        blanks = " " * (self._width - len(line))
        self._width = len(line)
        with suppress(OSError, ValueError):  # a terminal that is gone stops no migration
            self._terminal.write(f"\r{line}{blanks}{end}")
            self._terminal.flush()


def _is_watched() -> bool:
    # There is no stderr under pythonw, and a closed one has no isatty().
    stream = sys.stderr
    return stream is not None and not stream.closed and stream.isatty()


def _columns(terminal: TextIO) -> int:
    try:
        return os.get_terminal_size(terminal.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
