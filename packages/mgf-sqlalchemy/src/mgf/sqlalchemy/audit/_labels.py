"""What a probe's outcomes are about, as a report names it: a relation, a role, or the probe."""

from __future__ import annotations

from typing import Final

CONTROL: Final = "control"
_ROLE: Final = "role "


def label_of_role(name: str) -> str:
    """Return what stands for a role."""
    return f"{_ROLE}{name}"


def role_of(label: str) -> str | None:
    """Return the role that a label stands for, None for others."""
    return label.removeprefix(_ROLE) if label.startswith(_ROLE) else None


def is_relation(label: str) -> bool:
    """Say whether a label stands for a relation."""
    return label != CONTROL and role_of(label) is None
