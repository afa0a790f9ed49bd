"""Where commands of the documentation run: a copy of this checkout, and the programs they find."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from architecture.workspace import ROOT, clean_environment, tracked_files


def copy_checkout(folder: Path) -> None:
    """Copy what git would list, and with it no environment."""
    for name in tracked_files(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)


def command_environment() -> dict[str, str]:
    """Let commands find this environment's programs and the uv that runs the suite, or is on PATH.

    A pip that is not in a virtual environment refuses to install anything.
    """
    programs = [sys.executable, os.environ.get("UV") or shutil.which("uv")]
    folders = [str(Path(program).parent) for program in programs if program]
    path = os.pathsep.join([*folders, os.environ["PATH"]])
    return clean_environment(PATH=path, PIP_REQUIRE_VIRTUALENV="1")
