"""Time labelling: our captioner `clip` beside a plain loop of transformers; or the doctor on a large folder.

    python -m bench.labels [--case clip|doctor] [--batches 16 64] [--count 2] [--repeats 3] [--json FILE]

Case clip: a CLIP of exactly ViT-B/32's shape (151 M parameters), random weights in float32, and generated pictures of
512 px, decoded before anything is timed. The sides run in turn, each run in a process of its own, one at a time.
Case doctor: see bench/labels_doctor.py.

Alike on both sides: model, device, threads, float32, pictures, batch size, the package's banks of phrases with all
their templates (whose embeddings are averaged), at most 256 texts at once, padded to the longest of them.

What differs:

    ours        the package's captioner with its defaults. A bank is encoded once for a model and kept in the user's
                cache; a picture goes through the image tower once, and the caption is grown from vectors.
    plain       what a tutorial writes, batch by batch: `processor(images=...)`, `get_image_features`; the whole bank
                through the tokenizer and `get_text_features`; a softmax in each group, its first phrase is taken.

How it is measured:

    pictures/s  over `--count` batches, each side warmed up by one picture and a few texts before.
    tower       share of our time that the image tower takes; the rest is making pictures ready and choosing phrases.
    bank s      what encoding the banks costs ours, once for a model: not part of its pictures/s, since any later run
                finds them in the cache.
    from        number of pictures from which ours is three times as fast though it has just encoded the banks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.processes import child

SIDES = ("ours", "plain")
SIDE, TEXTS_AT_ONCE = 512, 256
AIM = 3
FIGURES = ("pictures_a_second", "tower_share", "bank_seconds")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.labels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=("clip", "doctor"), default="clip")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64], help="pictures at once")
    parser.add_argument("--count", type=int, default=2, help="batches a run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--json", type=Path, help="write all that was measured to this file")
    parser.add_argument("--run", nargs=3, metavar=("SIDE", "MODEL", "OUT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if min(*chosen.batches, chosen.count, chosen.repeats) < 1:
        parser.error("--batches, --count and --repeats must be at least 1")
    if chosen.case == "doctor":
        from bench import labels_doctor

        return labels_doctor.main(["--json", str(chosen.json)] if chosen.json else [])
    if chosen.run:
        side, model, out = chosen.run
        Path(out).write_text(json.dumps(run(side, Path(model), chosen.batches[0], chosen.count)), encoding="utf-8")
        return 0
    work = Path(tempfile.mkdtemp(prefix="bench-labels-"))
    try:
        # The banks' cache of the runs is not the person's own.
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        measured = measure(chosen, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(*lines(measured), sep="\n")
    if chosen.json:
        chosen.json.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(chosen: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Run the sides in turn, for each batch size."""
    model, out = work / "model", work / "out.json"
    child("bench.labels", work, "--run", "model", model, out)
    measured = []
    for batch in chosen.batches:
        runs: list[dict[str, Any]] = []
        for number in range(1, chosen.repeats + 1):
            for side in SIDES:
                print(f"batch {batch}: {side}, round {number}", file=sys.stderr, flush=True)
                child("bench.labels", work, "--batches", batch, "--count", chosen.count, "--run", side, model, out)
                runs.append({"side": side, **json.loads(out.read_text(encoding="utf-8"))})
        measured.append({"batch": batch, "count": chosen.count, "runs": runs, **summary(runs)})
    return measured


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return each side's medians, how many times as fast ours is, and from how many pictures on with the banks."""
    middle = {
        side: {key: median(run[key] for run in runs if run["side"] == side and key in run) for key in FIGURES[:count]}
        for side, count in (("ours", 3), ("plain", 1))
    }
    ours, plain = (1 / middle[side]["pictures_a_second"] for side in SIDES)
    # n plain = AIM (bank + n ours), solved for n.
    gain = plain - AIM * ours
    from_count = AIM * middle["ours"]["bank_seconds"] / gain if gain > 0 else None
    return {"medians": middle, "ratio": plain / ours, "from_pictures": from_count}


