"""A report with one of everything."""

from __future__ import annotations

from mgf.sqlalchemy.audit import Finding, NotProven, Report

TENANTS = ["00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"]
VIEW = "ALTER VIEW public.numbers SET (security_invoker = true);"
INDEX = "no index begins with tenant_id"
HELD = {"own-read": "held", "read": "held", "unscoped": "held", "truncate": "not_applicable"}

AUDITED = Report(
    "shop",
    "shop_app",
    findings=(
        Finding("view-not-invoker", "error", "public.numbers", "reads as its owner", VIEW),
        *(
            Finding(
                "tenant-column-no-index",
                "warning",
                f"public.{name}",
                INDEX,
                f"CREATE INDEX ON {name} (tenant_id);",
            )
            for name in ("event", "line")
        ),
        Finding("policy-no-floor", "info", "public.line", "has no floor", "CREATE POLICY ...;"),
    ),
    not_proven=(
        NotProven("public.remark", "policy more", "it is no canonical one"),
        NotProven("public.line", "policy other", "it is no canonical one"),
    ),
    ignored={"table-published public.event": "the warehouse takes all"},
)
PROBED = Report(
    "shop",
    "shop_app",
    findings=tuple(
        Finding(f"probe-{attack}", "critical", "public.numbers", f"shows {attack}", VIEW)
        for attack in ("read", "unscoped")
    ),
    not_proven=(
        NotProven("public.remark", "own-read", "no row could be made"),
        NotProven("public.remark", "read", "no row could be made"),
    ),
    probed={
        "tenants": TENANTS,
        "control": "caught",
        "seconds": 0.84,
        "relations": {
            "public.line": HELD,
            "public.numbers": {**HELD, "read": "leaked", "unscoped": "leaked"},
            "public.remark": {**HELD, "own-read": "not_proven", "read": "not_proven"},
            "role reader": {"read": "held"},
        },
    },
)
BOTH = AUDITED.merged(PROBED)
CLEAN = Report(
    "shop",
    "shop_app",
    probed={**PROBED.probed, "relations": {"public.line": HELD, "role reader": {"read": "held"}}},
)
