"""The tenant is the one that a verified token names; nothing else in a request can."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr
from tenants import verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from httpx import AsyncClient, Response
    from settings import Settings

ACME = str(uuid4())
PAST = datetime.now(UTC) - timedelta(seconds=1)


async def ask(client: AsyncClient, token: str) -> Response:
    return await client.get("/invoices", headers={"Authorization": f"Bearer {token}"})


async def test_a_token_that_names_a_tenant_is_taken(
    stranger: AsyncClient, make_token: Callable[..., str]
) -> None:
    assert (await ask(stranger, make_token(tenant=ACME))).status_code == 200


async def test_without_a_token_nothing_is_answered(stranger: AsyncClient) -> None:
    for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}):
        answer = await stranger.get("/invoices", headers=headers)

        assert_refused(answer)
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def assert_refused(answer: Response) -> None:
    """Whatever is wrong, a client reads the same kind of document."""
    assert answer.status_code == 401
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "tenant-missing"


@pytest.mark.parametrize(
    "claims",
    [
        pytest.param({"exp": PAST}, id="expired"),
        pytest.param({"exp": None}, id="never expires"),
        pytest.param({"aud": "payroll"}, id="for another service"),
        pytest.param({"aud": None}, id="for no service"),
        pytest.param({"tenant": None}, id="names no tenant"),
        pytest.param({"key": "not the key, but as long as one is"}, id="signed by another"),
        pytest.param({"key": "", "algorithm": "none"}, id="not signed"),
    ],
)
async def test_other_tokens_are_refused(
    stranger: AsyncClient, make_token: Callable[..., str], claims: dict[str, object]
) -> None:
    answer = await ask(stranger, make_token(**{"tenant": ACME, **claims}))

    assert_refused(answer)
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_a_tenant_that_is_no_uuid_is_refused(
    stranger: AsyncClient, make_token: Callable[..., str]
) -> None:
    assert (await ask(stranger, make_token(tenant="acme"))).status_code == 400


@pytest.fixture(scope="module")
def private_key() -> RSAPrivateKey:
    return generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def public_pem(private_key: RSAPrivateKey) -> str:
    public = private_key.public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture
def with_public_key(settings: Settings, public_pem: str) -> Settings:
    changes = {"token_key": SecretStr(public_pem), "token_algorithm": "RS256"}
    return settings.model_copy(update=changes)


def test_the_public_key_verifies_what_the_private_one_signed(
    with_public_key: Settings, private_key: RSAPrivateKey, make_token: Callable[..., str]
) -> None:
    token = make_token(private_key, "RS256", tenant=ACME)

    assert verify(token, with_public_key)["tenant"] == ACME


def test_the_public_key_signs_nothing(
    with_public_key: Settings, public_pem: str, make_token: Callable[..., str]
) -> None:
    """Everybody knows it: as the secret of HS256 it would let everybody in."""
    content = make_token(tenant=ACME).rpartition(".")[0]
    signature = hmac.digest(public_pem.encode(), content.encode(), "sha256")
    token = f"{content}.{urlsafe_b64encode(signature).decode().rstrip('=')}"

    with pytest.raises(jwt.InvalidAlgorithmError):
        verify(token, with_public_key)
