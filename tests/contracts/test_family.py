"""What every family of pictures must do, whichever its architecture: on a tiny base in every way it can be stored."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lora_scripts
from lora_scripts import registry
from lora_scripts.adapters.inject import inject
from lora_scripts.contracts import Batch, Draw, Placement
from lora_scripts.data.record import CaptionRules, Dataset, PictureExample
from lora_scripts.errors import ConfigError
from lora_scripts.files import sha256_of
from tests import tiny

# A tiny base of each family, as a diffusers folder and as one file.
BASES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path]]] = {
    "sd": (tiny.tiny_sd_folder, tiny.tiny_single_file),
    "sdxl": (tiny.tiny_sdxl_folder, tiny.tiny_sdxl_file),
}
PICTURE_FAMILIES = [
    name for name in registry.names("families") if registry.load("families", name).plugin.reads == "pictures"
]
FLOAT32 = Placement(torch.device("cpu"), torch.float32, torch.float32)
WISH = {"size": (32, 32), "seed": 3, "steps": 2, "guidance": 3.0}
CAPTIONS = ("a red disc", "a disc, seen from above")


@dataclass(frozen=True)
class Stored:
    """One family's tiny base."""

    plugin: Any
    folder: Path
    file: Path

    def load(self, path: Path | None = None, placement: Placement = FLOAT32, clip_skip: int = 1) -> Any:
        base = self.plugin.recognise(path or self.folder)
        return self.plugin.load(base, placement, self.plugin.Config(clip_skip=clip_skip))


@cache
def shared(stored: Stored) -> Any:
    """One loaded family for the tests that change nothing of it."""
    return stored.load()


def test_every_family_of_pictures_is_tried():
    assert len(PICTURE_FAMILIES) >= 2
    assert BASES.keys() == set(PICTURE_FAMILIES)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Stored]:
    root = tmp_path_factory.mktemp("bases")
    return {
        name: Stored(
            registry.load("families", name).plugin, folder(root / name), file(root / f"{name}-file.safetensors")
        )
        for name, (folder, file) in BASES.items()
    }


@pytest.fixture(params=sorted(BASES))
def stored(request, written) -> Stored:
    return written[request.param]


@pytest.fixture
def example(tmp_path) -> PictureExample:
    path = tmp_path / "disc.png"
    next(tiny.tiny_pictures(tmp_path / "p", 1, (60, 48)).glob("*.png")).rename(path)
    rules = CaptionRules(dropout=0.3)
    return PictureExample("0/a", path, sha256_of(path), CAPTIONS, (60, 48), (32, 32), rules, flip=True)


def batch_of(family: Any, examples: list[PictureExample], draw: Draw) -> Batch:
    entries = []
    for example in examples:
        requests = family.requests(example, draw)
        entries.append({k: v for request in requests for k, v in family.encode([request])[0].items()})
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(examples))]
    tensors = family.collate(examples, entries)
    return Batch(1.0, torch.ones(len(examples)), tensors, generators, [example.id for example in examples])


