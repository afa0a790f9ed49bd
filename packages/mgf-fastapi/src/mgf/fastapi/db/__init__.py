"""The database of a FastAPI application: a lifespan and dependencies, errors, health and
cancellation.

Needs the extra ``mgf-fastapi[sqlalchemy]``.
"""

from __future__ import annotations

try:
    from mgf.fastapi.db._cancel import CancelOnDisconnect, run_to_end
    from mgf.fastapi.db._errors import install_error_handlers, problem_responses
    from mgf.fastapi.db._health import Health, check_database, health_router
    from mgf.fastapi.db._pool import pool_figures
    from mgf.fastapi.db._problem import Problem
    from mgf.fastapi.db._session import get_session
    from mgf.fastapi.db._setup import setup_db
    from mgf.fastapi.db._trouble import Trouble, trouble_of
except ModuleNotFoundError as missing:
    raise ImportError(
        f"mgf.fastapi.db needs {missing.name!r}, which is not installed; "
        "install the extra: pip install 'mgf-fastapi[sqlalchemy]'"
    ) from missing

__all__ = [
    "CancelOnDisconnect",
    "Health",
    "Problem",
    "Trouble",
    "check_database",
    "get_session",
    "health_router",
    "install_error_handlers",
    "pool_figures",
    "problem_responses",
    "run_to_end",
    "setup_db",
    "trouble_of",
]
