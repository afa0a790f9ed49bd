"""Dependencies that say which tenant a request is about, or refuse it.

Each answers 401 when the tenant is missing, 400 when it is malformed, 403 when it is not allowed
(`TenantRefusedError`), and never takes another one instead.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any
from uuid import UUID  # noqa: TC003 - FastAPI reads it from the signatures below

from fastapi import Depends, Header, Path
from starlette.requests import HTTPConnection  # noqa: TC002 - as above

from mgf.common.exceptions import AppConfigError
from mgf.fastapi.db._refusal import TenantRefusedError
from mgf.sqlalchemy import parse_tenant

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123, section 2.1


def tenant_from_header(name: str = "X-Tenant-Id") -> Callable[..., Awaitable[UUID]]:
    """Return a resolver that takes the tenant's id from a header.

    Anybody can write a header: use it behind a gateway that sets or strips it, or check it
    against who is calling in a resolver that depends on this one.
    """
    challenge = {"WWW-Authenticate": f'Tenant header="{name}"'}

    async def read(request: HTTPConnection) -> UUID:
        values = request.headers.getlist(name)
        if not values:
            raise TenantRefusedError(401, f"the header {name} is missing", challenge)
        if len(values) > 1:
            raise TenantRefusedError(400, f"the header {name} was sent more than once")
        return _parse(values[0], f"the header {name}")

    async def get_tenant_from_header(
        tenant: UUID = Depends(read),  # raises first: FastAPI's own answer would be 422
        _header: UUID = Header(alias=name),  # for OpenAPI
    ) -> UUID:
        return tenant

    return get_tenant_from_header


def tenant_from_path(name: str = "tenant_id") -> Callable[..., Awaitable[UUID]]:
    """Return a resolver that takes the tenant's id from a parameter of the path.

    Anybody can write a path: check it against who is calling in a resolver that depends on this
    one.

    Raises:
        AppConfigError: in a request, its path has no parameter of that name.
    """

    async def read(request: HTTPConnection) -> UUID:
        if name not in request.path_params:
            raise AppConfigError(
                f"the path of this route has no parameter {name!r} to take the tenant from; "
                f"write it like '/{{{name}}}/invoices'"
            )
        return _parse(str(request.path_params[name]), f"the path's {name}")

    async def get_tenant_from_path(
        tenant: UUID = Depends(read),
        _parameter: UUID = Path(alias=name),  # for OpenAPI
    ) -> UUID:
        return tenant

    return get_tenant_from_path


def tenant_from_subdomain(
    domain: str,
    lookup: Callable[[str, HTTPConnection], UUID | Awaitable[UUID | None] | None],
) -> Callable[..., Awaitable[UUID]]:
    """Return a resolver that takes the tenant from the first label of the host name.

    It reads the header ``Host``, which the client writes: let the proxy pass on only hosts that
    are yours (or Starlette's ``TrustedHostMiddleware``), and do not take the sub-domain for a
    proof of who is calling. ``X-Forwarded-Host`` is not read.

    Args:
        domain: what follows the label, like ``"example.com"``.
        lookup: returns the tenant of a label (in lower case), or None when it is nobody's, which
            is answered with 403. It also gets the request or WebSocket, as the place for a
            `session_scope`. It may be async.
    """
    ending = "." + domain.strip(".").lower()

    async def get_tenant_from_subdomain(request: HTTPConnection) -> UUID:
        label = _label(request.headers.getlist("host"), ending)
        found = lookup(label, request)
        tenant = await found if inspect.isawaitable(found) else found
        if tenant is None:
            raise TenantRefusedError(403, f"no tenant has the sub-domain {label}")
        return tenant

    return get_tenant_from_subdomain


def tenant_from_claim(
    get_claims: Callable[..., Any], claim: str = "tenant", *, challenge: str = "Bearer"
) -> Callable[..., Awaitable[UUID]]:
    """Return a resolver that takes the tenant's id from a claim that was verified.

    Args:
        get_claims: a dependency that verifies who is calling and returns a mapping of claims,
            like a token's; it raises an ``HTTPException`` or returns None for nobody.
        claim: the name of the claim.
        challenge: the header ``WWW-Authenticate`` of a 401.
    """

    async def get_tenant_from_claim(
        claims: Mapping[str, Any] | None = Depends(get_claims),
    ) -> UUID:
        if claims is None or claims.get(claim) is None:
            raise TenantRefusedError(
                401, f"the claim {claim} is missing", {"WWW-Authenticate": challenge}
            )
        return _parse(claims[claim], f"the claim {claim}")

    return get_tenant_from_claim


def _parse(value: object, what: str) -> UUID:
    try:
        return parse_tenant(value)
    except ValueError:
        raise TenantRefusedError(400, f"{what} is no UUID") from None


def _label(hosts: list[str], ending: str) -> str:
    if len(hosts) != 1:
        raise TenantRefusedError(400, "a request has one Host")
    host = hosts[0].lower()
    host = re.sub(r":\d*$", "", host).removesuffix(".")
    if host == ending[1:]:
        raise TenantRefusedError(
            401,
            "the tenant's sub-domain is missing",
            {"WWW-Authenticate": f'Tenant realm="{ending[1:]}"'},
        )
    label = host.removesuffix(ending)
    if label == host or not _LABEL.fullmatch(label):
        raise TenantRefusedError(400, f"the Host is no sub-domain of {ending[1:]}")
    return label
