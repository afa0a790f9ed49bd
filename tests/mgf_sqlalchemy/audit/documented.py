"""The checks as docs/how-to/audit.md tells them."""

from __future__ import annotations

import re

from architecture.workspace import ROOT

PAGE = (ROOT / "docs/how-to/audit.md").read_text()
_PROBE = PAGE.partition("### The probe")[2]
_JSON = PAGE.partition("### As JSON")[2].partition("## ")[0]
_CHECK = re.compile(
    r"^\| `(?P<id>[a-z-]+)` \| (?P<severities>[a-z, ]+) \| (?P<title>[^|]+) \|", re.MULTILINE
)
_ATTACK = re.compile(r"^\| `(?P<name>[a-z-]+)` \| (?P<tries>[^|]+) \|$", re.MULTILINE)

# By id.
TITLES = {one["id"]: one["title"] for one in _CHECK.finditer(PAGE)}
SEVERITIES = {one["id"]: set(one["severities"].split(", ")) for one in _CHECK.finditer(PAGE)}
ATTACKS = {one["name"]: one["tries"] for one in _ATTACK.finditer(_PROBE)}
JSON_KEYS = set(re.findall(r"\w+", " ".join(re.findall(r"^\| (`[^|]+`) \|", _JSON, re.MULTILINE))))
