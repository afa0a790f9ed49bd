"""What the service is told from outside, by environment variables: DATABASE_URL and so on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(hide_input_in_errors=True)

    database_url: SecretStr = Field(description="with the role that the migrations made")
    token_key: SecretStr = Field(
        min_length=32,
        description="what tokens are verified with: the issuer's public key, or a shared secret",
    )
    # One algorithm, never the one that a token itself names.
    token_algorithm: Literal["RS256", "HS256"] = "RS256"
    token_audience: str = "invoices"
    # How long to wait at start for a database that is not there yet.
    database_wait: float = Field(default=30, description="seconds")
