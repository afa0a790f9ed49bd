"""Database URLs, from what platforms hand out to what drivers take.

Private to mgf.sqlalchemy, which exports `normalize_url`.
"""

from __future__ import annotations

from mgf.sqlalchemy._url.drivers import connect_arguments
from mgf.sqlalchemy._url.normalize import describe_url, normalize_url

__all__ = ["connect_arguments", "describe_url", "normalize_url"]
