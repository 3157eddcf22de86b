"""The pictures and names the embedded model is made of, from npm tarballs whose licences allow it.

========================== ======= ============================= =====================
tarball                    version pictures                      licence
========================== ======= ============================= =====================
emoji-datasource-google    16.0.0  Noto, 64 px PNG               Apache-2.0 (names MIT)
@lobehub/fluent-emoji-flat 1.1.0   Fluent flat, SVG              MIT
@lobehub/fluent-emoji-3d   1.1.0   Fluent 3D, WebP               MIT
fluentui-emoji             1.3.0   Fluent high contrast, SVG     MIT
========================== ======= ============================= =====================

Fetch each with ``npm pack NAME@VERSION`` into one folder. The high-contrast icons teach the VAE only:
the text encoder and the UNet never see them, so they can serve as the quickstart's unknown style.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64
NOTO = "emoji-datasource-google-16.0.0.tgz"
FLAT = "lobehub-fluent-emoji-flat-1.1.0.tgz"
SOLID = "lobehub-fluent-emoji-3d-1.1.0.tgz"
HIGH_CONTRAST = "fluentui-emoji-1.3.0.tgz"

# Gallery: what the nearest-picture evaluation searches. Concepts: what the UNet learns.
GALLERY_EXCLUDES = {"People & Body", "Flags", "Symbols", "Component"}
SUBCATEGORY_EXCLUDES = {"time", "keycap"}
CONCEPT_ADDED_IN = "0.6"

STYLE_SUFFIX = {"noto": "", "flat": ", flat style", "3d": ", 3d style"}


@dataclass(frozen=True)
class Emoji:
    """One row of emoji.json that the gallery keeps."""

    name: str  # lower case, as users write it
    short_name: str
    codepoints: str  # "1f34e", the file stem
    is_concept: bool


def load_emojis(tarballs: Path) -> list[Emoji]:
    """Return the gallery's emojis in emoji.json's order; `is_concept` marks what the model learns."""
    rows = json.loads(tar_members(tarballs / NOTO, "package/emoji.json")["emoji.json"])
    return [
        Emoji(
            name=row["name"].lower(),
            short_name=row["short_name"].replace("_", " ").replace("-", " "),
            codepoints=row["unified"].lower(),
            is_concept=row["added_in"] == CONCEPT_ADDED_IN,
        )
        for row in rows
        if row["category"] not in GALLERY_EXCLUDES
        and row["subcategory"] not in SUBCATEGORY_EXCLUDES
        and row["has_img_google"]
    ]


def on_white(picture: Image.Image) -> np.ndarray:
    """Composite over white and scale to `SIZE`: (64, 64, 3) uint8."""
    picture = picture.convert("RGBA")
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    return np.asarray(canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _draw_svg(text: bytes) -> np.ndarray:
    import resvg_py

    data = resvg_py.svg_to_bytes(svg_string=text.decode(), width=SIZE * 2, height=SIZE * 2)
    return on_white(Image.open(io.BytesIO(bytes(data))))


def _draw(name: str, data: bytes) -> np.ndarray:
    return _draw_svg(data) if name.endswith(".svg") else on_white(Image.open(io.BytesIO(data)))


def stems_of(codepoints: str) -> list[str]:
    """File stems a set may use for one emoji: with and without the variation selector."""
    short = codepoints.replace("-fe0f", "")
    return list(dict.fromkeys(s.lstrip("0") if strip else s for s in (codepoints, short) for strip in (False, True)))


def slug_of(codepoints: str) -> str | None:
    """The high-contrast set names its files after Unicode's English name: "red-apple"."""
    import emoji

    characters = [int(part, 16) for part in codepoints.split("-")]
    for candidate in (characters, [c for c in characters if c != 0xFE0F]):
        entry = emoji.EMOJI_DATA.get("".join(map(chr, candidate)))
        if entry:
            return entry["en"].strip(":").replace("_", "-").replace("’", "").lower()
    return None


def tar_members(path: Path, prefix: str) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {
            Path(member.name).name: file.read()
            for member in archive
            if member.isfile() and member.name.startswith(prefix) and (file := archive.extractfile(member))
        }


def prepare(tarballs: Path, work: Path) -> None:
    """Draw every picture once and write `work/pictures.npz`, `work/rows.json`, `work/manifest.json`."""
    emojis = load_emojis(tarballs)
    noto = tar_members(tarballs / NOTO, "package/img/google/64/")
    flat = tar_members(tarballs / FLAT, "package/assets/")
    solid = tar_members(tarballs / SOLID, "package/assets/")
    contrast = tar_members(tarballs / HIGH_CONTRAST, "package/icons/high-contrast/")
    pictures: list[np.ndarray] = []
    rows: list[dict] = []
    manifest: list[dict] = []
    for emoji_row in emojis:
        stems = stems_of(emoji_row.codepoints)
        slug = slug_of(emoji_row.codepoints)
        choices = {
            "noto": (NOTO, noto, [f"{s}.png" for s in stems]),
            "flat": (FLAT, flat, [f"{s}.svg" for s in stems]),
            "3d": (SOLID, solid, [f"{s}.webp" for s in stems]),
            "high contrast": (HIGH_CONTRAST, contrast, [f"{slug}.svg"] if slug else []),
        }
        for style, (source, members, names) in choices.items():
            name = next((n for n in names if n in members), None)
            if name is None:
                continue
            pictures.append(_draw(name, members[name]))
            rows.append(
                {
                    "name": emoji_row.name,
                    "short_name": emoji_row.short_name,
                    "style": style,
                    "is_concept": emoji_row.is_concept,
                    "file": name,
                }
            )
            manifest.append(
                {
                    "package": source.removesuffix(".tgz"),
                    "file": name,
                    "sha256": hashlib.sha256(members[name]).hexdigest(),
                    "name": emoji_row.name,
                    "style": style,
                    "used_by": "vae+unet" if emoji_row.is_concept and style in STYLE_SUFFIX else "vae",
                }
            )
    work.mkdir(parents=True, exist_ok=True)
    np.savez_compressed((work / "pictures").with_suffix(".npz"), pictures=np.stack(pictures))
    (work / "rows.json").write_text(json.dumps(rows))
    (work / "manifest.json").write_text("\n".join(json.dumps(row, sort_keys=True) for row in manifest) + "\n")
    counts = {style: sum(r["style"] == style for r in rows) for style in (*STYLE_SUFFIX, "high contrast")}
    print(f"{len(pictures)} pictures {counts}, {sum(e.is_concept for e in emojis)} concepts")


def load_pictures(work: Path) -> tuple[np.ndarray, list[dict]]:
    """Return ((n, 64, 64, 3) uint8, one row a picture) as `prepare` wrote them."""
    return np.load((work / "pictures").with_suffix(".npz"))["pictures"], json.loads((work / "rows.json").read_text())


def captions(row: dict) -> list[str]:
    """The four wordings of one training picture; the name counts twice."""
    suffix = STYLE_SUFFIX[row["style"]]
    return [f"{text}{suffix}" for text in (row["name"], row["name"], row["short_name"], f"a picture of {row['name']}")]
