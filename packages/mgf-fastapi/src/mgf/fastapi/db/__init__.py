"""The database of a FastAPI application: a lifespan and dependencies.

Needs the extra ``mgf-fastapi[sqlalchemy]``.
"""

from __future__ import annotations

try:
    from mgf.fastapi.db._session import get_session
    from mgf.fastapi.db._setup import setup_db
except ModuleNotFoundError as missing:
    raise ImportError(
        f"mgf.fastapi.db needs {missing.name!r}, which is not installed; "
        "install the extra: pip install 'mgf-fastapi[sqlalchemy]'"
    ) from missing

__all__ = ["get_session", "setup_db"]