def predicted(family: Any, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return family.predict(family.latents(batch), torch.tensor([7, 500][: len(batch.ids)]), batch)


def test_a_base_is_one_familys_however_it_is_stored(stored, written):
    for path in (stored.folder, stored.file):
        found = {name: registry.load("families", name).plugin.recognise(path) for name in registry.names("families")}
        assert {name for name, base in found.items() if base is not None} == {stored.plugin.name}
        base = found[stored.plugin.name]
        assert (base.family, base.path, base.prediction_type) == (stored.plugin.name, path, "epsilon")
        assert base.max_tokens == 77 and base.multiple % 2 == 0
        assert base.parameters.keys() == {"unet", "vae", *stored.plugin.architecture.encoders}
    assert len(found) >= 3


def test_recognising_imports_no_torch(stored):
    code = (
        "import sys; from pathlib import Path; from lora_scripts import registry\n"
        "plugin = registry.load('families', sys.argv[1]).plugin\n"
        "for path in sys.argv[2:]: assert plugin.recognise(Path(path)) is not None\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, stored.plugin.name, str(stored.folder), str(stored.file)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(lora_scripts.__file__).parents[1]), "PATH": ""},
    )
    assert done.stdout.strip() == "False", done.stderr


def test_folder_and_file_compute_the_same(stored, example):
    """From picture and caption to the network's output: every part counts."""
    outputs = []
    for family in (shared(stored), stored.load(stored.file)):
        batch = batch_of(family, [example], Draw(CAPTIONS[0]))
        outputs.append((family.latents(batch), predicted(family, batch)))
    assert torch.allclose(outputs[0][0], outputs[1][0], atol=1e-5)
    assert torch.allclose(outputs[0][1], outputs[1][1], atol=1e-5)
    assert float(outputs[0][1].std()) > 1e-3


def test_what_may_be_trained_is_what_the_presets_name(stored):
    base = stored.plugin.recognise(stored.folder)
    live = shared(stored).trainable()
    bare = stored.plugin.skeleton(base)
    for name, module in live.items():
        shapes = {key: tensor.shape for key, tensor in module.state_dict().items()}
        assert shapes == {key: tensor.shape for key, tensor in bare[name].state_dict().items()}
        assert {tensor.device.type for tensor in bare[name].parameters()} == {"meta"}
    assert stored.plugin.target_presets.keys() == {"attention", "kohya", "kohya+conv"}
    assert all(preset.keys() == live.keys() for preset in stored.plugin.target_presets.values())
    assert stored.plugin.keys.parts.keys() == live.keys()
    assert stored.plugin.operations(base, bare, (32, 32)) > 1e6


def test_draws_are_seeded_and_requests_name_their_content(stored, example):
    family = shared(stored)
    draws = [family.draw(example, Random(seed)) for seed in range(40)]
    assert draws == [family.draw(example, Random(seed)) for seed in range(40)]
    assert {draw.caption for draw in draws} == {*CAPTIONS, ""}
    assert {draw.flip for draw in draws} == {True, False}
    contents = {(d.caption, d.flip): tuple(r.content for r in family.requests(example, d)) for d in draws}
    assert len({latents for latents, _ in contents.values()}) == 2
    assert len({text for _, text in contents.values()}) == 3


def test_encoding_one_by_one_equals_encoding_together(stored, example):
    family = shared(stored)
    requests = [r for seed in range(6) for r in family.requests(example, family.draw(example, Random(seed)))]
    for part, names in (("latents", {"mean", "deviation"}), ("text", set(family.said))):
        own = [request for request in requests if request.part == part]
        for request, entry in zip(own, family.encode(own), strict=True):
            alone = family.encode([request])[0]
            assert entry.keys() == names
            assert all(torch.equal(entry[name], alone[name]) for name in names)
            assert {tensor.dtype for tensor in entry.values()} == {torch.float32}


def test_a_content_changes_with_all_that_decides_the_piece(stored, example):
    def contents(family: Any, example: PictureExample, draw: Draw) -> dict[str, str]:
        return {request.part: request.content for request in family.requests(example, draw)}

    family, skipping = stored.load(), stored.load(clip_skip=2)
    plain = contents(family, example, Draw("x"))
    assert contents(family, example, Draw("x")) == plain
    other_skip = contents(skipping, example, Draw("x"))
    assert (other_skip["latents"], other_skip["text"] == plain["text"]) == (plain["latents"], False)
    for changed in (replace(example, bucket=(40, 32)), replace(example, size=(70, 48)), replace(example, sha256="1")):
        other = contents(family, changed, Draw("x"))
        assert (other["latents"] == plain["latents"], other["text"]) == (False, plain["text"])
    mirrored = contents(family, example, Draw("x", flip=True))
    assert (mirrored["latents"] == plain["latents"], mirrored["text"]) == (False, plain["text"])
    family.train_components(("unet", "text_encoder"))
    assert contents(family, example, Draw("x"))["text"] != plain["text"]


def test_encoder_keys_follow_the_weights(stored):
    first, second = shared(stored), stored.load()
    assert first.encoder_key("latents") == second.encoder_key("latents") != first.encoder_key("text")
    second.vae.encoder.conv_in.weight.data[0] += 1e-3
    assert first.encoder_key("latents") != second.encoder_key("latents")
    assert first.encoder_key("text") == second.encoder_key("text")
    keys = {first.encoder_key("text")}
    for component in stored.plugin.architecture.encoders:
        third = stored.load()
        next(third.encoder(component).parameters()).data[0] += 1e-3
        keys.add(third.encoder_key("text"))
    third.train_components(("unet", *stored.plugin.architecture.encoders))
    keys.add(third.encoder_key("text"))
    assert len(keys) == 2 + len(stored.plugin.architecture.encoders)
    assert len({first.encoder_key(part) for part in ("latents", "text", "mask")}) == 3


def test_text_encoders_that_train_run_in_the_step_and_give_the_same(stored, example):
    cached, live = stored.load(clip_skip=2), stored.load(clip_skip=2)
    live.train_components(stored.plugin.target_presets["kohya"])
    draw = Draw(CAPTIONS[1])
    one, other = batch_of(cached, [example, example], draw), batch_of(live, [example, example], draw)
    assert live.architecture.encoders.keys() <= other.tensors.keys()
    assert torch.allclose(predicted(cached, one), predicted(live, other), atol=1e-5)
    live.text_encoder.requires_grad_(True)
    live.predict(live.latents(other), torch.tensor([7, 500]), other).square().sum().backward()
    assert float(next(live.text_encoder.parameters()).grad.abs().sum()) > 0
    memory = dict(live._encoders)
    live.release_encoders()
    assert live._encoders == memory and live._vae is None
    cached.release_encoders()
    assert cached._encoders == {}


def test_without_pairs_the_base_alone_predicts(stored, example):
    family = stored.load()
    batch = batch_of(family, [example], Draw(CAPTIONS[0]))
    plain = predicted(family, batch)
    targets = {"unet": stored.plugin.target_presets["kohya+conv"]["unet"]}
    pairs = inject({"unet": family.unet}, targets=targets, rank=2, alpha=2.0, dropout=0.0, seed=1)
    family.injected(pairs)
    for parameter in pairs.parameters("unet").values():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(2))
    batch = replace(batch, generators=[torch.Generator().manual_seed(0)])
    changed = predicted(family, batch)
    with family.without_pairs():
        batch = replace(batch, generators=[torch.Generator().manual_seed(0)])
        assert torch.equal(predicted(family, batch), plain)
    assert not torch.allclose(changed, plain, atol=1e-3)


