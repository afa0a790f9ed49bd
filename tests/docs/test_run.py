"""`docs/examples/run.py`: the one command of a machine that has only Python and pip."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from architecture.workspace import ROOT, clean_environment
from docs.checkout import command_environment, copy_checkout

RUN = ROOT / "docs/examples/run.py"
BASE_PYTHON = Path(sys.base_prefix, "bin", "python3")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout, as git would list it: without any environment."""
    folder = tmp_path / "checkout"
    copy_checkout(folder)
    return folder


def run_without_uv(
    checkout: Path, *arguments: str, python: Path = BASE_PYTHON
) -> subprocess.CompletedProcess[str]:
    """Run the copy's run.py with a PATH on which there is nothing at all."""
    nowhere = checkout / "nowhere"
    nowhere.mkdir(exist_ok=True)
    return subprocess.run(
        [python, checkout / "docs/examples/run.py", *arguments],
        cwd=nowhere,
        env=clean_environment(PATH=str(nowhere)),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_machine_without_uv_gets_one_of_its_own(checkout: Path) -> None:
    result = run_without_uv(checkout)

    assert result.returncode == 0, result
    assert result.stdout.startswith("There is no uv 0.13 or newer on PATH")
    assert result.stdout.endswith("\nNothing leaked.\n")
    assert (checkout / ".uv/bin/uv").exists()


def test_a_python_without_pip_gets_uv_too_and_keeps_it(checkout: Path) -> None:
    bare = checkout / "bare"
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", bare], check=True)

    first = run_without_uv(checkout, "--help", python=bare / "bin/python")
    second = run_without_uv(checkout, "--help", python=bare / "bin/python")

    assert (first.returncode, second.returncode) == (0, 0), (first, second)
    assert first.stdout.startswith("There is no uv 0.13 or newer on PATH")
    assert second.stdout.startswith("usage: run.py")


def test_the_exit_code_of_the_tour_is_passed_on(checkout: Path) -> None:
    result = subprocess.run(
        [sys.executable, checkout / "docs/examples/run.py", "--nonsense"],
        env=command_environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 2
    assert "unrecognized arguments: --nonsense" in result.stderr
    assert not (checkout / ".uv").exists()


@pytest.mark.parametrize(
    ("version", "is_taken"),
    [
        ("uv 0.13.0", True),
        ("uv 0.13.9 (1234567 2026-11-01 x86_64-unknown-linux-gnu)", True),
        ("uv 0.14.0", True),
        ("uv 1.0.0", True),
        ("uv 0.12.99", False),
        ("pyenv: uv: command not found", False),
    ],
)
def test_a_uv_on_path_is_taken_unless_it_is_too_old(
    tmp_path: Path, version: str, is_taken: bool
) -> None:
    program = tmp_path / "uv"
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)

    found = runpy.run_path(str(RUN))["find_uv"](str(tmp_path))

    assert found == (str(program) if is_taken else None)


def test_a_python_that_is_too_old_is_told_so() -> None:
    pretend = f"import runpy, sys; sys.version_info = (3, 10, 4); runpy.run_path({str(RUN)!r})"
    result = subprocess.run(
        [sys.executable, "-c", pretend], capture_output=True, text=True, check=False
    )

    assert result.returncode == 1
    assert result.stderr.startswith("The example needs Python 3.11 or newer, and this is 3.10")
    assert "Traceback" not in result.stderr


def test_older_pythons_of_this_machine_are_told_so_too() -> None:
    """Where there is none, the grammar at least is one that they can read."""
    ast.parse(RUN.read_text(), feature_version=(3, 7))
    for python in Path.home().glob(".pyenv/versions/3.[6-9].*/bin/python"):
        result = subprocess.run(
            [python, RUN], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        assert result.returncode == 1
        assert result.stdout.startswith(b"The example needs Python 3.11 or newer"), result
