"""Whose invoices a request is about: the tenant that its token names, once that is verified."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import jwt
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.ext.asyncio import AsyncSession

from mgf.fastapi.db import (
    TenantRefusedError,
    committing,
    tenant_from_claim,
    tenant_session_from,
)

if TYPE_CHECKING:
    from settings import Settings

# Its own refusal would be the only 401 that is no problem document.
bearer = HTTPBearer(
    bearerFormat="JWT", description="a token of the identity provider", auto_error=False
)


def verify(token: str, settings: Settings) -> dict[str, Any]:
    """Return the claims of a token: signed with our issuer's key, for us, and not expired.

    Raises:
        jwt.InvalidTokenError: it is not.
    """
    return jwt.decode(
        token,
        settings.token_key.get_secret_value(),
        algorithms=[settings.token_algorithm],
        audience=settings.token_audience,
        options={"require": ["aud", "exp"]},
    )


async def get_claims(
    request: Request, token: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> dict[str, Any]:
    if token is None:
        raise TenantRefusedError(401, "a token is needed", {"WWW-Authenticate": "Bearer"})
    try:
        return verify(token.credentials, request.app.state.settings)
    except jwt.InvalidTokenError as error:
        challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        raise TenantRefusedError(401, f"the token is not valid: {error}", challenge) from None


get_tenant = tenant_from_claim(get_claims, "tenant")
get_tenant_session = tenant_session_from(get_tenant)

TenantDep = Annotated[UUID, Depends(get_tenant)]
# It ends before the response is sent, so that no connection waits for a slow client.
TenantSessionDep = Annotated[AsyncSession, Depends(get_tenant_session, scope="function")]
# The same, and what was done in it is committed, unless something is raised.
TenantTransactionDep = Annotated[
    AsyncSession, Depends(committing(get_tenant_session), scope="function")
]
# It ends after the response, which is made from it while it is sent.
StreamingTenantSessionDep = Annotated[AsyncSession, Depends(get_tenant_session, scope="request")]
