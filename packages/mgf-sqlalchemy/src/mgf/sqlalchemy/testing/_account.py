"""Choose the account that PostgreSQL runs as: it refuses to run as root."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Account", "server_account"]

_CANDIDATES: Final = ("postgres", "nobody")


class Account(NamedTuple):
    """An account that root drops to."""

    uid: int
    gid: int

    def reaches(self, path: Path) -> bool:
        """Tell whether the mode bits let this account through to ``path``, and into it."""
        path = path.resolve()
        return all(self._may_enter(step.stat()) for step in (path, *path.parents))

    def _may_enter(self, status: os.stat_result) -> bool:
        if status.st_uid == self.uid:
            return bool(status.st_mode & 0o100)
        return bool(status.st_mode & (0o010 if status.st_gid == self.gid else 0o001))


def server_account(data_dir: Path | None) -> Account | None:
    """Return the account to drop to, or None to stay with the current user.

    Root drops to the owner of an existing data folder, else to ``postgres``, else to ``nobody``.

    Raises:
        AppConfigError: The current user is root, and there is no such account.
    """
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    if data_dir is not None and (data_dir / "PG_VERSION").exists():
        owner = data_dir.stat()
        if owner.st_uid != 0:
            return Account(owner.st_uid, owner.st_gid)
    import pwd  # not on Windows

    for name in _CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    msg = (
        f"PostgreSQL does not run as root, and none of the accounts {_CANDIDATES} exists: "
        "create one of them, or run as an ordinary user"
    )
    raise AppConfigError(msg)
