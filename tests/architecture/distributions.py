"""Reading wheels and sdists."""

from __future__ import annotations

import tarfile
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from email.message import Message
    from pathlib import Path

    from architecture.workspace import Package


@dataclass(frozen=True)
class Distributions:
    """A folder with the wheels and sdists of packages."""

    folder: Path

    def wheel(self, package: Package) -> Path:
        return self._only(package, "-py3-none-any.whl")

    def sdist(self, package: Package) -> Path:
        return self._only(package, ".tar.gz")

    def requirement(self, package: Package, *extras: str) -> str:
        """Name the wheel's file as a requirement, with extras."""
        return f"{package.name}[{','.join(extras)}] @ {self.wheel(package).as_uri()}"

    def _only(self, package: Package, ending: str) -> Path:
        (found,) = self.folder.glob(f"{package.name.replace('-', '_')}-*{ending}")
        return found


def wheel_contents(wheel: Path) -> dict[str, bytes]:
    """Return the wheel's files without its metadata folder."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: archive.read(name)
            for name in archive.namelist()
            if not name.endswith("/") and ".dist-info/" not in name
        }


def wheel_metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def licence_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {
            name.split(".dist-info/licenses/")[1]: archive.read(name)
            for name in archive.namelist()
            if ".dist-info/licenses/" in name and not name.endswith("/")
        }


def sdist_files(sdist: Path) -> set[str]:
    """List the sdist's files, without the folder that holds them all."""
    with tarfile.open(sdist) as archive:
        return {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
