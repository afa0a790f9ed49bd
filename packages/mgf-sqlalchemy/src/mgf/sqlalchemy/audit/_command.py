"""The command ``mgf-sqlalchemy audit``."""

from __future__ import annotations

import argparse
import asyncio
import difflib
import importlib
import logging
import os
import re
import sys
import warnings
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import MetaData
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from mgf.common.exceptions import AppConfigError, AppError
from mgf.sqlalchemy._binding import SETTING
from mgf.sqlalchemy._engine import create_engine
from mgf.sqlalchemy.audit._audit import audit
from mgf.sqlalchemy.audit._outcomes import ATTACKS
from mgf.sqlalchemy.audit._output import (
    OutputFile,
    Progress,
    print_report,
    wants_colour,
    width_of,
)
from mgf.sqlalchemy.audit._probe._runner import probe
from mgf.sqlalchemy.audit._text import summary
from mgf.sqlalchemy.audit._titles import TITLES
from mgf.sqlalchemy.errors import is_transient, sqlstate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from mgf.sqlalchemy.audit._report import Report

_logger = logging.getLogger("mgf.sqlalchemy")

_CLEAN, _FOUND, _COULD_NOT_RUN, _INTERRUPTED = 0, 1, 2, 130
# Seconds, for name, network, TLS and password: psycopg would wait for ever.
_CONNECT_TIMEOUT = 30
_VARIABLE = "MGF_DATABASE_URL"
# What is right for who administers a database, and wrong for the application's role.
_OF_ANOTHER_ROLE: Final = frozenset(("role-superuser", "role-bypassrls", "role-owns-table"))
_KNOWN: Final = frozenset(TITLES) | {f"probe-{one}" for one in ATTACKS}
# What a URL begins with, quotes and blanks aside.
_DIALECT = re.compile(r"""[\s'"]*(\w+)(?:\+\w+)?://""")
# As SQLAlchemy's asyncpg dialect begins its messages.
_CLASS = re.compile(r"<class '[^']*'>: ")

# What to do, by SQLSTATE; without one no connection was made.
_HINTS: Final = {
    "08": "is the server up, and reachable from here?",
    "28P01": "check user and password of the URL",
    "28000": "check the user of the URL, and the server's pg_hba.conf",
    "3D000": "check the database of the URL",
    "42501": "connect as a role that may do this, or GRANT it",
    "55P03": "another session alters or locks a table; try again when it has ended",
}

