"""The configuration of one run, made from what a program gave."""

from __future__ import annotations

import copy
import sys
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from alembic.config import Config

from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from collections.abc import Generator


def own_config(given: Config | str | PathLike[str]) -> Config:
    """Return a configuration that may be changed, and under which nobody sets up logging.

    Raises:
        AppConfigError: it is none, or its file does not exist.
    """
    config = copy.copy(given) if isinstance(given, Config) else _read(given)
    config.attributes = dict(config.attributes)
    config.file_config  # noqa: B018 - reads the file, as long as its name is known
    # Alembic's env.py calls fileConfig() where there is one, which turns existing loggers off.
    config.config_file_name = None
    return config


def _read(given: str | PathLike[str]) -> Config:
    if not isinstance(given, str | PathLike):
        raise AppConfigError(
            f"the configuration is of type {type(given).__name__}, expected the path of "
            "alembic.ini, pyproject.toml or the folder with env.py, or alembic.config.Config"
        )
    path = Path(given)
    if (path / "env.py").is_file():
        config = Config()
        # The parser takes a single percent sign for a reference.
        config.set_main_option("script_location", str(path.absolute()).replace("%", "%%"))
        return config
    if not path.is_file():
        raise AppConfigError(
            f"there is no Alembic configuration {str(given)!r}, seen from {str(Path.cwd())!r}; "
            "pass the path of alembic.ini, of pyproject.toml, or of the folder with env.py"
        )
    return Config(toml_file=path) if path.suffix == ".toml" else Config(path)


@contextmanager
def stable_path(config: Config) -> Generator[None]:
    """Keep ``prepend_sys_path``, which Alembic prepends at every run, from growing `sys.path`."""
    entries = config.get_prepend_sys_paths_list() or []
    try:
        yield
    finally:
        count = len(entries)
        if sys.path[:count] == entries and set(entries) <= set(sys.path[count:]):
            del sys.path[:count]
