"""Notice data migrations that find no rows, because policies hide all of them from the migrator."""

from __future__ import annotations

import re
import traceback
import warnings
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import event

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Iterator, Sequence

    from sqlalchemy import Connection

# Without a tenant, and where row-level security holds this role.
_HIDDEN = """
    SELECT n.nspname, c.relname, pg_table_is_visible(c.oid), quote_ident(n.nspname),
           quote_ident(c.relname)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relrowsecurity AND c.relkind IN ('r', 'p') AND row_security_active(c.oid)
      AND NULLIF(current_setting('app.current_tenant', true), '') IS NULL
"""

# What holds no names of a statement (PostgreSQL, "Lexical Structure"): comments, strings, aliases,
# and the names of psycopg's parameters.
_NAME = r"""(?:[^\W\d][\w$]*+|"(?:[^"]|"")+")"""
_SKIPPED = re.compile(
    r"--[^\n]*|/\*.*?\*/|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|\be'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'"
    rf"|%\(\w+\)s|\bas\s+(?!(?:with|select)\b){_NAME}",
    re.DOTALL | re.IGNORECASE,
)
# A name that a dot follows is the table of a column, one that "=" follows is a column.
_NAMES = re.compile(rf"(?<![\w$])(?:({_NAME})\s*\.\s*)?({_NAME})(?!\s*[.=])")
_LEAVES_ALL = re.compile(
    r"\s*$|\s*\(*\s*(?:with|select|insert|update|delete|merge)\b(?!.*\bset_config\b)",
    re.DOTALL | re.IGNORECASE,
)
_LOOKS = re.compile(
    r"\s*\(*\s*(?:with|select|update|delete|merge|insert\b.*\b(?:select|update))\b"
    r"|\s*create\b[\w\s]*\b(?:table|materialized\s+view)\b.*\bas\s*\(*\s*(?:with|select)\b",
    re.DOTALL | re.IGNORECASE,
)
_SELECTS = re.compile(r"\bselect\b", re.IGNORECASE)


class SilentDataMigrationWarning(UserWarning):
    """A statement of a migration names tables of which policies hide all rows from its role.

    Under ``FORCE ROW LEVEL SECURITY`` the owner is held too, and without a tenant a SELECT, UPDATE
    or DELETE finds nothing, says nothing, and leaves undone what the migration is there for. Wrap
    it in `mgf.alembic.rls_suspended`, or migrate as a role with BYPASSRLS. To let such a migration
    fail: ``warnings.simplefilter("error", SilentDataMigrationWarning)`` in ``env.py``.

    Each table is named once in a run. Names are looked for in the text of the statements that the
    migration sends. What a view, function, trigger or ``DO`` block reads behind it is not seen,
    nor a foreign key that is checked, nor what ``EXECUTE`` or ``COPY`` runs, and nothing with
    ``--sql``. A tenant in force is taken to be meant. Whether a policy of your own shows the role
    some rows is not looked at; but a statement that changed rows and selects none gets no warning.
    A column that is named like a protected table may be taken for it.
    """

    __module__ = "mgf.alembic"


class _Table(NamedTuple):
    schema: str
    name: str
    is_visible: bool
    quoted_schema: str
    quoted_name: str

    def is_among(self, names: Collection[tuple[str, str]]) -> bool:
        return (self.quoted_schema, self.quoted_name) in names or (
            self.is_visible and ("", self.quoted_name) in names
        )


@contextmanager
def warn_when_silent(connection: Connection) -> Generator[None]:
    """Warn of data migrations on this connection that find no rows."""
    if connection.dialect.name != "postgresql":
        yield
        return
    watch = _Watch()
    # Savepoints are statements, which it sees; the beginning of a transaction is none.
    listeners = {"after_cursor_execute": watch.after_execute, "begin": watch.forget}
    for name, listener in listeners.items():
        event.listen(connection, name, listener)
    try:
        yield
    finally:
        for name, listener in listeners.items():
            event.remove(connection, name, listener)


class _Watch:
    """Knows which tables are hidden now, until a statement that may change it."""

    def __init__(self) -> None:
        self._hidden: Sequence[_Table] | None = None
        self._named: set[_Table] = set()
        self._is_asking = False

    def forget(self, *_: Any) -> None:
        self._hidden = None

    def after_execute(self, connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        if self._is_asking:
            return
        parts = _SKIPPED.sub(" ", statement).split(";")
        if not all(map(_LEAVES_ALL.match, parts)):
            self.forget()
        looking = list(filter(_LOOKS.match, parts))
        if not looking or _has_changed_rows(cursor, looking):
            return
        names = {name for part in looking for name in _read_names(part)}
        hidden = [one for one in self._ask(connection) if one.is_among(names)]
        if new := sorted(set(hidden) - self._named):
            self._named.update(new)
            _warn(f"{table.schema}.{table.name}" for table in new)

    def _ask(self, connection: Connection) -> Sequence[_Table]:
        if self._hidden is None:
            self._is_asking = True
            try:
                rows = connection.exec_driver_sql(_HIDDEN).all()
            finally:
                self._is_asking = False
            self._hidden = [_Table(*row) for row in rows]
        return self._hidden


def _has_changed_rows(cursor: Any, statements: Sequence[str]) -> bool:
    return len(statements) == 1 and cursor.rowcount > 0 and not _SELECTS.search(statements[0])


def _read_names(statement: str) -> Iterator[tuple[str, str]]:
    """Yield schema, blank where there is none, and name, as ``quote_ident`` may write them."""
    for schema, name in _NAMES.findall(statement):
        yield from product(_spellings(schema), _spellings(name))


def _spellings(name: str) -> tuple[str, ...]:
    # A name that needs no quotes may have them; one that needs them is never without.
    return (name, name[1:-1]) if name.startswith('"') else (name.lower(),)


def _warn(tables: Iterable[str]) -> None:
    """Warn at the line of the migration that sent the statement."""
    message = (
        f"policies hide all rows of {', '.join(tables)} from the role that migrates, and no tenant "
        "is set: this statement finds none; wrap it in rls_suspended(), or migrate as a role that "
        "has BYPASSRLS"
    )
    for frame, line in traceback.walk_stack(None):
        if "down_revision" in frame.f_globals:
            warnings.warn_explicit(
                message, SilentDataMigrationWarning, frame.f_code.co_filename, line
            )
            return
    warnings.warn(message, SilentDataMigrationWarning, stacklevel=2)
