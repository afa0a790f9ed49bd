"""The example is served as its page says; its own tests run in a copy, where that page is run."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
from architecture.workspace import ROOT, clean_environment

if TYPE_CHECKING:
    from sqlalchemy import URL

SERVICE = ROOT / "docs/examples/invoices"
ADDRESS = re.compile(r"running on (http://\S+)")


def test_uvicorn_serves_it_with_settings_from_the_environment(app: URL) -> None:
    environment = clean_environment(
        DATABASE_URL=app.render_as_string(hide_password=False),
        TOKEN_KEY="a key that is as long as one has to be",
        TOKEN_ALGORITHM="HS256",
    )
    with subprocess.Popen(
        [*(sys.executable, "-m", "uvicorn", "--factory", "app:create_app"), "--port", "0"],
        cwd=SERVICE,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        address = None
        while address is None:
            line = process.stderr.readline()
            assert line, process.wait()
            address = ADDRESS.search(line)
        answer = httpx.get(f"{address[1]}/health/ready")
        process.send_signal(signal.SIGTERM)

    assert answer.json() == {"status": "ok", "checks": {"database": "ok"}}


def test_without_settings_it_names_what_is_missing() -> None:
    command = [sys.executable, "-m", "uvicorn", "--factory", "app:create_app", "--port", "0"]
    result = subprocess.run(
        command,
        cwd=SERVICE,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode != 0
    assert "database_url\n" in result.stderr
    assert "token_key\n" in result.stderr
