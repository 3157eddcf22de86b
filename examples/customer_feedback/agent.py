"""Play the support agent: compare drafts with what the team decided, and append what it did to feedback.jsonl.

    python examples/customer_feedback/agent.py --drafts drafts.jsonl --decided inbox.en.jsonl --feedback feedback.jsonl

A real team does this in its own tool, one line a message:

    {"id": ..., "message": ..., "label": ..., "reply": ..., "adapter": ...,
     "edit": {"label": ..., "reply": ...}, "thumb": "up" | "down", "reason": ...}

`label` and `reply` are what the model said, `adapter` is the sha256 of the file it said it with; `edit` holds only
what the agent changed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

KEPT = ("id", "customer", "lang", "message", "label", "confidence", "reply")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def judge(draft: dict[str, Any], decided: dict[str, Any]) -> dict[str, Any]:
    """Return one line of feedback: what was right stays, what was wrong is put right."""
    row = {key: draft[key] for key in KEPT if key in draft} | {"adapter": draft["adapter_sha256"]}
    edit: dict[str, str] = {}
    if draft["label"] != decided["label"]:
        edit["label"] = decided["label"]
    if "reply" in draft and "reply" in decided and draft["reply"].strip() != decided["reply"].strip():
        edit["reply"] = decided["reply"]
    if edit:
        return row | {"edit": edit, "reason": "label" if "label" in edit else "reply"}
    if "reply" in decided:
        return row | {"thumb": "up"}
    # Nobody looked at the reply: only the label was confirmed.
    return {key: value for key, value in row.items() if key != "reply"} | {"thumb": "up"}


def main() -> None:
    """Append one line of feedback for each message that both files hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--drafts", "--decided", "--feedback"):
        parser.add_argument(name, type=Path, required=True)
    arguments = parser.parse_args()
    decided = {row["id"]: row for row in read(arguments.decided)}
    rows = [judge(draft, decided[draft["id"]]) for draft in read(arguments.drafts) if draft["id"] in decided]
    with arguments.feedback.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    labels = sum("label" in row.get("edit", {}) for row in rows)
    replies = sum("reply" in row.get("edit", {}) for row in rows)
    print(f"{len(rows)} lines of feedback: {labels} labels and {replies} replies corrected")


if __name__ == "__main__":
    main()
