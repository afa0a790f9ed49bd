"""What the tree holds, and what may not be in it."""

from __future__ import annotations

import ast
import sys

import pytest
from architecture.workspace import ROOT, tracked_files

TOP_LEVEL = {"packages", "tests", "docs", "pyproject.toml", "uv.lock", "README.md", "LICENSE"}
MODULES = sorted((ROOT / "packages/mgf-common/src").rglob("*.py"))


def imports_beyond_the_standard_library(source: str) -> set[str]:
    """Name what a module of mgf.common imports that is neither Python's nor its own."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module))
    return {
        name
        for name in found
        if name.split(".")[0] not in sys.stdlib_module_names
        and not f"{name}.".startswith("mgf.common.")
    }


def test_mgf_common_imports_only_the_standard_library() -> None:
    found = {path: imports_beyond_the_standard_library(path.read_text()) for path in MODULES}

    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import pydantic.main", {"pydantic.main"}),
        ("def late():\n    from yaml import load", {"yaml"}),
        ("from mgf.sqlalchemy import errors", {"mgf.sqlalchemy"}),
        ("from mgf.commonplace import x", {"mgf.commonplace"}),
        ("import os, json\nfrom mgf.common import _identity", set()),
    ],
)
def test_the_check_of_mgf_common_sees(line: str, found: set[str]) -> None:
    assert imports_beyond_the_standard_library(line) == found


def test_nothing_claims_the_namespace() -> None:
    """One `mgf/__init__.py` would hide every sibling installed elsewhere."""
    assert list(ROOT.glob("packages/*/src/mgf/__init__.py*")) == []
    assert [name for name in tracked_files(ROOT) if name.endswith("/mgf/__init__.py")] == []


def test_no_test_folder_is_a_package() -> None:
    """`tests/sqlalchemy/__init__.py` and its like would shadow the real library."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_top_level_holds_what_the_design_fixes() -> None:
    names = {name.split("/")[0] for name in tracked_files(ROOT)}

    assert {name for name in names if not name.startswith(".")} == TOP_LEVEL
    assert ".importlinter" in names
