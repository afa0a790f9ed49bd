"""The command, for environments whose programs are not on PATH: ``python -m mgf.sqlalchemy``."""

from __future__ import annotations

import sys

from mgf.sqlalchemy.audit._command import main

if __name__ == "__main__":
    sys.exit(main())
