"""PUBLIC_API.md says what users may rely on, and is kept equal to `__all__`."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import NamedTuple

import pytest
from architecture.workspace import PACKAGES, Package

TIERS = {"experimental", "stable", "deprecated"}
HEADING = re.compile(r"^## `(?P<module>mgf\.[\w.]+)`$")
ROW = re.compile(r"^\| `(?P<name>\w+)` +\| (?P<tier>[^|]+) \| (?P<description>.+) \|$")
MODULES = [
    pytest.param(package, module, id=module)
    for package in PACKAGES
    for module in package.public_modules()
]
every_module = pytest.mark.parametrize(("package", "module"), MODULES)
every_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)


class Entry(NamedTuple):
    """One row of a table in PUBLIC_API.md."""

    name: str
    tier: str
    description: str


def documented(package: Package) -> dict[str, list[Entry]]:
    """Read PUBLIC_API.md: for each module the rows under its heading, in their order."""
    modules: dict[str, list[Entry]] = {}
    entries: list[Entry] = []
    for line in (package.folder / "PUBLIC_API.md").read_text().splitlines():
        if heading := HEADING.match(line):
            entries = modules.setdefault(heading["module"], [])
        elif row := ROW.match(line):
            entries.append(Entry(*(cell.strip() for cell in row.groups())))
    return modules


@every_package
def test_every_public_module_has_its_heading_and_no_other(package: Package) -> None:
    assert sorted(documented(package)) == package.public_modules()


@every_module
def test_the_table_equals_all(package: Package, module: str) -> None:
    names = [entry.name for entry in documented(package)[module]]

    assert sorted(names) == sorted(importlib.import_module(module).__all__)


@every_package
def test_every_name_has_a_known_tier_and_a_description(package: Package) -> None:
    entries = [entry for module in documented(package).values() for entry in module]

    assert [entry for entry in entries if entry.tier not in TIERS or not entry.description] == []


@every_module
def test_every_public_name_has_a_docstring(package: Package, module: str) -> None:
    loaded = importlib.import_module(module)
    public = {name: getattr(loaded, name) for name in loaded.__all__}

    undocumented = [
        name
        for name, value in public.items()
        if (inspect.isclass(value) or inspect.isroutine(value)) and not value.__doc__
    ]
    assert loaded.__doc__
    assert undocumented == []


@every_module
def test_a_traceback_names_an_exception_as_users_import_it(package: Package, module: str) -> None:
    loaded = importlib.import_module(module)
    public = [getattr(loaded, name) for name in loaded.__all__]
    exceptions = [one for one in public if inspect.isclass(one) and issubclass(one, BaseException)]

    assert [one for one in exceptions if one.__module__ != module] == []