_DESCRIPTION = """\
Check in a live PostgreSQL database whether one tenant's rows are kept from the
others.

Without --probe it reads the catalogs and changes nothing. With --probe it also
attacks every table, as the application's role, in a transaction that is rolled
back. That is for staging: no row remains, but sequences move on, triggers fire,
and its locks may hold up others.
"""
_EPILOG = f"""\
examples:
  # Connect as the application does. A command line shows its password to other
  # users of the machine, a variable does not:
  export {_VARIABLE}=postgresql://app:secret@localhost/shop
  mgf-sqlalchemy audit

  # Also try it, compare it with the models, and make a page to look at:
  mgf-sqlalchemy audit --probe --metadata shop.models:Base.metadata \\
      --format html --output report.html

  # Connect as somebody else, a superuser say, and ask about the application's
  # role; that such a login is there is a finding, unless you say why:
  mgf-sqlalchemy audit --role app \\
      --ignore 'login-resets-role=the audit alone logs in so'

  # A database that others made:
  mgf-sqlalchemy audit --role api --tenant-column org_id --setting my.org

  # Leave out what may stay, everywhere or for one object, and say why:
  mgf-sqlalchemy audit --ignore 'default-privileges=the template of our host' \\
      --ignore 'table-published public.event=the warehouse takes all tenants'

exit code:
  0  nothing is wrong
  1  something is, or --probe could not try everything
  2  it could not run; one line on standard error says why
  130  interrupted by Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: those of the process unless given.
    """
    # A shell that closed one of them leaves None.
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 - until the end
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was changed in the database", _INTERRUPTED)
    except (AppError, SQLAlchemyError, OSError) as error:
        return _fail(_explain(error), _COULD_NOT_RUN)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mgf-sqlalchemy", description="Prove that tenants are kept apart."
    )
    parser.add_argument("--version", action="version", version=version("mgf-sqlalchemy"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="audit")
    one = commands.add_parser(
        "audit",
        help="check a live database; see mgf-sqlalchemy audit --help",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = one.add_argument
    add("url", metavar="URL", nargs="?", help=f"of the database; else what {_VARIABLE} holds")
    add("--probe", action="store_true", help="also attack, in a transaction that is rolled back")
    add(
        "--metadata",
        metavar="MODULE:NAME",
        help="protected MetaData to compare with, as shop.models:Base.metadata; the current "
        "folder is searched too",
    )
    add("--role", help="that the application connects as; the URL's own user unless given")
    add("--tenant-column", metavar="NAME", default="tenant_id", help="default: %(default)s")
    add("--setting", metavar="NAME", default=SETTING, help="default: %(default)s")
    add(
        "--tenant",
        metavar="UUID",
        type=_tenant,
        action="append",
        default=[],
        help="for --probe, twice: tenants whose rows it may copy; without, it makes rows of two "
        "that do not exist",
    )
    add("--format", choices=["text", "json", "html"], default="text", help="default: text")
    add("--output", metavar="FILE", help="write there, in one piece; standard output unless given")
    add(
        "--ignore",
        metavar="ID=REASON",
        type=_ignored,
        action="append",
        default=[],
        help="leave this finding out; 'ID OBJECT=REASON' for one object; may be repeated",
    )
    return parser


def _tenant(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no UUID") from None


def _ignored(text: str) -> tuple[str, str]:
    name, _, reason = text.partition("=")
    if not name.strip() or not reason.strip():
        raise argparse.ArgumentTypeError(
            f"{text!r} has no reason; write ID=REASON, or 'ID OBJECT=REASON' for one object"
        )
    check = name.split()[0]
    if check not in _KNOWN:
        near = difflib.get_close_matches(check, _KNOWN, n=1)
        hint = f"; {near[0]!r} is one" if near else ""
        raise argparse.ArgumentTypeError(f"there is no check {check!r}{hint}")
    return name.strip(), reason.strip()


def _run(options: argparse.Namespace) -> int:
    given = options.url or os.environ.get(_VARIABLE)
    if not given:
        raise AppConfigError(f"there is no database; give its URL, or put it into {_VARIABLE}")
    if sys.stdout is None and not options.output:
        raise AppConfigError("standard output is closed; name a file: --output FILE")
    if options.tenant and not options.probe:
        raise AppConfigError("--tenant is for --probe alone; give that too")
    if options.tenant and len(set(options.tenant)) != 2:
        raise AppConfigError("--tenant has to be given twice, with two different tenants")
    with OutputFile(options.output) if options.output else nullcontext() as output:
        engine = _engine(given)
        metadata = None if options.metadata is None else _metadata(options.metadata)
        progress = Progress(sys.stderr)
        try:
            report = asyncio.run(_examine(engine, options, metadata, progress))
        finally:
            progress.clear()
        if output is None:
            print_report(_rendered(report, options.format))
        else:
            output.write(_rendered(report, options.format, is_file=True))
            _note(f"{summary(report)}; written to {options.output}")
    if options.role is None and any(one.id in _OF_ANOTHER_ROLE for one in report.findings):
        _note(
            f"this is about {report.role!r}, the URL's own user; if the application connects as "
            "another role, name that one: --role ROLE"
        )
    for name in dict(options.ignore).keys() - report.ignored.keys():
        _note(f"--ignore {name!r} left nothing out")
    return _CLEAN if report.ok else _FOUND


def _engine(given: str) -> AsyncEngine:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dialect = _DIALECT.match(given)
        # Before a driver is looked for: to install one would be no help.
        if dialect is not None and dialect[1].lower() not in ("postgresql", "postgres"):
            raise AppConfigError(
                f"the URL is of {dialect[1]!r}; only PostgreSQL has row-level security"
            )
        engine = create_engine(given, poolclass=NullPool, pool_pre_ping=False)
    for one in caught:
        _note(str(one.message))
    return engine


def _metadata(path: str) -> MetaData:
    """Import a MetaData; what its module prints goes to standard error."""
    name, colon, attributes = path.partition(":")
    if not name or not colon or not attributes:
        raise AppConfigError(
            f"--metadata {path!r} has not the form MODULE:NAME, as in shop.models:Base.metadata"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        with redirect_stdout(sys.stderr):
            found: object = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise AppConfigError(
            f"--metadata {path!r}: importing {name!r} from {os.getcwd()!r} failed: "  # noqa: PTH109
            f"{type(error).__name__}: {error}"
        ) from error
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise AppConfigError(f"--metadata {path!r}: there is no {attribute!r} in it") from None
    if isinstance(found, MetaData):
        return found
    hint = (
        f"; write {path}.metadata" if isinstance(getattr(found, "metadata", None), MetaData) else ""
    )
    kind = type(found).__name__
    raise AppConfigError(f"--metadata {path!r} is of type {kind!r} and no MetaData{hint}")


async def _examine(
    engine: AsyncEngine,
    options: argparse.Namespace,
    metadata: MetaData | None,
    progress: Progress,
) -> Report:
    asked: dict[str, Any] = {
        "role": options.role,
        "metadata": metadata,
        "tenant_column": options.tenant_column,
        "setting": options.setting,
        "ignore": dict(options.ignore),
    }
    progress.say(f"connecting to {engine.url.host or 'the local server'}")
    asyncio.get_running_loop().set_exception_handler(_note_what_is_left)
    try:
        connection = await _connect(engine)
        try:
            progress.say("reading the catalogs")
            report = await audit(connection, **asked)
        finally:
            await connection.close()
        if options.probe:
            tried = await probe(engine, **asked, tenants=options.tenant, progress=progress.step)
            report = report.merged(tried)
    finally:
        await engine.dispose()
    return report


def _note_what_is_left(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log for who debugs: what matters was waited for, and raised.

    The rest is what asyncio and drivers leave of a connection that was given up while it was made,
    as by Ctrl-C: futures with errors that nobody asks for.
    """
    _logger.debug("%s", context["message"], exc_info=context.get("exception"))


async def _connect(engine: AsyncEngine) -> AsyncConnection:
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            return await engine.connect()
    except TimeoutError:
        raise AppConfigError(
            f"no answer from {engine.url.host!r} for {_CONNECT_TIMEOUT} s; is it a PostgreSQL, and "
            "does a firewall let this machine through?"
        ) from None


def _rendered(report: Report, kind: str, *, is_file: bool = False) -> str:
    if kind == "json":
        return report.to_json() + "\n"
    if kind == "html":
        return report.to_html()
    if is_file:
        return report.render()
    return report.render(colour=wants_colour(sys.stdout), width=width_of(sys.stdout))


def _explain(error: Exception) -> str:
    if not isinstance(error, DBAPIError):
        return str(error)
    said = _CLASS.sub("", str(error.orig))
    code = sqlstate(error)
    hint = _HINTS.get(code) if code else _HINTS["08"] if is_transient(error) else None
    return f"{said} ({hint})" if hint else said


def _note(text: str) -> None:
    sys.stderr.write(f"mgf-sqlalchemy audit: {' '.join(text.split())}\n")


def _fail(text: str, code: int) -> int:
    _note(f"error: {text}")
    return code
