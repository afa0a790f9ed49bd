"""A hot standby of a server: a base backup that goes on reading its primary's log."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mgf.sqlalchemy.testing import TemporaryPostgres
from mgf.sqlalchemy.testing._binaries import find_binaries

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    import sqlalchemy as sa

    from harness.servers import Bindir

# Seconds; a machine under load replays late.
_PATIENCE = 60.0


def pg_basebackup(bindir: Bindir) -> str | None:
    """Return the program that copies a running server, None where it is not installed."""
    return shutil.which("pg_basebackup", path=find_binaries(bindir).folder)


@contextmanager
def standby_of(
    primary: TemporaryPostgres, bindir: Bindir, program: str, folder: Path
) -> Generator[TemporaryPostgres]:
    """Copy a server into a folder, and start the copy as its standby."""
    url = primary.url
    subprocess.run(
        [
            program,
            *("--host", str(url.host), "--port", str(url.port), "--username", str(url.username)),
            *("--pgdata", str(folder), "--write-recovery-conf", "--checkpoint", "fast"),
            "--no-sync",
        ],
        env={**os.environ, "PGPASSWORD": str(url.password)},
        check=True,
    )
    # Root makes the copy its own, and PostgreSQL does not run as root.
    owner = primary.data_dir.stat()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    with TemporaryPostgres(data_dir=folder, bindir=bindir) as standby:
        yield standby


def catch_up(primary: sa.Connection, standby: sa.Connection) -> None:
    """Return when the standby shows all that was committed on its primary."""
    there = primary.exec_driver_sql("SELECT pg_current_wal_flush_lsn()").scalar_one()
    primary.rollback()
    patience = time.monotonic() + _PATIENCE
    replayed = f"SELECT pg_last_wal_replay_lsn() >= '{there}'"
    while not standby.exec_driver_sql(replayed).scalar():
        standby.rollback()
        assert time.monotonic() < patience, f"the standby did not reach {there}"
        time.sleep(0.01)
    standby.rollback()
