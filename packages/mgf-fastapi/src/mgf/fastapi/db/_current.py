"""The tenant that a request or a job is about, for its logs and traces."""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from uuid import UUID

_current: ContextVar[UUID | None] = ContextVar("mgf_tenant", default=None)


def current_tenant_id() -> UUID | None:
    """Return the tenant that this request, or block of `session_scope`, is about, or None.

    For logs and traces. What a session may see is `mgf.sqlalchemy.current_tenant(session)`.
    """
    return _current.get()


class TenantLogFilter(logging.Filter):
    """Gives every log record the attribute ``tenant``: the id, or ``-`` when there is none.

    For a handler, since the filters of a logger see no records of its children::

        handler.addFilter(TenantLogFilter())
        handler.setFormatter(logging.Formatter("%(levelname)s [%(tenant)s] %(message)s"))
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the tenant, and let the record pass."""
        vars(record)["tenant"] = str(current_tenant_id() or "-")
        return True


@contextmanager
def known_tenant(tenant: UUID) -> Generator[None]:
    """Let `current_tenant_id` return a tenant for the length of a block."""
    token = _current.set(tenant)
    try:
        yield
    finally:
        # A block that ends in another context than it began in, as in fixtures of some test
        # runners: there the tenant was never known.
        with suppress(ValueError):
            _current.reset(token)
