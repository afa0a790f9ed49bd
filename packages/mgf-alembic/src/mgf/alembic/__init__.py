"""Alembic for applications on mgf.sqlalchemy: a whole ``env.py`` in one call."""

from __future__ import annotations

from mgf.alembic._env import configure_env

__all__ = ["configure_env"]
