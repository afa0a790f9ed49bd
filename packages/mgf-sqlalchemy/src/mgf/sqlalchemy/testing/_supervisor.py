"""Keep one PostgreSQL server for the process that started this script, and end it with that one.

Runs as ``python -I -S _supervisor.py``, on the standard library alone, so that it is up at once
whatever is installed. Standard input carries the job, one line of JSON, and stays open as the
lifeline: its end, which the operating system delivers however the parent ended, ends the server.
Standard output carries one line of JSON back.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from mgf.sqlalchemy.testing._protocol import Failed, Job, Ready

PASSWORD_FILE: Final = "mgf.password"  # noqa: S105 - the name of a file

_POLL: Final = 0.01
# A killed server's processes can hold the folder for 1-2 s, and a stopping one until its
# checkpoint is through.
_PATIENCE: Final = 2.0
_STOP_PATIENCE: Final = 10.0
_RETRY: Final = 0.2
_PORT_ATTEMPTS: Final = 10
_LOG_LINES: Final = 30
_PR_SET_PDEATHSIG: Final = 1  # <sys/prctl.h>

_NO_PORT: Final = "could not create any TCP/IP sockets"
_BUSY: Final = (
    'lock file "postmaster.pid" already exists',
    "pre-existing shared memory block",
)

# Safe for the data unless the operating system itself stops: the pages are in its cache.
_SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "logging_collector": "off",
    "log_destination": "stderr",
    "lc_messages": "C",
}
# Nothing of the parent's environment but what programs need to be loaded: the server may belong
# to another account.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TEMP", "TMP")


class _ParentGone(Exception):  # noqa: N818 - no error: there is nobody left to serve
    pass


class _Failure(Exception):  # noqa: N818 - becomes the reply
    def __init__(self, error: str, *, log: str = "", misuse: bool = False) -> None:
        super().__init__(error)
        tail = "\n".join(log.splitlines()[-_LOG_LINES:])
        self.reply: Failed = {"error": error, "log": tail, "misuse": misuse}


def supervise(job: Job, gone: threading.Event, report: Callable[[Ready | Failed], None]) -> None:
    """Start the server, report, and stop it once ``gone`` is set; nothing is left behind."""
    try:
        with contextlib.ExitStack() as stack:
            report(_Supervisor(job, gone, stack).start())
            gone.wait()
    except _ParentGone:
        pass
    except _Failure as failure:
        report(failure.reply)
    except OSError as error:
        report(_Failure(f"cannot start PostgreSQL: {error}").reply)


class _Supervisor:
    def __init__(self, job: Job, gone: threading.Event, stack: contextlib.ExitStack) -> None:
        self._job = job
        self._gone = gone
        self._stack = stack
        self._deadline = time.monotonic() + job["timeout"]
        self._work = Path(job["work"])
        self._data = Path(job["data"])
        self._bindir = Path(job["bindir"])
        self._log = self._work / "server.log"
        self._lock: int | None = None

    def start(self) -> Ready:
        self._work.mkdir(mode=0o700)
        self._stack.callback(remove, self._work)
        if self._job["account"]:
            self._work.chmod(0o711)  # to pass through: what root writes to stays its own
        self._relocate()
        with contextlib.ExitStack() as undo:
            for folder in _make_folders(self._data):
                undo.callback(_remove_if_empty, folder)
                self._give_away(folder)
            self._lock_data()
            password = self._kept_password() or self._create_cluster()
            undo.pop_all()
        port, pid = self._serve()
        return {"port": port, "password": password, "pid": pid}

    # -- folders ---------------------------------------------------------------------------

    def _give_away(self, path: Path) -> None:
        if sys.platform != "win32" and self._job["account"]:
            os.chown(path, *self._job["account"], follow_symlinks=False)

    def _relocate(self) -> None:
        for folder in map(Path, self._job["relocate"]):
            copy = self._work / folder.name
            shutil.copytree(
                folder, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a")
            )
            for path in (copy, *copy.rglob("*")):
                self._give_away(path)
            if self._bindir.is_relative_to(folder):
                self._bindir = copy / self._bindir.relative_to(folder)

    def _lock_data(self) -> None:
        """Hold the folder: of two that start in it at once, one must not undo the other's work.

        The server inherits the descriptor, so the lock lasts until its last process has ended.
        """
        if sys.platform == "win32":
            return
        import fcntl

        self._lock = os.open(self._data, os.O_RDONLY)
        self._stack.callback(os.close, self._lock)
        patience = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._pause()
                if time.monotonic() > patience:
                    raise self._in_use() from None
            else:
                return

    def _kept_password(self) -> str | None:
        """Return the password of the cluster in the data folder, None if the folder is empty."""
        if not any(self._data.iterdir()):
            return None
        made_by = self._data / "PG_VERSION"
        if not made_by.exists():
            problem = "is neither empty nor a PostgreSQL data folder"
        elif (major := made_by.read_text().strip()) != str(self._job["major"]):
            problem = (
                f"was made by PostgreSQL {major}, and the programs in {self._job['bindir']!r} are "
                f"PostgreSQL {self._job['major']}: name those of {major} with bindir="
            )
        elif not (self._data / PASSWORD_FILE).exists():
            problem = f"has no {PASSWORD_FILE!r}: it was made by something else, or not to the end"
        else:
            return (self._data / PASSWORD_FILE).read_text().strip()
        msg = f"the data folder {str(self._data)!r} {problem}, or give another folder"
        raise _Failure(msg, misuse=True)

    def _in_use(self, log: str = "") -> _Failure:
        msg = (
            f"the data folder {str(self._data)!r} is in use by a running server: stop that one, "
            "or give another folder"
        )
        return _Failure(msg, log=log)

    # -- processes -------------------------------------------------------------------------

    def _create_cluster(self) -> str:
        password = os.urandom(24).hex()
        secret = self._work / "password"
        self._write_secret(secret, password)
        with contextlib.ExitStack() as undo:
            undo.callback(_empty, self._data)
            self._give_away(self._data)
            process = self._spawn(
                "initdb",
                *("--username=postgres", f"--pwfile={secret}", "--auth=scram-sha-256"),
                *("--encoding=UTF8", *self._job["initdb"], "--no-sync"),
            )
            undo.callback(stop, process)
            self._wait(process)
            if process.returncode != 0:
                msg = f"initdb failed with exit code {process.returncode}; its output says why"
                raise _Failure(msg, log=self._read_log())
            self._write_secret(self._data / PASSWORD_FILE, password)
            undo.pop_all()
        secret.unlink()
        return password

    def _write_secret(self, path: Path, text: str) -> None:
        # Exclusive, so that root does not follow a link that the account has put there.
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
        self._give_away(path)

    def _serve(self) -> tuple[int, int]:
        """Start the server and return its port and process id, once it takes connections."""
        patience = time.monotonic() + _PATIENCE
        attempts = 0
        while True:
            port = self._job["port"] or _free_port()
            settings = _SETTINGS | {"port": str(port)} | self._job["settings"]
            options = [("-c", f"{name}={value}") for name, value in settings.items()]
            process = self._spawn("postgres", *itertools.chain(*options))
            self._stack.callback(stop, process)
            if self._wait(process, until_ready=True):
                return port, process.pid
            log = self._read_log()
            attempts += 1
            if _NO_PORT in log:
                if self._job["port"] or attempts == _PORT_ATTEMPTS:
                    msg = f"port {port} of 127.0.0.1 cannot be had: leave port= out for a free one"
                    raise _Failure(msg, log=log)
            elif not any(reason in log for reason in _BUSY):
                msg = f"PostgreSQL ended with exit code {process.returncode}; its log says why"
                raise _Failure(msg, log=log)
            elif time.monotonic() > patience:
                raise self._in_use(log)
            self._pause(_RETRY)

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        data = f"/proc/self/fd/{self._lock}" if self._job["by_descriptor"] else str(self._data)
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        uid, gid = self._job["account"] or (None, None)
        with self._log.open("wb") as log:
            return subprocess.Popen(  # noqa: S603 - the programs the parent chose
                [self._bindir / program, "-D", data, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._work,
                env=kept | {"LC_ALL": "C", "TZ": "UTC"},
                user=uid,
                group=gid,
                extra_groups=None if gid is None else [],
                pass_fds=() if self._lock is None else (self._lock,),
                preexec_fn=_end_with_this_process(),  # noqa: PLW1509 - the one other thread only reads
            )

    def _wait(self, process: subprocess.Popen[bytes], *, until_ready: bool = False) -> bool:
        """Wait for the process to end (False), or for the server to take connections (True)."""
        while process.poll() is None:
            if until_ready and self._is_ready(process):
                return True
            self._pause()
        return False

    def _is_ready(self, process: subprocess.Popen[bytes]) -> bool:
        # Written by the postmaster itself: line 1 is its process id, line 8 its state. A file
        # that an earlier server left says "ready" as well.
        with contextlib.suppress(OSError):
            lines = (self._data / "postmaster.pid").read_text().split("\n")
            mine = lines[0] == str(process.pid)
            return mine and len(lines) > 7 and lines[7].strip() in {"ready", "standby"}
        return False

    def _pause(self, seconds: float = _POLL) -> None:
        if self._gone.wait(seconds):
            raise _ParentGone
        if time.monotonic() > self._deadline:
            msg = f"PostgreSQL was not ready within {self._job['timeout']:g} s: raise start_timeout"
            raise _Failure(msg, log=self._read_log())

    def _read_log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def _end_with_this_process() -> Callable[[], None] | None:
    """Have Linux end a child at once should the supervisor itself be killed."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl, supervisor = ctypes.CDLL(None).prctl, os.getpid()

    def in_child() -> None:  # pragma: no cover - runs between fork and exec
        prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
        if os.getppid() != supervisor:
            os._exit(1)

    return in_child


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server or initdb: in good order if it listens, by force if it does not."""
    ways = ("SIGINT", "SIGQUIT", "SIGKILL") if sys.platform != "win32" else ("SIGTERM",)
    for way in ways:
        if process.poll() is None:
            process.send_signal(signal.Signals[way])
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_PATIENCE)


def remove(folder: Path) -> None:
    """Delete a folder, also one that the last processes of a killed server still write to."""
    patience = time.monotonic() + _PATIENCE
    shutil.rmtree(folder, ignore_errors=True)
    while folder.exists() and time.monotonic() < patience:
        time.sleep(_POLL)
        shutil.rmtree(folder, ignore_errors=True)


def _make_folders(path: Path) -> list[Path]:
    """Make what is missing of a path, and return what was made, from the top."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    return missing[::-1]


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            remove(entry)
        else:
            entry.unlink()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def main(lifeline: IO[bytes], output: IO[bytes]) -> None:
    """Take the job from ``lifeline``, report to ``output``, and end when ``lifeline`` does."""
    job: Job = json.loads(lifeline.readline())
    gone = threading.Event()

    def watch() -> None:
        lifeline.read()
        gone.set()

    def report(reply: Ready | Failed) -> None:
        with contextlib.suppress(OSError):  # the parent may have ended meanwhile
            output.write(json.dumps(reply).encode() + b"\n")

    threading.Thread(target=watch, daemon=True).start()
    supervise(job, gone, report)


def _ignore(number: int, frame: FrameType | None) -> None:  # pragma: no cover
    """Leave a signal to a whole group or session to the parent, which answers it."""


if __name__ == "__main__":  # pragma: no cover - a process of its own
    signal.signal(signal.SIGINT, _ignore)
    signal.signal(signal.SIGTERM, _ignore)
    with open(0, "rb", buffering=0) as lifeline, open(1, "wb", buffering=0) as output:
        main(lifeline, output)
