"""Train the embedded labeller: a small CLIP that tells the concepts of small drawings apart.

Its image tower is convolutional: on some five thousand pictures it learns where a vision transformer of the same size
does not. Both towers are ordinary transformers classes, an image classifier whose classes are the shared dimensions and
a text encoder with projection, each in a folder of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .data import FLAT, HIGH_CONTRAST, NOTO, SOLID, slug_of, stems_of, tar_members
from .networks import build_image_tower, build_label_text_tower, load_tokenizer
from .state import Stage

SIZE = 64
TWITTER = "emoji-datasource-twitter-16.0.0.tgz"
STYLES = ("noto", "flat", "3d", "high contrast")
HELD_OUT_STYLE = "twitter"
# Their other styles are learned from; these pictures of this style are the example, which must stay unseen.
EXAMPLE_STYLE = "high contrast"
NO_CATEGORIES = {"Flags", "Component"}
NO_SUBCATEGORIES = {"time", "keycap", "family"}
GENDERS = ("-200d-2640", "-200d-2642")

BATCH, TEXTS = 192, 256
WARM_UP, FLOOR = 200, 0.02
HEAD_SHARE = 0.5


def prepare(tarballs: Path, work: Path, example: Path) -> None:
    """Draw every picture once, with its transparency, into `labeller.npz` and `labeller.json`.

    Args:
        example: folder of the example's pictures; those names are marked, and their high-contrast pictures not learned.
    """
    rows = json.loads(tar_members(tarballs / NOTO, "package/emoji.json")["emoji.json"])
    kept = [row for row in rows if _is_kept(row)]
    sources = {
        "noto": (NOTO, tar_members(tarballs / NOTO, "package/img/google/64/")),
        "flat": (FLAT, tar_members(tarballs / FLAT, "package/assets/")),
        "3d": (SOLID, tar_members(tarballs / SOLID, "package/assets/")),
        EXAMPLE_STYLE: (HIGH_CONTRAST, tar_members(tarballs / HIGH_CONTRAST, "package/icons/high-contrast/")),
        HELD_OUT_STYLE: (TWITTER, tar_members(tarballs / TWITTER, "package/img/twitter/64/")),
    }
    shown = {path.stem for path in example.glob("*.png")}
    pictures, found = [], []
    for row in kept:
        codepoints = row["unified"].lower()
        slug = slug_of(codepoints)
        for style, (package, members) in sources.items():
            endings = {"flat": "svg", "3d": "webp", EXAMPLE_STYLE: "svg"}.get(style, "png")
            stems = [slug or "?"] if style == EXAMPLE_STYLE else stems_of(codepoints)
            name = next((f"{stem}.{endings}" for stem in stems if f"{stem}.{endings}" in members), None)
            if name is None:
                continue
            pictures.append(_rgba(name, members[name]))
            known = row["name"].lower().replace(" ", "-")
            found.append(
                {
                    "name": row["name"].lower(),
                    "short_name": row["short_name"].replace("_", " ").replace("-", " "),
                    "style": style,
                    "group": row["category"],
                    "example": style == EXAMPLE_STYLE and known in shown,
                    "package": package.removesuffix(".tgz"),
                    "file": name,
                    "sha256": hashlib.sha256(members[name]).hexdigest(),
                }
            )
    work.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(work / "labeller.npz", pictures=np.stack(pictures))
    (work / "labeller.json").write_text(json.dumps(found))
    counts = {style: sum(row["style"] == style for row in found) for style in sources}
    print(f"{len(kept)} names, {counts}, {sum(row['example'] for row in found)} of {len(shown)} of the example")


def _is_kept(row: dict) -> bool:
    if row["category"] in NO_CATEGORIES or row["subcategory"] in NO_SUBCATEGORIES or not row["has_img_google"]:
        return False
    return not any(mark in row["unified"].lower() for mark in GENDERS)


def _rgba(name: str, data: bytes) -> np.ndarray:
    import io

    from PIL import Image

    if name.endswith(".svg"):
        import resvg_py

        data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=SIZE * 2, height=SIZE * 2))
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def load(work: Path) -> tuple[torch.Tensor, list[dict]]:
    """Return ((n, 4, 64, 64) uint8, one row a picture) as `prepare` wrote them."""
    pictures = torch.from_numpy(np.load(work / "labeller.npz")["pictures"]).permute(0, 3, 1, 2).contiguous()
    return pictures, json.loads((work / "labeller.json").read_text())


def wordings(row: dict) -> list[str]:
    """What a name may be called while learning."""
    name, short = row["name"], row["short_name"]
    return [name, name, short, f"a picture of {name}"]


def augment(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn, scale, shift, mirror, tint and put over a colour: (n, 4, 64, 64) uint8 -> (n, 3, 64, 64) in -1..1."""
    n = len(pictures)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    picture = pictures.float() / 255
    picture = torch.cat([picture[:, :3] * picture[:, 3:], picture[:, 3:]], 1)
    angle = (draw(n) - 0.5) * 2 * math.radians(25)
    scale = torch.exp((draw(n) - 0.35) * 0.7)
    mirror = torch.where(draw(n) < 0.5, -1.0, 1.0)
    stretch = torch.exp((draw(n) - 0.5) * 0.3)
    rows = torch.stack(
        [
            torch.stack([scale * stretch * angle.cos() * mirror, -scale * angle.sin(), (draw(n) - 0.5) * 0.4], 1),
            torch.stack([scale * stretch * angle.sin() * mirror, scale * angle.cos(), (draw(n) - 0.5) * 0.4], 1),
        ],
        1,
    )
    picture = F.grid_sample(picture, F.affine_grid(rows, list(picture.shape), align_corners=False), align_corners=False)
    colour, opacity = picture[:, :3], picture[:, 3:]
    back = torch.where((draw(n) < 0.6)[:, None], torch.ones(n, 3), draw(n, 3))[:, :, None, None]
    picture = colour + back * (1 - opacity)
    grey = picture.mean(1, keepdim=True)
    faded = (draw(n) * 1.6).clamp(max=1.0)[:, None, None, None]
    picture = grey + (picture - grey) * faded
    # A turn of the hues: the channels mixed a little with each other.
    mix = torch.eye(3) + 0.25 * (draw(n, 3, 3) - 0.5)
    picture = torch.einsum("nij,njhw->nihw", mix / mix.sum(2, keepdim=True), picture)
    contrast, light = 0.6 + 0.8 * draw(n), 0.3 * (draw(n) - 0.5)
    picture = (picture - 0.5) * contrast[:, None, None, None] + 0.5 + light[:, None, None, None]
    return picture.clamp(0, 1) * 2 - 1


