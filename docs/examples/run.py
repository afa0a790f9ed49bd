"""Take the tour of the example application, on a machine that has only Python and pip.

    python3 docs/examples/run.py            take the tour
    python3 docs/examples/run.py --serve    and keep the service running afterwards

uv installs what the tour needs into the folder .venv of this repository. A machine without uv gets
one in the folder .uv beside it. Nothing else is changed.
"""
# No `from __future__ import annotations` here: Python 3.6 would report that, and not its own age.

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

# For those who run an older one; the code below is read, but not run, by 3.6 and newer.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        "The example needs Python 3.11 or newer, and this is {}.{}, {}.\n"
        "Start it with a newer one: python3.13 docs/examples/run.py".format(
            *sys.version_info[:2], sys.executable
        )
    )

ROOT = Path(__file__).resolve().parents[2]
TOUR = ROOT / "docs" / "examples" / "tour" / "tour.py"
SERVICE = ROOT / "docs" / "examples" / "invoices"
PRIVATE = ROOT / ".uv"
PROGRAMS = PRIVATE / ("Scripts" if os.name == "nt" else "bin")
# The first one that reads this repository's uv.lock as it was written.
OLDEST_UV = (0, 13)


def main(arguments: list[str]) -> int:
    uv = find_uv(os.environ.get("PATH")) or find_uv(str(PROGRAMS)) or install_uv()
    command = [
        *(uv, "run", "--project", str(ROOT), "--locked", "--no-default-groups", "--group", "demo"),
        *("--python", sys.executable, "python", str(TOUR), *arguments),
    ]
    # Trust the certificates that this machine trusts, as pip does.
    environment = {"UV_SYSTEM_CERTS": "1", **os.environ, "PYTHONPATH": str(SERVICE)}
    # An environment that the caller has activated is not the one to install into.
    environment.pop("VIRTUAL_ENV", None)
    if os.name != "nt":
        os.execve(uv, command, environment)
    # On Windows execve returns to the shell at once. Ctrl-C reaches the tour, which ends by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return subprocess.run(command, env=environment, check=False).returncode


def find_uv(path: str | None) -> str | None:
    """Return the uv in these folders, if it is there and not too old."""
    uv = shutil.which("uv", path=path)
    if uv is None:
        return None
    try:
        answer = subprocess.run([uv, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    version = re.match(r"uv (\d+)\.(\d+)", answer.stdout)
    if version is None or (int(version[1]), int(version[2])) < OLDEST_UV:
        return None
    return uv


def install_uv() -> str:
    """Install uv into a virtual environment of its own and return its path."""
    print(f"There is no uv 0.13 or newer on PATH: installing one into {PRIVATE}", flush=True)
    environment = [sys.executable, "-m", "venv", "--clear"]
    if importlib.util.find_spec("pip"):
        # Some systems ship venv without the pip to put into it; the one that is here will do.
        commands = [
            [*environment, "--without-pip", str(PRIVATE)],
            [sys.executable, "-m", "pip", "--python", str(PROGRAMS / "python")],
        ]
    else:
        commands = [[*environment, str(PRIVATE)], [str(PROGRAMS / "python"), "-m", "pip"]]
    commands[1] += ["install", "--quiet", "--disable-pip-version-check", "uv>=0.13,<0.14"]
    for command in commands:
        # pip may be set up to install for the user, which an environment does not allow.
        if subprocess.run(command, env={**os.environ, "PIP_USER": "0"}, check=False).returncode:
            sys.exit(
                "uv could not be installed, see above. Install uv 0.13 yourself "
                "(https://docs.astral.sh/uv/), and run this again."
            )
    uv = find_uv(str(PROGRAMS))
    if uv is None:
        sys.exit(f"The uv that was installed into {PRIVATE} does not run here.")
    return uv


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
