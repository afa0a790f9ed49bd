"""What mgf.alembic raises on purpose.

::

    mgf.common.exceptions.AppError
    |-- ConfigError
    |   `-- AppConfigError         a URL, an option or a configuration that cannot work
    `-- OperationError
        `-- MigrationLockError     another process migrates, or this one is no longer alone
"""

from __future__ import annotations

from mgf.common.exceptions import OperationError

__all__ = ["MigrationLockError"]


class MigrationLockError(OperationError):
    """The lock that keeps migrators apart was not free in time, or got lost meanwhile.

    Or it took the only connection that a pooler gives.
    """
