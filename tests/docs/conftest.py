"""The modules of the example import each other by their bare names, as an application's do."""

from __future__ import annotations

import sys

from architecture.workspace import ROOT

sys.path.append(str(ROOT / "docs/examples/invoices"))
