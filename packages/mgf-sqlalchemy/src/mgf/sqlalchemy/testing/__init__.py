"""Support for tests and demonstrations: a real PostgreSQL server for as long as it is needed."""

from __future__ import annotations

from mgf.sqlalchemy.testing._postgres import TemporaryPostgres

__all__ = ["TemporaryPostgres"]
