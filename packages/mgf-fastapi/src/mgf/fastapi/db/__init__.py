"""The database of a FastAPI application: a lifespan and dependencies, errors, health and
cancellation.

Needs the extra ``mgf-fastapi[sqlalchemy]``.
"""

from __future__ import annotations

try:
    from mgf.fastapi.db._cancel import CancelOnDisconnect, run_to_end
    from mgf.fastapi.db._current import TenantLogFilter, current_tenant_id
    from mgf.fastapi.db._ended import SessionEndedError
    from mgf.fastapi.db._errors import install_error_handlers, problem_responses
    from mgf.fastapi.db._health import Health, check_database, health_router
    from mgf.fastapi.db._pool import pool_figures
    from mgf.fastapi.db._problem import Problem
    from mgf.fastapi.db._refusal import TENANT_RESPONSES, TenantRefusedError
    from mgf.fastapi.db._resolvers import (
        tenant_from_claim,
        tenant_from_header,
        tenant_from_path,
        tenant_from_subdomain,
    )
    from mgf.fastapi.db._session import (
        SessionDep,
        StreamingSessionDep,
        get_session,
        get_session_for,
        session_scope,
    )
    from mgf.fastapi.db._setup import setup_db
    from mgf.fastapi.db._startup import DatabaseNotReadyError
    from mgf.fastapi.db._tenants import tenant_session_from
    from mgf.fastapi.db._transaction import (
        TransactionAbortedError,
        TransactionDep,
        committing,
        get_transaction,
    )
    from mgf.fastapi.db._trouble import Trouble, trouble_of
except ModuleNotFoundError as missing:
    raise ImportError(
        f"mgf.fastapi.db needs {missing.name!r}, which is not installed; "
        "install the extra: pip install 'mgf-fastapi[sqlalchemy]'"
    ) from missing

__all__ = [
    "TENANT_RESPONSES",
    "CancelOnDisconnect",
    "DatabaseNotReadyError",
    "Health",
    "Problem",
    "SessionDep",
    "SessionEndedError",
    "StreamingSessionDep",
    "TenantLogFilter",
    "TenantRefusedError",
    "TransactionAbortedError",
    "TransactionDep",
    "Trouble",
    "check_database",
    "committing",
    "current_tenant_id",
    "get_session",
    "get_session_for",
    "get_transaction",
    "health_router",
    "install_error_handlers",
    "pool_figures",
    "problem_responses",
    "run_to_end",
    "session_scope",
    "setup_db",
    "tenant_from_claim",
    "tenant_from_header",
    "tenant_from_path",
    "tenant_from_subdomain",
    "tenant_session_from",
    "trouble_of",
]
