"""A real PgBouncer in transaction mode, and the work that several processes do through it."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text

from harness.tenants import visible
from mgf.sqlalchemy import create_engine, create_sessionmaker, tenant_scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from sqlalchemy import URL

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
SERVER_CONNECTIONS = 2


@asynccontextmanager
async def pgbouncer(
    target: URL, folder: Path, *, connections: int = SERVER_CONNECTIONS, patience: int = 120
) -> AsyncGenerator[URL]:
    """Serve a database through few server connections; yields the URL to use instead.

    A client that waits for one longer than so many seconds is thrown out.
    """
    assert PROGRAM is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"""
        [databases]
        pooled = host={target.host} port={target.port} dbname={target.database} \
user={target.username} password={target.password}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = any
        pool_mode = transaction
        default_pool_size = {connections}
        query_wait_timeout = {patience}
        max_client_conn = 200
        """
    )
    # It refuses to run as root, and has to read its file as somebody else.
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    for one in (config, folder, *list(folder.parents)[:2]):
        one.chmod(0o755)
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "-q", *user, str(config), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await _until_it_listens(process, port)
        yield target.set(host="127.0.0.1", port=port, database="pooled").update_query_dict(
            {"pgbouncer": "true"}
        )
    finally:
        process.kill()
        await process.wait()


async def _until_it_listens(process: asyncio.subprocess.Process, port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            assert process.returncode is None, "pgbouncer ended at once"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                await writer.wait_closed()
                return


async def work(url: str, tenants: list[UUID], seed: int) -> int:
    """Insert and read for random tenants from 8 tasks; return how many transactions ran."""
    engine = create_engine(url, pool_size=8, max_overflow=0)
    sessionmaker = create_sessionmaker(engine)
    done = 0

    async def one_task(dice: random.Random) -> None:
        nonlocal done
        for _ in range(15):
            tenant = dice.choice(tenants)
            async with tenant_scope(sessionmaker, tenant) as session:
                await session.execute(
                    text("INSERT INTO invoice (note) VALUES (:note)"), {"note": str(tenant)}
                )
                assert set(await visible(session)) == {str(tenant)}
                await session.commit()
                assert set(await visible(session)) == {str(tenant)}
                done += 2

    await asyncio.gather(*(one_task(random.Random(f"{seed}.{n}")) for n in range(8)))
    await engine.dispose()
    return done


if __name__ == "__main__":
    print(asyncio.run(work(sys.argv[1], [UUID(one) for one in sys.argv[3:]], int(sys.argv[2]))))
