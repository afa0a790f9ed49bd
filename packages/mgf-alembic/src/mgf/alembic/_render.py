"""Operations on what protects tables, as a migration script calls them."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from alembic.autogenerate import renderers

from mgf.alembic._operation import ProtectionOp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from alembic.autogenerate.api import AutogenContext

_IMPORT = "from mgf.sqlalchemy import rls"
# The script's functions indent what is written here by four.
_WIDTH = 95


@renderers.dispatch_for(ProtectionOp)
def _render(context: AutogenContext, operation: ProtectionOp) -> str:
    positional, keywords = operation.arguments()
    # The option is documented, and "op." its default.
    prefix = context.opts.get("alembic_module_prefix") or "op."
    call = _call(f"{prefix}{operation.call}", _arguments(positional, keywords), 0)
    if "rls." in call:
        context.imports.add(_IMPORT)
    return call


def _arguments(positional: Iterable[Any], keywords: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        *(("", one) for one in positional),
        *((f"{key}=", one) for key, one in keywords.items()),
    ]


def _call(name: str, arguments: list[tuple[str, Any]], indent: int) -> str:
    return _wrap(f"{name}(", arguments, ")", indent)


def _value(value: Any, indent: int) -> str:
    if isinstance(value, tuple):
        items: list[tuple[str, Any]] = [("", one) for one in value]  # pyright: ignore[reportUnknownVariableType]
        return _wrap("(", items, ",)" if len(items) == 1 else ")", indent)
    if not is_dataclass(value):
        return repr(value)
    positional = [getattr(value, one.name) for one in fields(value) if not one.kw_only]
    keywords = {
        one.name: getattr(value, one.name)
        for one in fields(value)
        if one.kw_only and (one.default is MISSING or getattr(value, one.name) != one.default)
    }
    return _call(f"rls.{type(value).__name__}", _arguments(positional, keywords), indent)


def _wrap(start: str, items: list[tuple[str, Any]], end: str, indent: int) -> str:
    """Write what fits on one line there, and else an item a line."""
    line = start + ", ".join(key + _value(one, 0) for key, one in items) + end
    if indent + len(line) <= _WIDTH and "\n" not in line:
        return line
    space = " " * (indent + 4)
    lines = [f"{space}{key}{_value(one, indent + 4)}," for key, one in items]
    return "\n".join([start, *lines, " " * indent + end.lstrip(",")])
