"""Who is running: one identity for the process, and an override for the current task."""

from __future__ import annotations

import contextvars
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

_PLACEHOLDER_NAME = "app"
_PLACEHOLDER_VERSION = "unknown"


class UnconfiguredWarning(UserWarning):
    """The identity was read before `bootstrap` set one; shown once per process."""

    __module__ = "mgf.common"


@dataclass(frozen=True)
class AppContext:
    """An application's name and version.

    One made by `bootstrap` is already in force; using it as a context manager restores, at the
    end of the block, what was in force before. One made directly is in force inside its ``with``
    block, and there for the current task (or thread) alone: tasks started inside inherit it.

    Args:
        app_name: short name, shown for instance as PostgreSQL's ``application_name``.
        app_version: any version string.
    """

    app_name: str
    app_version: str = _PLACEHOLDER_VERSION

    def __enter__(self) -> AppContext:
        _task_contexts.set((*_task_contexts.get(), self))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _task_contexts.set(_task_contexts.get()[:-1])


@dataclass(frozen=True)
class _ProcessContext(AppContext):
    """What `bootstrap` returns: in force for the whole process since its creation."""

    _before: AppContext | None = field(default=None, repr=False, compare=False)

    def __enter__(self) -> AppContext:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _process_context  # noqa: PLW0603 - the identity is one per process
        # Leave alone what a later bootstrap() put in force.
        if _process_context is self:
            _process_context = self._before


_process_context: AppContext | None = None
# The blocks that the current task is in. A tuple and no token: one object may be entered by
# several tasks, and again inside its own block.
_task_contexts: contextvars.ContextVar[tuple[AppContext, ...]] = contextvars.ContextVar(
    "mgf.common.task_contexts", default=()
)
_warned = False


def bootstrap(app_name: str | None = None, app_version: str | None = None) -> AppContext:
    """Set the identity of this process and return it.

    Use the result as a context manager to restore, at the end of the block, what was in force
    before; otherwise the identity holds until the next `bootstrap`.

    Args:
        app_name: short name; the placeholder ``"app"`` when left out.
        app_version: version string; the placeholder ``"unknown"`` when left out.
    """
    global _process_context  # noqa: PLW0603 - the identity is one per process
    _process_context = _ProcessContext(
        _PLACEHOLDER_NAME if app_name is None else app_name,
        _PLACEHOLDER_VERSION if app_version is None else app_version,
        _process_context,
    )
    return _process_context


def current_context() -> AppContext | None:
    """Return the identity in force: this task's, else the process's, else None."""
    of_task = _task_contexts.get()
    return of_task[-1] if of_task else _process_context


def app_name() -> str:
    """Return the application's name, or ``"app"`` with an `UnconfiguredWarning` when unset."""
    context = current_context()
    if context is None:
        _warn_once()
        return _PLACEHOLDER_NAME
    return context.app_name


def app_version() -> str:
    """Return its version, or ``"unknown"`` with an `UnconfiguredWarning` when unset."""
    context = current_context()
    if context is None:
        _warn_once()
        return _PLACEHOLDER_VERSION
    return context.app_version


def _warn_once() -> None:
    global _warned  # noqa: PLW0603 - once per process
    if not _warned:
        _warned = True
        warnings.warn(
            "the application has no identity yet, a placeholder is used; call "
            "mgf.common.bootstrap(app_name, app_version) at start-up",
            UnconfiguredWarning,
            stacklevel=3,
        )
