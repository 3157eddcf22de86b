"""What runs in a process of its own, so that no part's memory or warm kernels are another's.

python -m bench.text.child rows WORK SHAPE STEPS        writes the rows and what they are like
python -m bench.text.child SIDE WORK OUT                trains; writes OUT/bench.json
python -m bench.text.child held WORK [OUT ...]          writes WORK/held.json: the held-out loss of the base and of each
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.text import rows, sides

HELD_ROWS = 48


def make_rows(base: Path, work: Path, shape: str, steps: int) -> None:
    """Write the rows in our file's order and in the order they are shown, the held-out rows, and `shape.json`."""
    from importlib.metadata import version

    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    made = rows.make(shape, steps * sides.ROWS_A_STEP, "train", tokenizer)
    shown = [made[number] for number in sides.our_order(len(made))]
    rows.write(work / "shuffled.jsonl", made)
    rows.write(work / "train.jsonl", shown)
    rows.write(work / "heldout.jsonl", rows.make(shape, HELD_ROWS, "heldout", tokenizer))
    read = [rows.tokens(row, tokenizer) for row in shown]
    by_step = [read[i : i + sides.ROWS_A_STEP] for i in range(0, len(read), sides.ROWS_A_STEP)]
    facts = {
        "rows": len(read),
        "lengths": rows.percentiles([len(row.ids) for row in read]),
        "over_400": sum(len(row.ids) > 400 for row in read),
        "real": [sum(len(row.ids) for row in step) for step in by_step],
        "targets": [sum(row.targets for row in step) for step in by_step],
        "padded": [_padded(step) for step in by_step],
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    (work / "shape.json").write_text(json.dumps(facts), encoding="utf-8")


def _padded(step: Sequence[rows.Tokens]) -> int:
    """Count a step's tokens with what micro-batches of 4 rows are filled up with."""
    size = sides.ROWS_A_MICRO_BATCH
    parts = [step[i : i + size] for i in range(0, len(step), size)]
    return sum(len(part) * max(len(row.ids) for row in part) for part in parts)


def held_out_loss(base: Path, adapter: Path | None, held: Sequence[Any]) -> float:
    """Mean of -log p over the targets of all rows, each row alone, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    total, targets = 0.0, 0
    with torch.no_grad():
        for row in held:
            read = rows.tokens(row, tokenizer)
            ids = torch.tensor([read.ids])
            shares = model(input_ids=ids).logits[0, read.start - 1 : read.end - 1].log_softmax(-1)
            wanted = ids[0, read.start : read.end]
            total -= float(shares.gather(1, wanted[:, None]).double().sum())
            targets += read.targets
    return total / targets


def main(arguments: Sequence[str]) -> None:
    """Do what the first argument names."""
    name, work = arguments[0], Path(arguments[1])
    base = Path(json.loads((work / "job.json").read_text(encoding="utf-8"))["base"])
    if name == "rows":
        make_rows(base, work, arguments[2], int(arguments[3]))
    elif name == "held":
        held = rows.read(work / "heldout.jsonl")
        found = {"base": held_out_loss(base, None, held)}
        found |= {out: held_out_loss(base, Path(out), held) for out in arguments[2:]}
        (work / "held.json").write_text(json.dumps(found), encoding="utf-8")
    else:
        out = Path(arguments[2])
        trained = sides.SIDES[name](base, work, out)
        (out / "bench.json").write_text(json.dumps(dataclasses.asdict(trained)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
