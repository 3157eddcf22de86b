"""The report as JSON: findings, and nothing of files that no finding is about."""

from __future__ import annotations

import json
from typing import Any

from lora_scripts import messages
from lora_scripts.doctor.finding import EXAMPLES, Finding, Item, Severity
from lora_scripts.doctor.run import Examination

SCHEMA = 1


def build(done: Examination) -> dict[str, Any]:
    """Return the report as plain values; only sentences depend on the language."""
    return {
        "schema": SCHEMA,
        "folder": str(done.settings.path),
        "kind": done.kind,
        "looked_at": done.looked_at,
        "summary": {
            **{str(severity): len(done.of(severity)) for severity in Severity},
            "ignored": len(done.ignored),
        },
        "findings": [_finding(finding) for finding in (*done.findings, *done.ignored)],
    }


def encode(done: Examination) -> bytes:
    """Return the report's bytes: ASCII, so that names that are no UTF-8 survive as they are."""
    return (json.dumps(build(done), ensure_ascii=True, indent=2, allow_nan=False) + "\n").encode("ascii")


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.id,
        "severity": str(finding.severity),
        "what": finding.sentence("what"),
        "why": finding.sentence("why"),
        "count": finding.count,
        "fix": finding.sentence("fix"),
        "fixable": bool(finding.fix),
        "items": [_item(item) for item in finding.items],
        "examples": [str(example) for example in finding.examples[:EXAMPLES]],
        "ignored": finding.reason or None,
    }


def _item(item: Item) -> dict[str, Any]:
    return {
        "files": list(item.files),
        "detail": None if item.detail is None else messages.text(item.detail.code, **item.detail.params),
        "box": None if item.box is None else [round(min(1.0, max(0.0, float(edge))), 4) for edge in item.box],
    }
