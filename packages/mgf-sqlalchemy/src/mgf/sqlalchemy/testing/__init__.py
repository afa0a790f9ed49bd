"""Support for tests and demonstrations: a real PostgreSQL server for as long as it is needed.

The fixtures for pytest are in `mgf.sqlalchemy.testing.pytest_plugin`; nothing else needs pytest.
"""

from __future__ import annotations

from mgf.sqlalchemy.testing._database import TemporaryDatabase
from mgf.sqlalchemy.testing._isolation import assert_isolated
from mgf.sqlalchemy.testing._postgres import TemporaryPostgres
from mgf.sqlalchemy.testing._rollback import rolled_back

__all__ = ["TemporaryDatabase", "TemporaryPostgres", "assert_isolated", "rolled_back"]
