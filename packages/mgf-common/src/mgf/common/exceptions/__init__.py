"""The exceptions that every mgf package derives its own from.

::

    AppError                      anything raised on purpose
    |-- ConfigError               settings, URLs, files: wrong before any work began
    |   `-- AppConfigError        the application was put together wrongly; says how to mend it
    `-- OperationError            the work itself failed
"""

from __future__ import annotations

__all__ = ["AppConfigError", "AppError", "ConfigError", "OperationError"]


class AppError(Exception):
    """The root: ``except AppError`` catches whatever an mgf package raised on purpose."""


class ConfigError(AppError):
    """A setting, a URL or a file is wrong, and no work was begun."""


class AppConfigError(ConfigError):
    """The application was put together wrongly; the message says what to change."""


class OperationError(AppError):
    """An operation failed while it ran."""
