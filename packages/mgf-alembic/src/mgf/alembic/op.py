"""Alembic's ``op``, and with it the operations on what protects tables, known to type checkers.

A migration that says ``from mgf.alembic import op`` may call all that ``alembic.op`` has. What
type checkers know of it is in the stub beside this module, as it is for Alembic's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic import op

# None is defined here. Alembic makes the functions while this package, which is imported before its
# modules, registers the operations.
# ruff: noqa: F822
# pyright: reportUnsupportedDunderAll=false
__all__ = [
    "alter_policy",
    "alter_row_security",
    "alter_view_security",
    "create_invoker_view",
    "create_policy",
    "drop_invoker_view",
    "drop_policy",
    "grant_privileges",
    "protect_table",
    "revoke_privileges",
    "rls_suspended",
    "unprotect_table",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        return getattr(op, name)
