"""What schemathesis makes of the example's own OpenAPI: whatever is sent, no answer is a 500."""

from __future__ import annotations

import subprocess
import sysconfig
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from app import create_app
from steps import ACME, make_token
from tour import make_settings, serving

if TYPE_CHECKING:
    from sqlalchemy import URL
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SCHEMATHESIS = Path(sysconfig.get_path("scripts"), "schemathesis")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    # Repeats requests without the token, and with a wrong one.
    "ignored_auth",
)
KEY = "a key that is as long as one has to be"
# Each operation, and what it answers when all is well.
OPERATIONS = {
    ("GET", "/invoices"): 200,
    ("POST", "/invoices"): 201,
    ("GET", "/invoices/export"): 200,
    ("GET", "/invoices/{invoice_id}"): 200,
    ("PUT", "/invoices/{invoice_id}"): 200,
    ("DELETE", "/invoices/{invoice_id}"): 204,
    ("POST", "/late-fees"): 202,
}


class Recorder:
    """Counts the answers of each operation."""

    def __init__(self, app: ASGIApp, answers: Counter[tuple[str, str, int]]) -> None:
        self._app = app
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            if message["type"] == "http.response.start" and "route" in scope:
                path = scope["route"].path
                self._answers[scope["method"], path, message["status"]] += 1
            await send(message)

        await self._app(scope, receive, note)


def test_no_request_gets_a_500_or_an_answer_that_is_not_described(app: URL, tmp_path: Path) -> None:
    # One tenant in all requests: another would find nothing of what a request before has made.
    token = make_token(KEY, ACME)
    answers: Counter[tuple[str, str, int]] = Counter()
    service = create_app(make_settings(app, KEY))
    service.add_middleware(Recorder, answers=answers)
    with serving(service) as address:
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
    for (method, path), success in OPERATIONS.items():
        # Those with an id have found what another request had made.
        assert answers[method, path, success], (method, path, answers)
        assert answers[method, path, 401], (method, path, answers)
