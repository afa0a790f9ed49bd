"""FastAPI on top of the mgf packages; `mgf.fastapi.db` for databases."""

from __future__ import annotations

__all__: list[str] = []
