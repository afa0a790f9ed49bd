"""Where the command writes its report, and what it says meanwhile."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from types import TracebackType

# In characters, where no terminal tells.
_WIDTH = 100
_CLEAR_LINE = "\r\x1b[2K"


class OutputFile:
    """A file that is there as a whole or not at all.

    Entering makes a file beside it, so that a folder where nothing can be written is told before
    any work; `write` puts it in its place. What is no regular file, a pipe for instance, is
    written to as it is.

    Raises:
        AppConfigError: it cannot be written.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # Through a link, so that the link stays one.
        path = Path(os.path.realpath(name))
        is_special = path.exists() and not path.is_file() and not path.is_dir()
        self._path = Path(name) if is_special else path
        self._beside = None if is_special else path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> OutputFile:
        try:
            if self._path.is_dir():
                raise IsADirectoryError(None, "it is a folder")
            if self._beside is None:
                self._path.open("a").close()
            else:
                if self._path.exists():
                    self._path.open("a").close()  # a file that its owner has locked
                self._beside.open("x").close()
        except OSError as error:
            raise self._refused(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._beside is not None:
            self._beside.unlink(missing_ok=True)

    def write(self, text: str) -> None:
        """Write all of it."""
        try:
            (self._beside or self._path).write_text(text, encoding="utf-8")
            if self._beside is not None:
                if self._path.exists():
                    shutil.copymode(self._path, self._beside)
                self._beside.replace(self._path)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> AppConfigError:
        return AppConfigError(f"cannot write {self._name!r}: {error.strerror}; name another file")


class Progress:
    """One line on the terminal that watches; nothing where none does."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_watched = stream.isatty() and os.environ.get("TERM") != "dumb"

    def say(self, text: str) -> None:
        """Replace the line."""
        if self._is_watched:
            width = shutil.get_terminal_size((_WIDTH, 24)).columns
            self._stream.write(_CLEAR_LINE + text[: width - 1])
            self._stream.flush()

    def step(self, done: int, count: int, name: str) -> None:
        """Say how far a probe is."""
        self.say(f"probing {done} of {count}: {name if name.isprintable() else ascii(name)}")

    def clear(self) -> None:
        """Leave no line behind."""
        self.say("")


def wants_colour(stream: TextIO) -> bool:
    """Say whether a stream is a terminal whose user did not ask for none (no-color.org)."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not is_plain


def width_of(stream: TextIO) -> int:
    """Return how wide lines may be, in characters."""
    return shutil.get_terminal_size((_WIDTH, 24)).columns if stream.isatty() else _WIDTH


def print_report(text: str) -> None:
    """Write to standard output, which may be closed early by its reader."""
    try:
        # Names from the database may hold what the terminal's encoding does not.
        sys.stdout.buffer.write(text.encode(sys.stdout.encoding, "backslashreplace"))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Else Python tries once more at its end, and complains.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
