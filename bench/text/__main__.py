"""`python -m bench.text`: run the sides in turn and print the table; see the package for what is compared.

This process imports no torch: on Linux a child's peak memory begins with its parent's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import text
from bench.processes import child
from bench.text import table
from lora_scripts.preparation import resolve_base

SIDES = ("ours", "trl", "trl-kept", "plain")
CHILD = "bench.text.child"


def measure(shape: str, arguments: argparse.Namespace, base: Path, work: Path) -> dict[str, Any]:
    """Run all sides on rows of one shape; return shape, runs, medians and ratios."""
    (work / "job.json").write_text(json.dumps({"base": str(base)}), encoding="utf-8")
    child(CHILD, work, "rows", work, shape, arguments.steps)
    facts = json.loads((work / "shape.json").read_text(encoding="utf-8"))
    made = []
    for number in range(1, arguments.repeats + 1):
        for side in arguments.sides:
            out = work / f"{side}-{number}"
            print(f"{shape}: {side}, round {number}", file=sys.stderr, flush=True)
            made.append((side, number, out, *child(CHILD, work, side, work, out)))
    child(CHILD, work, "held", work, *(out for _, _, out, _, _ in made))
    losses = json.loads((work / "held.json").read_text(encoding="utf-8"))
    runs = []
    for side, number, out, seconds, peak in made:
        own = json.loads((out / "bench.json").read_text(encoding="utf-8"))
        runs.append(table.Run(side, number, own["seconds"], own["losses"], seconds, peak, losses[str(out)]))
    found = [(run.side, table.figures(run, facts)) for run in runs]
    middle = table.medians(found)
    return {
        "shape": facts,
        "base_held_out_loss": losses["base"],
        "runs": [{**vars(run), **row} for run, (_, row) in zip(runs, found, strict=True)],
        "medians": middle,
        "ratios": table.ratios(middle),
    }


def lines(name: str, result: dict[str, Any]) -> Iterator[str]:
    """Yield what is printed of one shape."""
    yield from table.shape_lines(name, result["shape"], result["base_held_out_loss"])
    yield from table.table([(run["side"], run) for run in result["runs"]])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.text", description=text.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", choices=("mixed", "equal", "both"), default="both")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each side")
    parser.add_argument(
        "--steps", type=int, default=10, help="optimizer steps a run, 2 at least; the first is not timed"
    )
    parser.add_argument("--base", default="embedded/smollm2", help="as in a config; a folder or an embedded model")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["ours", "trl", "plain"])
    parser.add_argument("--json", type=Path, help="write all that was measured to this file")
    arguments = parser.parse_args(argv)
    if arguments.steps < 2 or arguments.repeats < 1:
        parser.error("--steps must be at least 2 and --repeats at least 1")
    base = resolve_base(arguments.base)
    results = {}
    for shape in ("mixed", "equal") if arguments.rows == "both" else (arguments.rows,):
        work = Path(tempfile.mkdtemp(prefix="bench-text-"))
        try:
            results[shape] = measure(shape, arguments, base.resolve(), work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        if len(results) == 1:
            facts = results[shape]["shape"]
            print(f"{facts['threads']} threads, {os.cpu_count()} CPUs; {facts['versions']}")
        print("", *lines(shape, results[shape]), sep="\n", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    # A terminated benchmark ends its child and clears its folder too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
