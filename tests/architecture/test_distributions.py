"""What is in the wheels and sdists that a release uploads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from architecture.distributions import (
    Distributions,
    licence_files,
    sdist_files,
    wheel_contents,
    wheel_metadata,
)
from architecture.workspace import (
    NAMES,
    PACKAGES,
    ROOT,
    Package,
    copy_sources,
    packages,
    run,
    tracked_files,
    uv,
)
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from pathlib import Path

every_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)

VERSIONS = {package.name: package.version for package in PACKAGES}
EXTRAS = {
    "mgf-sqlalchemy": {"test", "test-postgres"},
    "mgf-alembic": {"test"},
    "mgf-fastapi": {"sqlalchemy"},
}
CLASSIFIERS = {
    "Development Status :: 3 - Alpha",
    "Intended Audience :: Developers",
    "Operating System :: MacOS",
    "Operating System :: Microsoft :: Windows",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3",
    "Topic :: Software Development :: Libraries",
    "Typing :: Typed",
}


def difference(wheel: Path, package: Package) -> set[str]:
    """Compare a wheel's files with what git would take in: uv_build ships ignored files."""
    return set(wheel_contents(wheel)) ^ tracked_files(package.folder / "src")


@every_package
def test_a_wheel_holds_its_sources_and_nothing_else(
    package: Package, distributions: Distributions
) -> None:
    assert difference(distributions.wheel(package), package) == set()


@every_package
def test_a_wheel_holds_only_its_portion(package: Package, distributions: Distributions) -> None:
    own = package.portion.replace(".", "/") + "/"
    contents = wheel_contents(distributions.wheel(package))

    assert {name for name in contents if not name.startswith(own)} == set()
    assert f"{own}py.typed" in contents


@pytest.mark.parametrize("ignored", [".coverage", "dist/old.whl", "build/lib.py"])
def test_an_ignored_file_in_a_wheel_is_noticed(tmp_path: Path, ignored: str) -> None:
    copy = copy_sources(tmp_path / "copy")
    run("git", "init", "--quiet", cwd=copy)
    common = next(package for package in packages(copy) if package.name == "mgf-common")
    path = common.source / ignored
    path.parent.mkdir(exist_ok=True)
    path.write_text("left over")

    uv("build", "--package", common.name, "--wheel", "--out-dir", tmp_path, cwd=copy)

    assert difference(Distributions(tmp_path).wheel(common), common) == {f"mgf/common/{ignored}"}


@every_package
def test_a_wheel_carries_the_licence(package: Package, distributions: Distributions) -> None:
    wheel = distributions.wheel(package)

    assert licence_files(wheel) == {"LICENSE": (ROOT / "LICENSE").read_bytes()}
    assert wheel_metadata(wheel)["License-Expression"] == "MIT"


@every_package
def test_an_sdist_holds_what_is_needed_and_nothing_else(
    package: Package, distributions: Distributions
) -> None:
    # uv_build adds the metadata, and the pyproject.toml as it stood beside its own form of it.
    added = {"PKG-INFO", "pyproject.toml.orig"}

    assert sdist_files(distributions.sdist(package)) - added == tracked_files(package.folder)


@every_package
def test_an_sdist_builds_the_wheel_that_the_sources_build(
    package: Package, distributions: Distributions, tmp_path: Path
) -> None:
    uv("build", "--package", package.name, "--wheel", "--out-dir", tmp_path)
    direct = Distributions(tmp_path).wheel(package)

    assert wheel_contents(direct) == wheel_contents(distributions.wheel(package))


@every_package
def test_metadata_states_version_python_and_words_to_find_it(
    package: Package, distributions: Distributions
) -> None:
    metadata = wheel_metadata(distributions.wheel(package))
    classifiers = set(metadata.get_all("Classifier", []))

    assert metadata["Version"] == package.version
    assert metadata["Requires-Python"] == ">=3.11"
    assert classifiers >= CLASSIFIERS
    assert not [name for name in classifiers if name.startswith("License ::")]
    assert metadata["Keywords"]
    assert metadata["Author"] == "mgf contributors"


def test_every_package_names_the_same_python_versions() -> None:
    """Those that `.ci/run` runs the tests on: it reads them here."""
    named = [
        {line for line in package.pyproject["project"]["classifiers"] if " :: Python :: " in line}
        for package in PACKAGES
    ]

    assert [versions for versions in named if versions != named[0]] == []


@every_package
def test_sibling_ranges_admit_the_siblings_of_this_commit(
    package: Package, distributions: Distributions
) -> None:
    """Inside the workspace uv ignores these ranges: a stale one would fail at users only."""
    lines = wheel_metadata(distributions.wheel(package)).get_all("Requires-Dist", [])
    siblings = [
        requirement for requirement in map(Requirement, lines) if requirement.name in VERSIONS
    ]

    assert [one for one in siblings if VERSIONS[one.name] not in one.specifier] == []
    assert [one for one in siblings if "<" not in str(one.specifier)] == []


@every_package
def test_extras_are_the_designed_ones(package: Package, distributions: Distributions) -> None:
    extras = wheel_metadata(distributions.wheel(package)).get_all("Provides-Extra", [])

    assert {canonicalize_name(extra) for extra in extras} == EXTRAS.get(package.name, set())


def test_every_package_is_built(distributions: Distributions) -> None:
    built = {path.name.split("-")[0].replace("_", "-") for path in distributions.folder.glob("*.*")}

    assert built - {".gitignore"} == set(NAMES)
