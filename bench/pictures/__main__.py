"""`python -m bench.pictures`: run the sides in turn and print the tables; see the package for what is compared.

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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import pictures
from bench.pictures import bases
from bench.processes import child
from lora_scripts import embedded

CHILD = "bench.pictures.child"
SIDES = ("ours", "recipe-float32", "recipe-bf16")
# Name in the JSON file, words above the column, format.
FIGURES = (
    ("steps_a_second", "steps/s", "9.3f"),
    ("step_seconds", "s/step", "8.3f"),
    ("job_seconds", "job s", "8.1f"),
    ("peak_gb", "peak GB", "8.2f"),
    ("of_the_rate", "of the rate", "12.2f"),
    ("loss", "loss", "8.4f"),
)


def measure(case: bases.Case, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run all sides; return facts, runs, medians and ratios."""
    own = case.name == "embedded"
    base = embedded.resolve("embedded/pictures") if own else work / "base"
    data = bases.EXAMPLE if own else work / "data"
    job = work / "job.json"
    steps = arguments.steps or case.steps
    job.write_text(json.dumps({"case": case.name, "base": str(base), "pictures": str(data), "steps": steps}))
    child(CHILD, work, "prepare", job)
    facts = json.loads((work / "facts.json").read_text(encoding="utf-8"))
    runs = []
    for number in range(1, arguments.repeats + 1):
        for side in arguments.sides:
            out = work / f"{side}-{number}"
            print(f"{case.name}: {side}, round {number}", file=sys.stderr, flush=True)
            seconds, peak = child(CHILD, work, side, job, out)
            runs.append({"side": side, "out": str(out), **figures(side, out, seconds, peak, facts)})
    if own:
        child(CHILD, work, "loss", job, *(run["out"] for run in runs))
        losses = json.loads((work / "losses.json").read_text(encoding="utf-8"))
        runs = [{**run, "loss": losses[run["out"]]} for run in runs]
        facts["base_loss"] = losses["base"]
    for run in runs:
        del run["out"]
    middle = medians(runs)
    return {"facts": facts, "steps": steps, "runs": runs, "medians": middle, "ratios": ratios(middle)}


def figures(side: str, out: Path, seconds: float, peak: int, facts: Mapping[str, Any]) -> dict[str, float]:
    """Return a run's figures; the first step counts only in the job's time."""
    own = json.loads((out / "bench.json").read_text(encoding="utf-8"))["seconds"][1:]
    step = sum(own) / len(own)
    if side == "ours":
        held = json.loads((out / "run.json").read_text(encoding="utf-8"))["resolved"]["base_precision"]
    else:
        held = "bfloat16" if side.endswith("bf16") else "float32"
    rate = facts["rates"][held]
    return {
        "steps_a_second": 1 / step,
        "step_seconds": step,
        "job_seconds": seconds,
        "peak_gb": peak / 1e9,
        "of_the_rate": facts["operations"] / step / rate,
    }


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return each side's median of every figure."""
    sides = dict.fromkeys(run["side"] for run in runs)
    return {
        side: {
            name: median(run[name] for run in runs if run["side"] == side) for name, _, _ in FIGURES if name in runs[0]
        }
        for side in sides
    }


def ratios(middle: Mapping[str, Mapping[str, float]], ours: str = "ours") -> dict[str, dict[str, float]]:
    """Return our medians over each other side's."""
    others = [side for side in middle if side != ours] if ours in middle else []
    return {
        f"{ours}/{side}": {name: middle[ours][name] / middle[side][name] for name in middle[ours]} for side in others
    }


def lines(case: bases.Case, result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is printed of one case."""
    facts = result["facts"]
    rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in facts["rates"].items())
    job = f"{case.pixels} px, batch {case.batch}, {result['steps']} steps"
    yield f"{case.name}: {job}, {facts['operations'] / 1e9:.0f} GFLOP a step"
    yield f"matrix product, GFLOP/s: {rates}" + (
        f"; loss of the base {facts['base_loss']:.4f}" if "base_loss" in facts else ""
    )
    shown = [figure for figure in FIGURES if figure[0] in result["runs"][0]]
    yield " ".join([f"{'':22}", *(f"{words:>{_width(form)}}" for _, words, form in shown)])
    for run in result["runs"]:
        yield _line(run["side"], run, shown)
    for side, row in result["medians"].items():
        yield _line(f"median {side}", row, shown)
    for pair, row in result["ratios"].items():
        yield _line(pair, row, [(name, words, f"{_width(form)}.3f") for name, words, form in shown])


def _line(title: str, row: Mapping[str, float], shown: Sequence[tuple[str, str, str]]) -> str:
    return " ".join([f"{title:22}", *(f"{row[name]:{form}}" for name, _, form in shown)])


def _width(form: str) -> int:
    return int(form.partition(".")[0])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.pictures",
        description=pictures.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--case", choices=(*bases.CASES, "both"), default="both")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each side")
    parser.add_argument("--steps", type=int, help="optimizer steps a run, 2 at least, instead of the case's own")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--json", type=Path, help="write all that was measured to this file")
    arguments = parser.parse_args(argv)
    if (arguments.steps is not None and arguments.steps < 2) or arguments.repeats < 1:
        parser.error("--steps must be at least 2 and --repeats at least 1")
    results = {}
    for name in bases.CASES if arguments.case == "both" else (arguments.case,):
        work = Path(tempfile.mkdtemp(prefix="bench-pictures-"))
        try:
            results[name] = measure(bases.CASES[name], arguments, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        if len(results) == 1:
            facts = results[name]["facts"]
            print(f"{facts['threads']} threads, {os.cpu_count()} CPUs; {facts['versions']}")
        print("", *lines(bases.CASES[name], results[name]), sep="\n", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    # A terminated benchmark ends its child and clears its folder too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
