"""Async engines and sessions for SQLAlchemy 2 whose rows belong to one tenant at a time."""

from __future__ import annotations

from mgf.sqlalchemy._engine import create_engine
from mgf.sqlalchemy._session import create_sessionmaker, tenant_scope
from mgf.sqlalchemy._tenancy import (
    current_tenant,
    parse_tenant,
    tenant_connection,
    tenant_session,
)
from mgf.sqlalchemy._url import normalize_url

__all__ = [
    "create_engine",
    "create_sessionmaker",
    "current_tenant",
    "normalize_url",
    "parse_tenant",
    "tenant_connection",
    "tenant_scope",
    "tenant_session",
]
