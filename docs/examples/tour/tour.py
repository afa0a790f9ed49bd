"""Two tenants use the service for real, then each tries to get at the other's invoices.

Starts a PostgreSQL of its own, migrates it, serves the application and calls it over HTTP. Then
the library's own audit and probe examine the database, and make a page of what they find. Exit code
0: every answer was the one that keeps the tenants apart; 1, with the word LEAK: one was not; 2: the
tour could not be made.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import sys
import textwrap
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import httpx
import uvicorn
from app import create_app
from database import EVERYTHING, WHO_AM_I, examine, prepare, run_sql
from pydantic import SecretStr
from settings import Settings
from sqlalchemy.exc import SQLAlchemyError
from steps import (
    ACME,
    BOLT,
    FORGOTTEN,
    TRUTH,
    Call,
    Statement,
    Tenant,
    charge,
    false_tokens,
    foreign_rows,
    make_token,
    mistakes,
    own_rows,
)

from mgf.common.exceptions import AppError, OperationError
from mgf.sqlalchemy.testing import TemporaryPostgres

if TYPE_CHECKING:
    from collections.abc import Generator

    from fastapi import FastAPI
    from sqlalchemy import URL
    from steps import Answer


# In the folder .venv that run.py has made.
PAGE = Path(sys.prefix, "invoices.html")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="keep the service running afterwards")
    parser.add_argument("--port", type=int, default=0, help="port of the service; a free one")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        default=PAGE,
        help="for the page; %(default)s, over the one of the last tour",
    )
    options = parser.parse_args(arguments)
    # Always a server of its own: the tour makes a role, which belongs to a whole server.
    os.environ.pop("MGF_TEST_DATABASE_URL", None)
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, interrupt)
    try:
        return run(serve=options.serve, port=options.port, page=options.report)
    except KeyboardInterrupt:
        return 130
    except (AppError, SQLAlchemyError, httpx.HTTPError, OSError) as error:
        print(f"The tour could not be made: {error}", file=sys.stderr)
        return 2


def interrupt(_signal: int, _frame: object) -> None:
    # Once: uv may hand the same Ctrl-C on, which must not disturb the clearing up.
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(*, serve: bool, port: int, page: Path) -> int:
    key = secrets.token_hex()
    with TemporaryPostgres() as server:
        app_url = prepare(server.url, secrets.token_hex())
        with serving(create_app(make_settings(app_url, key)), port) as address:
            version = ".".join(map(str, server.version))
            print(f"PostgreSQL {version} on 127.0.0.1:{server.port}, the service on {address}")
            leaks = take_tour(server.url, app_url, address, key)
            result = report(leaks + prove(app_url, page))
            if serve and result == 0:
                keep_running(address, key)
    return result


def make_settings(app: URL, key: str) -> Settings:
    """Return what a real service reads from its environment."""
    return Settings(
        database_url=SecretStr(app.render_as_string(hide_password=False)),
        token_key=SecretStr(key),
        token_algorithm="HS256",
    )


@contextmanager
def serving(app: FastAPI, port: int = 0) -> Generator[str]:
    """Serve an application in a thread and yield its address; port 0 is a free one."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
        server = uvicorn.Server(config)

        def run() -> None:
            # How uvicorn ends when the application does not start; it has printed why.
            with suppress(SystemExit):
                server.run([listener])

        thread = Thread(target=run)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise OperationError("the service did not start; its reason stands above")
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def take_tour(owner: URL, app: URL, address: str, key: str) -> list[str]:
    """Take every step, print each answer, and return those that break the isolation.

    Args:
        owner: a superuser's URL of a database that `prepare` made and nobody has used.
        app: the URL that the service at `address` connects with.
        address: where the service is.
        key: what tokens are signed with.
    """
    acme, bolt = make_token(key, ACME), make_token(key, BOLT)
    leaks = check_role(app)
    leaks += call(address, own_rows(1, ("Ann", "Ben", "Cleo")), "Acme, own rows", acme)
    leaks += call(address, own_rows(4, ("Dora", "Emil", "Finn")), "Bolt, own rows", bolt)
    leaks += call(address, charge(1), "Acme, in background", acme)
    leaks += call(address, foreign_rows(1, BOLT, 4), "Acme against Bolt", acme)
    leaks += call(address, foreign_rows(4, ACME, 1), "Bolt against Acme", bolt)
    print_title("False tokens", "HTTP")
    for label, token, answer in false_tokens(key):
        leaks += call(address, [Call(label, "GET", "/invoices", answer)], "", token)
    leaks += send(app, mistakes(1, BOLT), "Acme, by mistake", ACME)
    leaks += send(app, mistakes(4, ACME), "Bolt, by mistake", BOLT)
    leaks += send(app, FORGOTTEN, "No tenant, by mistake", None)
    return leaks + check_truth(owner)


