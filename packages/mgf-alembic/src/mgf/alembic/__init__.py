"""Alembic for applications on mgf.sqlalchemy: a whole ``env.py`` in one call, and its commands."""

from __future__ import annotations

# Imported for what they register with Alembic: every env.py imports this package, before it looks
# at any migration, so that no entry point is needed, which would also serve other projects.
from mgf.alembic import _autogenerate as _autogenerate
from mgf.alembic import _render as _render
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
