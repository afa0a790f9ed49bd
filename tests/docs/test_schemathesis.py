"""What schemathesis makes of the example's own OpenAPI: whatever is sent, no answer is a 500."""

from __future__ import annotations

import asyncio
import subprocess
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from app import create_app
from database import prepare
from tour import serving

from harness.servers import new_database

if TYPE_CHECKING:
    from sqlalchemy import URL

SCHEMATHESIS = Path(sysconfig.get_path("scripts"), "schemathesis")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
# A tenant of its own in each request would find nothing of what another request has made.
TENANT = ("--header", "X-Tenant-Id:aaaaaaaa-0000-4000-8000-000000000001")


def test_no_request_gets_a_500_or_an_answer_that_is_not_described(
    postgres_url: URL, tmp_path: Path
) -> None:
    url = prepare(asyncio.run(new_database(postgres_url)), "tour-password")
    with serving(create_app(url)) as address:
        run = subprocess.run(
            [
                *(SCHEMATHESIS, "run", f"{address}/openapi.json"),
                *("--checks", ",".join(CHECKS), "--max-examples", "20"),
                "--generation-deterministic",
                # Slow answers are no failures here.
                *("--request-timeout", "60", "--suppress-health-check", "all", "--no-color"),
                *TENANT,
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Operations:       6 selected / 6 total" in run.stdout
    assert "Tested: 6" in run.stdout
