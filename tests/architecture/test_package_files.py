"""Each package can be released alone: it carries its own files, and they agree."""

from __future__ import annotations

import re

import pytest
from architecture.workspace import PACKAGES, ROOT, Package

import mgf.common

every_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)

# https://keepachangelog.com: a version, then the date of its release.
RELEASE = re.compile(r"^## \[(?P<version>[^\]]+)\] - (?P<date>\d{4}-\d{2}-\d{2})$", re.MULTILINE)
CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@every_package
def test_the_licence_is_the_one_at_the_top(package: Package) -> None:
    assert (package.folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@every_package
def test_the_readme_opens_with_the_name(package: Package) -> None:
    assert (package.folder / "README.md").read_text().startswith(f"# {package.name}\n")


@every_package
def test_the_newest_release_in_the_changelog_is_this_version(package: Package) -> None:
    releases = RELEASE.search((package.folder / "CHANGELOG.md").read_text())

    assert releases is not None, "no heading of the form: ## [0.1.0] - 2026-11-23"
    assert releases["version"] == package.version


@every_package
def test_the_changelog_sorts_changes_by_kind(package: Package) -> None:
    text = (package.folder / "CHANGELOG.md").read_text()

    kinds = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert kinds
    assert set(kinds) <= CHANGES


def test_mgf_common_tells_the_version_of_its_wheel() -> None:
    assert {package.version for package in PACKAGES if package.name == "mgf-common"} == {
        mgf.common.__version__
    }