def on_white(pictures: torch.Tensor) -> torch.Tensor:
    """(n, 4, 64, 64) uint8 -> (n, 3, 64, 64) in -1..1, over white."""
    picture = pictures.float() / 255
    return (picture[:, :3] * picture[:, 3:] + 1 - picture[:, 3:]) * 2 - 1


class Labeller(torch.nn.Module):
    """Both towers, the temperature, and a head over the names that only helps to learn."""

    def __init__(self, tokenizer, names: int):
        super().__init__()
        self.image, self.text = build_image_tower(), build_label_text_tower(tokenizer)
        self.scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.head = torch.nn.Linear(self.image.config.hidden_sizes[-1], names)

    def images(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (embeddings of norm 1, logits over the names)."""
        pooled = self.image.resnet(pictures).pooler_output
        return F.normalize(self.image.classifier(pooled).float(), dim=-1), self.head(pooled.flatten(1)).float()

    def texts(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.text(tokens).text_embeds.float(), dim=-1)


def build(work: Path, vocabulary: Path) -> tuple[Labeller, torch.Tensor, torch.Tensor, list[dict], torch.Tensor]:
    """Return (model, pictures, name index of each, rows, token table (names, 4, tokens))."""
    pictures, rows = load(work)
    tokenizer = load_tokenizer(vocabulary)
    first = {row["name"]: row for row in reversed(rows)}
    names = sorted(first)
    place = {name: index for index, name in enumerate(names)}
    table = torch.stack(
        [
            tokenizer(wordings(first[name]), padding="max_length", truncation=True, return_tensors="pt").input_ids
            for name in names
        ]
    )
    torch.manual_seed(0)
    return Labeller(tokenizer, len(names)), pictures, torch.tensor([place[row["name"]] for row in rows]), rows, table


def learned(rows: list[dict]) -> torch.Tensor:
    """The indices of the pictures that are learned from."""
    return torch.tensor([i for i, row in enumerate(rows) if row["style"] in STYLES and not row["example"]])


def train(work: Path, total: int, vocabulary: Path) -> None:
    """Train to `total` steps: 192 pictures against 256 names, AdamW 2e-3, bf16 autocast, average .998."""
    model, pictures, classes, rows, table = build(work, vocabulary)
    chosen_from = learned(rows)
    stage = Stage(work / "labeller.safetensors", {"labeller": model}, rate=2e-3, ema_decay=0.998, seed=3)
    model.train()

    def one_step() -> torch.Tensor:
        generator = stage.generator()
        chosen = chosen_from[torch.randint(len(chosen_from), (BATCH,), generator=generator)]
        shown = augment(pictures[chosen], generator)
        own = classes[chosen]
        others = torch.randperm(len(table), generator=generator)
        inside = torch.unique(own)
        names = torch.cat([inside, others[~torch.isin(others, inside)][: max(TEXTS - len(inside), 0)]])
        wording = torch.randint(table.shape[1], (len(names),), generator=generator)
        tokens = table[names, wording]
        longest = int((tokens != tokens[:, -1:].max()).sum(1).max()) + 1
        with torch.autocast("cpu", torch.bfloat16):
            images, guesses = model.images(shown)
            texts = model.texts(tokens[:, : min(longest + 1, tokens.shape[1])])
        logits = images @ texts.T * model.scale.exp().clamp(max=100)
        target = (own[:, None] == names[None, :]).int().argmax(1)
        seen = torch.tensor([int((own == name).any()) for name in names], dtype=torch.bool)
        back = logits.T[seen]
        positive = (own[None, :] == names[seen][:, None]).float()
        backward = -(F.log_softmax(back, -1) * positive).sum(1) / positive.sum(1)
        both = F.cross_entropy(logits, target, label_smoothing=0.05) + 0.5 * backward.mean()
        return both + HEAD_SHARE * F.cross_entropy(guesses, own, label_smoothing=0.1)

    def factor(step: int) -> float:
        return min((step + 1) / WARM_UP, FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * step / total)))

    stage.run(total, one_step, factor, log=work / "labeller_log.jsonl")


@torch.no_grad()
def averaged(work: Path, vocabulary: Path) -> tuple[Labeller, torch.Tensor, torch.Tensor, list[dict], torch.Tensor]:
    """Return `build`'s parts with the averaged weights; statistics of the norms are measured again for them."""
    model, pictures, classes, rows, table = build(work, vocabulary)
    stage = Stage(work / "labeller.safetensors", {"labeller": model}, rate=0.0, ema_decay=0.0, seed=3)
    stage.use_average()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    generator = torch.Generator().manual_seed(0)
    picked = learned(rows)
    for _ in range(40):
        chosen = picked[torch.randint(len(picked), (BATCH,), generator=generator)]
        model.image.resnet(augment(pictures[chosen], generator))
    return model.eval(), pictures, classes, rows, table


@torch.no_grad()
def calibrate(
    model: Labeller, pictures: torch.Tensor, classes: torch.Tensor, rows: list[dict], table: torch.Tensor
) -> float:
    """Return the temperature that makes the right names of the held-out style likeliest (arXiv:1706.04599, eq. 9)."""
    index = torch.tensor([i for i, row in enumerate(rows) if row["style"] == HELD_OUT_STYLE])
    embedded = torch.cat([model.images(part)[0] for part in on_white(pictures[index]).split(256)])
    # As the labeller asks: the bare name and "a picture of" it, averaged.
    texts = F.normalize(model.texts(table[:, 0]) + model.texts(table[:, 3]), dim=-1)
    logits = embedded @ texts.T * model.scale.exp().clamp(max=100)
    tried = torch.linspace(0.3, 3.0, 55)
    losses = torch.stack([F.cross_entropy(logits / one, classes[index]) for one in tried])
    return round(float(tried[losses.argmin()]), 3)


@torch.no_grad()
def evaluate(work: Path, vocabulary: Path) -> dict[str, dict[str, float]]:
    """Return, by set, the share of pictures whose own name is first and among the first five, and the pixels' share.

    The baseline is the nearest picture by 16 x 16 colour pixels among Noto, flat and 3D.
    """
    model, pictures, classes, rows, table = averaged(work, vocabulary)
    texts = model.texts(table[:, 0])
    white = on_white(pictures)
    embedded = torch.cat([model.images(part)[0] for part in white.split(256)])
    small = F.adaptive_avg_pool2d(white, 16).flatten(1)
    styles = [row["style"] for row in rows]
    gallery = torch.tensor([i for i, style in enumerate(styles) if style in ("noto", "flat", "3d")])
    sets = {style: [i for i, row in enumerate(rows) if row["style"] == style] for style in (*STYLES, HELD_OUT_STYLE)}
    sets["example"] = [i for i, row in enumerate(rows) if row["example"]]
    results = {}
    for name, places in sets.items():
        index = torch.tensor(places)
        near = (embedded[index] @ texts.T).topk(5).indices
        right = near == classes[index][:, None]
        result: dict[str, Any] = {
            "pictures": len(places),
            "top1": right[:, 0].float().mean(),
            "top5": right.any(1).float().mean(),
        }
        if name in (HELD_OUT_STYLE, "example"):
            nearest = gallery[torch.cdist(small[index], small[gallery]).argmin(1)]
            result["pixels"] = (classes[nearest] == classes[index]).float().mean()
        results[name] = {key: round(float(value), 4) for key, value in result.items()}
        print(name, results[name])
    return results


def export(work: Path, folder: Path, vocabulary: Path) -> None:
    """Write both towers in fp16, the names and what they are sure of, into `folder`."""
    model, pictures, classes, rows, table = averaged(work, vocabulary)
    temperature = calibrate(model, pictures, classes, rows, table)
    for name, tower in (("image_tower", model.image), ("text_tower", model.text)):
        shutil.rmtree(folder / name, ignore_errors=True)
        tower.half().save_pretrained(folder / name)
        settings = json.loads((folder / name / "config.json").read_text())
        settings["dtype"] = "float32"
        (folder / name / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        for path in (folder / name).glob("*.safetensors"):
            path.chmod(0o644)
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    shutil.copytree(vocabulary, folder / "tokenizer")
    scale = round(float(model.scale.detach().exp().clamp(max=100)), 4)
    colours = {"mean": [0.5] * 3, "std": [0.5] * 3}
    settings = {"schema": 1, "image_size": SIZE, **colours, "logit_scale": scale, "temperature": temperature}
    (folder / "towers.json").write_text(json.dumps(settings) + "\n")
    names = dict.fromkeys(row["name"] for row in rows)
    (folder / "names.txt").write_text("\n".join(names) + "\n")
    used = [row for row in rows if row["style"] in STYLES and not row["example"]]
    keys = ("file", "name", "package", "sha256", "style")
    manifest = [json.dumps({key: row[key] for key in keys}, sort_keys=True) for row in used]
    (folder / "manifest.jsonl").write_text("\n".join(manifest) + "\n")
    shutil.copyfile(work / "labeller_log.jsonl", folder / "training_log.jsonl")
