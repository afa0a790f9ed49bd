"""What TemporaryPostgres and its supervisor tell each other, as lines of JSON."""

from __future__ import annotations

from typing import TypedDict, final

__all__ = ["Failed", "Job", "Ready"]


class Job(TypedDict):
    """What the parent asks for; paths are absolute."""

    bindir: str
    major: int
    relocate: list[str]  # copied into `work` before use, bindir lies in one of them
    work: str  # made here, removed at the end
    data: str
    by_descriptor: bool  # the account cannot walk to `data`
    account: tuple[int, int] | None  # uid and gid
    initdb: list[str]
    settings: dict[str, str]
    port: int | None
    timeout: float


@final
class Ready(TypedDict):
    """The answer when the server takes connections."""

    port: int
    password: str
    pid: int


@final
class Failed(TypedDict):
    """The answer when there is no server."""

    error: str
    log: str
    misuse: bool  # the caller's mistake