def lines(measured: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what is printed."""
    facts = measured[0]["runs"][0]
    yield f"{facts['threads']} threads, {os.cpu_count()} CPUs; {facts['versions']}"
    yield f"{facts['phrases']} phrases, {facts['texts']} texts of {facts['tokens']:.1f} tokens on the mean"
    yield f"{'':16} {'pictures/s':>10} {'tower':>6} {'bank s':>7} {'ratio':>6} {'from':>6}"
    for row in measured:
        for run_ in row["runs"]:
            yield _line(f"{row['batch']:>4} {run_['side']}", run_)
        for side in SIDES:
            yield _line(f"{row['batch']:>4} median {side}", row["medians"][side])
        from_count = "never" if row["from_pictures"] is None else f"{row['from_pictures']:.0f}"
        yield f"{row['batch']:>4} {'ours/plain':11} {'':>10} {'':>6} {'':>7} {row['ratio']:6.2f} {from_count:>6}"


def _line(title: str, row: Mapping[str, float]) -> str:
    tower = f"{row['tower_share']:6.1%}" if "tower_share" in row else ""
    bank = f"{row['bank_seconds']:7.1f}" if "bank_seconds" in row else ""
    return f"{title:16} {row['pictures_a_second']:10.2f} {tower:>6} {bank:>7}".rstrip()


def run(side: str, model: Path, batch: int, count: int) -> dict[str, Any]:
    """Do one run in this process; "model" writes the model instead."""
    import torch
    import transformers

    if side == "model":
        write_model(model)
        return {}
    pictures = [draw(number) for number in range(batch * count)]
    figures, _ = (ours if side == "ours" else plain)(model, pictures, batch)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {**figures, **bank_facts(model), "threads": torch.get_num_threads(), "versions": versions}


def ours(model: Path, pictures: Sequence[Any], batch: int) -> tuple[dict[str, float], list[Any]]:
    """Return figures and labels; the banks are encoded anew, outside of what is timed as labelling."""
    import dataclasses

    from lora_scripts.captioners import _banks, clip
    from lora_scripts.files import user_cache

    spent = [0.0]
    shutil.rmtree(user_cache() / "labels", ignore_errors=True)
    captioner = clip.build(clip.Config(groups=("count",)), str(model), "cpu")
    towers = captioner.towers

    def timed(ready: Any) -> Any:
        began = time.perf_counter()
        seen = towers.see(ready)
        spent[0] += time.perf_counter() - began
        return seen

    began = time.perf_counter()
    banks = _banks.load()
    captioner = clip.Clip(clip.Config(), dataclasses.replace(towers, see=timed), _banks.embed(towers, banks), "")
    bank_seconds = time.perf_counter() - began
    captioner.caption([pictures[0].rotate(90)])
    spent[0], began = 0.0, time.perf_counter()
    labels = [label for at in range(0, len(pictures), batch) for label in captioner.caption(pictures[at : at + batch])]
    seconds = time.perf_counter() - began
    speed = len(pictures) / seconds
    return {"pictures_a_second": speed, "tower_share": spent[0] / seconds, "bank_seconds": bank_seconds}, labels


def plain(model: Path, pictures: Sequence[Any], batch: int) -> tuple[dict[str, float], list[Any]]:
    """Return figures, and of each picture the first phrase of each group."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    network: Any = CLIPModel.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer: Any = CLIPTokenizer.from_pretrained(model)
    processor: Any = CLIPImageProcessorPil.from_pretrained(model)
    banks = phrase_banks()

    def label(shown: Sequence[Any], groups: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> list[dict[str, str]]:
        found: list[dict[str, str]] = [{} for _ in shown]
        pixels = processor(images=list(shown), return_tensors="pt").pixel_values
        seen = torch.nn.functional.normalize(network.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        for group, (phrases, templates) in groups.items():
            texts = [template.replace("{}", phrase) for phrase in phrases for template in templates]
            parts = []
            for at in range(0, len(texts), TEXTS_AT_ONCE):
                tokens = tokenizer(texts[at : at + TEXTS_AT_ONCE], padding=True, truncation=True, return_tensors="pt")
                parts.append(network.get_text_features(**tokens).pooler_output)
            read = torch.nn.functional.normalize(torch.cat(parts), dim=-1)
            read = read.reshape(len(phrases), len(templates), -1).mean(1)
            cosines = seen @ torch.nn.functional.normalize(read, dim=-1).T
            shares = (cosines * network.logit_scale.exp()).softmax(-1)
            for row, best in enumerate(shares.argmax(-1).tolist()):
                found[row][group] = phrases[best]
        return found

    with torch.inference_mode():
        label([pictures[0].rotate(90)], {"count": (["one", "two"], ["{}"])})
        began = time.perf_counter()
        labels = [one for at in range(0, len(pictures), batch) for one in label(pictures[at : at + batch], banks)]
        seconds = time.perf_counter() - began
    return {"pictures_a_second": len(pictures) / seconds}, labels


def phrase_banks() -> dict[str, tuple[list[str], tuple[str, ...]]]:
    """Return the package's banks: group -> (phrases, contrast phrases last; templates)."""
    from lora_scripts.captioners import _banks

    return {bank.group: ([*bank.phrases, *bank.contrast], bank.templates) for bank in _banks.load()}


def bank_facts(model: Path) -> dict[str, float]:
    """Return how many phrases and texts there are, and how long a text is."""
    from transformers import CLIPTokenizer

    tokenizer: Any = CLIPTokenizer.from_pretrained(model)
    banks = phrase_banks().values()
    texts = [
        template.replace("{}", phrase) for phrases, templates in banks for phrase in phrases for template in templates
    ]
    lengths = [len(ids) for ids in tokenizer(texts).input_ids]
    return {
        "phrases": sum(len(phrases) for phrases, _ in banks),
        "texts": len(texts),
        "tokens": sum(lengths) / len(lengths),
    }


def draw(number: int) -> Any:
    """Return a picture of coarse and fine colours."""
    import numpy
    from PIL import Image

    rng = numpy.random.default_rng(number)
    picture = Image.new("RGB", (SIDE, SIDE))
    for side, opacity in ((4, 1.0), (40, 0.4)):
        values = Image.fromarray(rng.integers(0, 256, (side, side, 3), numpy.uint8))
        picture = Image.blend(picture, values.resize((SIDE, SIDE), Image.Resampling.BICUBIC), opacity)
    return picture


def write_model(folder: Path) -> None:
    """Write a CLIP of ViT-B/32's shape: random weights, and byte pairs learned on the banks, about a token a word."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from lora_scripts.embedded.training.networks import train_tokenizer

    banks = phrase_banks().values()
    texts = [
        template.replace("{}", phrase) for phrases, templates in banks for phrase in phrases for template in templates
    ]
    tokenizer = train_tokenizer(texts, folder)
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    CLIPModel(CLIPConfig(text_config={**ends, "pad_token_id": tokenizer.pad_token_id})).save_pretrained(folder)
    size = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    settings = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "do_resize": True, **size}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


if __name__ == "__main__":
    # A terminated benchmark ends its child and clears its folder too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise SystemExit(main())
