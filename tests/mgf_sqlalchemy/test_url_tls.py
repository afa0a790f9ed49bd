"""TLS as a URL asks for it, against certificates made here.

The PostgreSQL of the tests speaks no TLS, so a terminator stands before it, as a pooler would: it
answers PostgreSQL's request for TLS, asks for a client certificate, and passes the plain text on.
"""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from mgf.sqlalchemy import create_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy import URL

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="the openssl command makes the certificates"
)

KEY_PASSWORD = "key-password"


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.crt; server.crt for localhost; client.crt with client.key, whose password is set."""
    folder = tmp_path_factory.mktemp("tls")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    own = ["req", "-x509", *new_key, "-nodes"]
    # From 3.13 on Python asks this of a root certificate.
    root = [*own, "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    openssl(folder, *root, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt")
    openssl(folder, *root, "-subj", "/CN=other", "-keyout", "other.key", "-out", "other.crt")
    signed = [*own[:2], "-CA", "ca.crt", "-CAkey", "ca.key", *new_key]
    openssl(
        folder, *signed, "-nodes", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=CA:FALSE",
        "-keyout", "server.key", "-out", "server.crt",
    )  # fmt: skip
    openssl(
        folder, *signed, "-passout", f"pass:{KEY_PASSWORD}", "-subj", "/CN=billing",
        "-addext", "basicConstraints=CA:FALSE", "-keyout", "client.key", "-out", "client.crt",
    )  # fmt: skip
    (folder / "client.key").chmod(0o600)
    return folder


@dataclass
class Terminator:
    """A TLS end point before a PostgreSQL server, and whom it saw."""

    context: ssl.SSLContext
    host: str
    port: int
    clients: list[Any] = field(default_factory=list[Any])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(8)  # SSLRequest
            writer.write(b"S")
            await writer.start_tls(self.context)
            self.clients.append(writer.get_extra_info("peercert"))
            server_reader, server_writer = await asyncio.open_connection(self.host, self.port)
            await asyncio.gather(self.pump(reader, server_writer), self.pump(server_reader, writer))
        writer.close()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()


@pytest.fixture
async def terminator(
    certificates: Path, postgres_url: URL
) -> AsyncIterator[tuple[Terminator, URL]]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.crt")
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    context.verify_mode = ssl.CERT_OPTIONAL
    end = Terminator(context, postgres_url.host or "", postgres_url.port or 5432)
    server = await asyncio.start_server(end.serve, "127.0.0.1", 0)
    url = postgres_url.set(host="localhost", port=server.sockets[0].getsockname()[1])
    yield end, url
    server.close()


@asynccontextmanager
async def engine_for(url: URL, driver: str, query: dict[str, str]) -> AsyncIterator[Any]:
    engine = create_engine(url.set(drivername=f"postgresql+{driver}", query=query))
    try:
        yield engine
    finally:
        await engine.dispose()


async def connects(url: URL, driver: str, **query: str) -> bool:
    async with engine_for(url, driver, query) as engine, engine.connect() as conn:
        return bool((await conn.execute(text("SELECT true"))).scalar())


drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
End = tuple[Terminator, "URL"]


@drivers
async def test_required_tls_is_used(terminator: End, driver: str) -> None:
    end, url = terminator
    assert await connects(url, driver, sslmode="require")
    assert len(end.clients) == 1


@drivers
async def test_full_verification_accepts_the_right_root(
    terminator: End, certificates: Path, driver: str
) -> None:
    _, url = terminator
    root = str(certificates / "ca.crt")
    assert await connects(url, driver, sslmode="verify-full", sslrootcert=root)


@drivers
async def test_verification_refuses_another_root(
    terminator: End, certificates: Path, driver: str
) -> None:
    _, url = terminator
    root = str(certificates / "other.crt")
    with pytest.raises(SQLAlchemyError, match="certificate verify failed"):
        await connects(url, driver, sslmode="verify-ca", sslrootcert=root)


@drivers
async def test_full_verification_refuses_another_host(
    terminator: End, certificates: Path, driver: str
) -> None:
    _, url = terminator
    query = {"sslrootcert": str(certificates / "ca.crt")}
    elsewhere = url.set(host="127.0.0.1")
    assert await connects(elsewhere, driver, sslmode="verify-ca", **query)
    with pytest.raises(SQLAlchemyError, match=r"127\.0\.0\.1"):
        await connects(elsewhere, driver, sslmode="verify-full", **query)


@drivers
async def test_client_certificate_is_shown(
    terminator: End, certificates: Path, driver: str
) -> None:
    end, url = terminator
    query = {
        "sslmode": "verify-full",
        "sslrootcert": str(certificates / "ca.crt"),
        "sslcert": str(certificates / "client.crt"),
        "sslkey": str(certificates / "client.key"),
        "sslpassword": KEY_PASSWORD,
        "ssl_min_protocol_version": "TLSv1.3",
    }
    assert await connects(url, driver, **query)
    assert end.clients[0]["subject"] == ((("commonName", "billing"),),)


@drivers
async def test_roots_of_the_system_are_used_and_the_host_is_verified(
    terminator: End, certificates: Path, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL takes the system's certificates from the file that SSL_CERT_FILE names."""
    _, url = terminator
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.crt"))
    assert await connects(url, driver, sslrootcert="system", sslmode="verify-full")
    with pytest.raises(SQLAlchemyError, match=r"127\.0\.0\.1"):
        await connects(url.set(host="127.0.0.1"), driver, sslrootcert="system")


@drivers
async def test_roots_of_the_system_do_not_vouch_for_a_stranger(
    terminator: End, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = terminator
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(SQLAlchemyError, match="certificate verify failed"):
        await connects(url, driver, sslrootcert="system")
