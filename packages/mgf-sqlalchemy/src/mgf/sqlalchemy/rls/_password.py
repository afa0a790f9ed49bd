"""What PostgreSQL stores of a password, made where the password is."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

from mgf.common.exceptions import AppConfigError

# PostgreSQL's defaults: scram_iterations, and SCRAM_DEFAULT_SALT_LEN in bytes.
_ITERATIONS = 4096
_SALT_LENGTH = 16


def scram_verifier(password: str) -> str:
    """Return the SCRAM-SHA-256 verifier of a password, as ``pg_authid`` holds it.

    RFC 5802 and 7677. Only printable ASCII is taken, which SASLprep leaves as it is.

    Raises:
        AppConfigError: the password is empty, or has other characters.
    """
    if not password or not (password.isascii() and password.isprintable()):
        raise AppConfigError(
            "the password is empty or has characters other than printable ASCII; make one with "
            "secrets.token_urlsafe()"
        )
    salt = os.urandom(_SALT_LENGTH)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    stored_key = hashlib.sha256(_hmac(salted, b"Client Key")).digest()
    server_key = _hmac(salted, b"Server Key")
    keys = f"{_base64(stored_key)}:{_base64(server_key)}"
    return f"SCRAM-SHA-256${_ITERATIONS}:{_base64(salt)}${keys}"


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
