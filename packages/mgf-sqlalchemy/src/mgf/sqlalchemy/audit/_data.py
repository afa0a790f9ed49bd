"""What a report holds; `Report` adds what can be done with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mgf.sqlalchemy.audit._finding import Finding, NotProven


@dataclass(frozen=True)
class ReportData:
    """The fields of a report, for what renders them."""

    database: str
    role: str
    findings: tuple[Finding, ...] = ()
    not_proven: tuple[NotProven, ...] = ()
    probed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    ignored: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; where a probe ran, whether everything was proven, too."""
        if self.probed and (self.not_proven or self.probed.get("control") != "caught"):
            return False
        return all(one.severity == "info" for one in self.findings)
