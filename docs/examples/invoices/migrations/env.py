"""What Alembic runs: the database that a program hands over, else the one in OWNER_DATABASE_URL."""

from __future__ import annotations

import os

from alembic import context
from models import Base

from mgf.alembic import configure_env

configure_env(
    database_url=context.config.attributes.get("database_url")
    or os.environ.get("OWNER_DATABASE_URL"),
    target_metadata=Base.metadata,
)
