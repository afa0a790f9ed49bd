"""The leaf of the mgf packages: application identity and the typed exception root."""

from __future__ import annotations

from mgf.common._identity import (
    AppContext,
    UnconfiguredWarning,
    app_name,
    app_version,
    bootstrap,
    current_context,
)

__version__ = "0.30.0"

__all__ = [
    "AppContext",
    "UnconfiguredWarning",
    "__version__",
    "app_name",
    "app_version",
    "bootstrap",
    "current_context",
]
