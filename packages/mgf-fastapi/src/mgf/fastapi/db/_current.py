"""The tenant that a request or a job is about, for its logs and traces."""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from uuid import UUID


@dataclass(eq=False)
class _Block:
    """A request or block that is about a tenant.

    Its end is told to all who got it. A copy of the context in which it began may be anywhere:
    servers begin the next request of a connection in that of the one before.
    """

    tenant: UUID
    outer: _Block | None
    has_ended: bool = False


_current: ContextVar[_Block | None] = ContextVar("mgf_tenant", default=None)


def _block() -> _Block | None:
    block = _current.get()
    while block is not None and block.has_ended:
        block = block.outer
    return block


def current_tenant_id() -> UUID | None:
    """Return the tenant that this request, or block of `session_scope`, is about, or None.

    For logs and traces. What a session may see is `mgf.sqlalchemy.current_tenant(session)`.
    """
    block = _block()
    return None if block is None else block.tenant


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
    block = _Block(tenant, _block())
    token = _current.set(block)
    try:
        yield
    finally:
        block.has_ended = True
        # A block that ends in another context than it began in, as in fixtures of some test
        # runners: there it was never known.
        with suppress(ValueError):
            _current.reset(token)
