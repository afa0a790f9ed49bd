"""Alembic for applications on mgf.sqlalchemy: a whole ``env.py`` in one call, and its commands."""

from __future__ import annotations

from mgf.alembic._commands import current, downgrade, is_at_head, upgrade
from mgf.alembic._env import configure_env
from mgf.alembic._silent import SilentDataMigrationWarning
from mgf.alembic._suspended import rls_suspended

__all__ = [
    "SilentDataMigrationWarning",
    "configure_env",
    "current",
    "downgrade",
    "is_at_head",
    "rls_suspended",
    "upgrade",
]
