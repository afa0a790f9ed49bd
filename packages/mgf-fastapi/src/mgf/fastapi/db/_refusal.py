"""Requests that are refused for want of a tenant that they may act for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import HTTPException

from mgf.common.exceptions import OperationError
from mgf.fastapi.db._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

# By the member ``code`` of their problem documents.
REFUSALS: Mapping[str, Problem] = {
    "tenant-malformed": Problem(status=400, detail="The tenant is malformed."),
    "tenant-missing": Problem(status=401, detail="The tenant is missing."),
    "tenant-refused": Problem(status=403, detail="The tenant is not allowed."),
}
CHALLENGE: Final = {"WWW-Authenticate": {"schema": {"type": "string"}}}

TENANT_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    problem.status: {"description": problem.detail} for problem in REFUSALS.values()
}
TENANT_RESPONSES[401]["headers"] = CHALLENGE


class TenantRefusedError(HTTPException, OperationError):
    """A request's tenant is malformed (400), missing (401) or not allowed (403).

    What the functions ``tenant_from_...`` make raises it, and a resolver of your own may, to be
    answered alike: as any ``HTTPException``, with ``{"detail": ...}`` and the headers; with
    `install_error_handlers` as a problem document, with the same detail and headers, whose ``code``
    is ``tenant-malformed``, ``tenant-missing`` or, for any other status, ``tenant-refused``.

    Args:
        status_code: of the answer.
        detail: what is wrong, for the client.
        headers: of the answer; a 401 needs ``WWW-Authenticate``.
    """

    __module__ = "mgf.fastapi.db"

    @property
    def code(self) -> str:
        """What the problem document names it by."""
        codes = (code for code, problem in REFUSALS.items() if problem.status == self.status_code)
        return next(codes, "tenant-refused")