def test_a_base_in_float64_computes_in_float64(stored, example):
    exact = stored.load(placement=replace(FLOAT32, base_dtype=torch.float64, encoder_dtype=torch.float64))
    plain = shared(stored)
    one, other = (batch_of(family, [example], Draw(CAPTIONS[0])) for family in (exact, plain))
    output = predicted(exact, one)
    assert output.dtype == torch.float64
    assert torch.allclose(output.float(), predicted(plain, other), atol=1e-4)
    assert exact.preview(["a disc"], **WISH)[0].size == (32, 32)


def test_a_mask_is_one_for_rows_without(stored, example, tmp_path):
    path = tmp_path / "mask.png"
    half = Image.new("L", (60, 48))
    half.paste(255, (0, 0, 30, 48))
    half.save(path)
    masked = replace(example, mask=path, mask_sha256=sha256_of(path))
    family = shared(stored)
    assert "mask" not in batch_of(family, [example, example], Draw("x")).tensors
    mask = batch_of(family, [masked, example], Draw("x")).tensors["mask"]
    assert mask.shape == (2, 1, 16, 16)
    assert float(mask[1].min()) == 1.0
    assert (float(mask[0, 0, :, 0].max()), float(mask[0, 0, :, -1].max())) == (1.0, 0.0)


def test_previews_are_seeded_and_leave_no_trace(stored):
    family = stored.load()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = family.preview(["a disc", "a cat"], **WISH)
    assert torch.equal(torch.get_rng_state(), before)
    assert (family._vae, family._encoders) == (None, {})
    second = family.preview(["a disc", "a cat"], **WISH)
    assert [p.tobytes() for p in first] == [p.tobytes() for p in second]
    assert first[0].size == (32, 32) and first[0].tobytes() != first[1].tobytes()
    assert family.preview(["a cat"], **(WISH | {"seed": 4}))[0].tobytes() == first[1].tobytes()


def diffusers_pipeline(family: Any) -> Any:
    """The family's pipeline, with the norm where diffusers looks for it: transformers has moved it."""
    pipeline = family.pipeline()
    if not hasattr(pipeline.text_encoder, "text_model"):
        pipeline.text_encoder.text_model = SimpleNamespace(final_layer_norm=pipeline.text_encoder.final_layer_norm)
    return pipeline


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_previews_equal_those_of_diffusers(stored, clip_skip):
    family = stored.load(clip_skip=clip_skip)
    wish = {"width": 32, "height": 32, "num_inference_steps": 2, "guidance_scale": 1.0, "clip_skip": clip_skip - 1}
    generator = torch.Generator().manual_seed(3)
    theirs = diffusers_pipeline(family)("a cat", generator=generator, **wish).images[0]
    ours = family.preview(["a cat"], **(WISH | {"guidance": 1.0}))[0]
    difference = np.abs(np.asarray(theirs).astype(int) - np.asarray(ours).astype(int))
    assert difference.max() <= 1
    assert np.asarray(ours).std() > 1


def test_every_skip_gives_the_states_that_diffusers_gives(stored):
    family = shared(stored)
    most = family._stored.text_layers() - stored.plugin.spare_layers
    assert most >= 2
    pipeline = diffusers_pipeline(family)
    seen = []
    for clip_skip in range(1, most + 1):
        family.clip_skip = clip_skip
        ids = {component: row[None] for component, row in family.ids("a cat on a table").items()}
        with torch.no_grad():
            ours = family.text(ids)
            theirs = pipeline.encode_prompt(
                "a cat on a table",
                device=torch.device("cpu"),
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
                clip_skip=clip_skip - 1,
            )
        assert torch.allclose(ours["states"], theirs[0], atol=1e-5)
        if "pooled" in ours:
            assert torch.allclose(ours["pooled"], theirs[2], atol=1e-5)
        seen.append(ours["states"])
    family.clip_skip = 1
    assert all(not torch.allclose(one, other, atol=1e-3) for one, other in pairwise(seen))


def test_more_skips_than_layers_are_refused_before_anything_is_loaded(stored, tmp_path):
    base = stored.plugin.recognise(stored.file)
    data = [Dataset(tiny.tiny_pictures(tmp_path / "p", 1))]
    with pytest.raises(ConfigError) as caught:
        stored.plugin.scan(base, data, stored.plugin.Config(clip_skip=9, resolution=(32,)), None)
    assert caught.value.code == "base.clip_skip" and "9" in str(caught.value) and "1 to 2" in str(caught.value)
