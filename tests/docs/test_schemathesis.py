"""What schemathesis makes of the example's own OpenAPI: whatever is sent, no answer is a 500."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from app import create_app
from steps import ACME, make_token
from tour import make_settings, serving

if TYPE_CHECKING:
    from sqlalchemy import URL

SCHEMATHESIS = Path(sysconfig.get_path("scripts"), "schemathesis")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
KEY = "a key that is as long as one has to be"


def test_no_request_gets_a_500_or_an_answer_that_is_not_described(app: URL, tmp_path: Path) -> None:
    # One tenant in all requests: another would find nothing of what a request before has made.
    token = make_token(KEY, ACME)
    with serving(create_app(make_settings(app, KEY))) as address:
        run = subprocess.run(
            [
                *(SCHEMATHESIS, "run", f"{address}/openapi.json"),
                *("--checks", ",".join(CHECKS), "--max-examples", "20"),
                "--generation-deterministic",
                # Slow answers are no failures here.
                *("--request-timeout", "60", "--suppress-health-check", "all", "--no-color"),
                *("--header", f"Authorization:Bearer {token}"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Operations:       7 selected / 7 total" in run.stdout
    assert "Tested: 7" in run.stdout