def report(leaks: list[str]) -> int:
    """Print the outcome and return the exit code."""
    if leaks:
        print("\nLEAK:", *leaks, sep="\n  ")
        return 1
    print("\nNothing leaked.")
    return 0


def check_role(app: URL) -> list[str]:
    """Make sure that policies hold the service's role: otherwise the tour would prove nothing."""
    role = run_sql(app, WHO_AM_I)[0]
    print(
        f"The service connects as {role.rolname}: superuser {role.rolsuper}, bypassrls "
        f"{role.rolbypassrls}, owner of the table {role.owns},\n"
        f"row_security_active('invoice') {role.held}."
    )
    if role.held:
        return []
    return [f"row-level security of the table invoice does not hold the role {role.rolname}"]


def call(address: str, calls: list[Call], title: str, token: str | None) -> list[str]:
    """Call the service over HTTP."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    print_title(title, "HTTP")
    leaks: list[str] = []
    with httpx.Client(trust_env=False, base_url=address, headers=headers) as client:
        for one in calls:
            leaks += check(title, one.label, one.take(client), one.expected)
    return leaks


def send(app: URL, statements: list[Statement], title: str, tenant: Tenant | None) -> list[str]:
    """Send SQL as the service, in the tenant's scope."""
    print_title(title, "SQLSTATE")
    leaks: list[str] = []
    for one in statements:
        leaks += check(title, one.label, one.take(app, tenant), one.expected)
    return leaks


def print_title(title: str, code: str) -> None:
    if title:
        print(f"\n{title:23}{code}")


def check(title: str, label: str, answer: Answer, expected: Answer) -> list[str]:
    """Print an answer, and return it as a leak unless it is the expected one."""
    code, text = answer
    line = f"  {label:21}{code!s:5}  {text}".rstrip()
    print(textwrap.fill(line, 100, subsequent_indent=" " * 30))
    if answer == expected:
        return []
    step = ", ".join(filter(None, (title, label)))
    return [f"{step}: {code}, {text}; not: {expected[0]}, {expected[1]}"]


def check_truth(owner: URL) -> list[str]:
    """Compare what the database holds with what it should."""
    names = {tenant.id: tenant.name for tenant in (ACME, BOLT)}
    truth = [
        (row.id, names[row.tenant_id], row.customer, row.amount, row.late_fee)
        for row in run_sql(owner, EVERYTHING)
    ]
    print("\nThe truth, as the superuser sees it\n  invoice  tenant  customer  amount  late fee")
    for invoice, tenant, customer, amount, fee in truth:
        print(f"  {invoice:<7}  {tenant:6}  {customer:8}  {amount:6}  {fee or '-':>8}")
    if truth == TRUTH:
        return []
    return [f"the database holds other rows than those that their tenants wrote: {truth}"]


def prove(app: URL, page: Path) -> list[str]:
    """Print what the library's audit and probe find, and write it to a page."""
    found = examine(app)
    page.write_text(found.to_html(), encoding="utf-8")
    print(f"\n{found.render()}The same as a page: {page}")
    return [] if found.ok else ["the database has mistakes, or could not be tried: see above"]


def keep_running(address: str, key: str) -> None:
    """Say how to call the service, and return at Ctrl-C or SIGTERM."""
    with suppress(KeyboardInterrupt):
        print(f"\nThe service goes on. It describes itself: {address}/docs\nTry, for instance:")
        for tenant, other, foreign in ((ACME, BOLT, 4), (BOLT, ACME, 1)):
            name = tenant.name.upper()
            authorization = f'-H "Authorization: Bearer ${name}"'
            print(
                f"\n  # as {tenant.name}: read all, then {other.name}'s\n"
                f"  {name}={make_token(key, tenant)}\n"
                f"  curl {authorization} {address}/invoices\n"
                f"  curl {authorization} {address}/invoices/{foreign}"
            )
        print("\nThe tokens hold for 12 hours. Ctrl-C ends it.", flush=True)
        while True:
            # Not an endless wait for an event: on Windows no Ctrl-C would end that.
            time.sleep(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
