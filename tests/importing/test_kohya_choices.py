"""Rates, optimizers, schedules and networks of kohya's scripts as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.importing.kohya_projects import MINIMAL, imported, project, verdicts


@pytest.mark.parametrize(
    ("settings", "rate", "text"),
    [
        ({"learning_rate": 3e-4}, 3e-4, {"learning_rate": 3e-4}),
        ({"learning_rate": 3e-4, "unet_lr": 1e-4}, 1e-4, {"learning_rate": 3e-4}),
        ({"learning_rate": 3e-4, "text_encoder_lr": 1e-5}, 3e-4, {"learning_rate": 1e-5}),
        ({"learning_rate": 3e-4, "text_encoder_lr": 0}, 3e-4, False),
        ({"learning_rate": 3e-4, "text_encoder_lr": []}, 3e-4, {"learning_rate": 3e-4}),
        ({"learning_rate": 3e-4, "network_train_unet_only": True}, 3e-4, False),
        ({"unet_lr": 0, "text_encoder_lr": 2e-5, "learning_rate": 3e-4}, 2e-5, {"learning_rate": 2e-5}),
        # A rate for an optimizer that finds its own is kept only for another one that does.
        ({"optimizer_type": "DAdaptAdam", "learning_rate": 1.0}, 1.0, {"learning_rate": 1.0}),
        ({"optimizer_type": "Shampoo", "learning_rate": 1.0}, 1e-4, {"learning_rate": 1e-4}),
        ({"optimizer_type": "Shampoo", "unet_lr": 1e-3, "text_encoder_lr": 5e-4}, 1e-3, {"learning_rate": 5e-4}),
        # It has one rate for all.
        ({"optimizer_type": "Prodigy", "unet_lr": 1.0, "text_encoder_lr": 0.5}, 1.0, {"learning_rate": 1.0}),
    ],
)
def test_rates(tmp_path: Path, settings: dict[str, Any], rate: float, text: Any) -> None:
    tree = imported(project(tmp_path), MINIMAL | settings).tree
    assert (tree["learning_rate"], tree["train_text_encoder"]) == (rate, text)


@pytest.mark.parametrize(
    ("settings", "optimizer", "unsupported"),
    [
        ({}, "adamw", []),
        ({"optimizer_type": "AdamW8bit"}, "adamw8bit", []),
        ({"use_8bit_adam": True}, "adamw8bit", []),
        ({"optimizer_type": "PagedAdamW8bit"}, "adamw8bit", []),
        ({"optimizer_type": "pytorch_optimizer.CAME"}, {"name": "came", "weight_decay": 0.0}, []),
        (
            {"optimizer_type": "AdamW", "optimizer_args": ["betas=0.9,0.99", "eps=1e-7", "weight_decay=0.1"]},
            {"name": "adamw", "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-7, "weight_decay": 0.1},
            [],
        ),
        # As the window writes them: one text.
        (
            {"optimizer_type": "Adafactor", "optimizer_args": "scale_parameter=False relative_step=False bla=(1, 2)"},
            "adafactor",
            ["optimizer_args.bla"],
        ),
        (
            {"optimizer_type": "Prodigy", "optimizer_args": ["decouple=True", "d_coef=2", "safeguard_warmup=True"]},
            {
                **{"name": "prodigy", "weight_decay": 0.0, "use_bias_correction": False},
                **{"safeguard_warmup": True, "d_coef": 2},
            },
            [],
        ),
        ({"optimizer_type": "AdamWScheduleFree"}, {"name": "schedule_free", "weight_decay": 0.0}, []),
        ({"optimizer_args": ["weight_decay=-3"]}, "adamw", ["optimizer_args.weight_decay"]),
    ],
)
def test_optimizers(tmp_path: Path, settings: dict[str, Any], optimizer: Any, unsupported: list[str]) -> None:
    found = imported(project(tmp_path), MINIMAL | settings)
    assert found.tree["optimizer"] == optimizer
    assert [line.key for line in found.lines if line.verdict == "unsupported"] == unsupported


@pytest.mark.parametrize(
    ("settings", "schedule", "warmup"),
    [
        ({"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 20}, "constant", 20),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 0.1}, "cosine", 160),
        ({"lr_scheduler": "cosine_with_restarts"}, {"name": "cosine_restarts", "cycles": 1}, 0),
        ({"lr_scheduler": "polynomial"}, {"name": "polynomial", "power": 1}, 0),
        ({"lr_scheduler": "linear"}, "linear", 0),
        (
            {"lr_scheduler": "warmup_stable_decay", "lr_decay_steps": 400, "lr_warmup_steps": 600},
            {"name": "wsd", "decay": 0.4, "shape": "cosine"},
            600,
        ),
        ({"lr_scheduler_type": "custom.RexAnnealingWarmRestarts", "lr_scheduler_args": ["gamma=0.9"]}, "rex", 0),
        ({"lr_scheduler": "inverse_sqrt"}, "constant", 0),
    ],
)
def test_schedules(tmp_path: Path, settings: dict[str, Any], schedule: Any, warmup: int) -> None:
    tree = imported(project(tmp_path), MINIMAL | settings).tree
    assert (tree["schedule"], tree["warmup"]) == (schedule, warmup)


@pytest.mark.parametrize(
    ("arguments", "adapter", "targets"),
    [
        (["algo=loha", "preset=attn-mlp"], "loha", "kohya"),
        (
            ["algo=lokr", "factor=8", "decompose_both=True"],
            {"name": "lokr", "factor": 8, "decompose_both": True},
            "+",
        ),
        (["algo=locon", "dora_wd=True", "preset=attn-only"], "dora", "attention"),
        (["algo=ia3", "preset=full-lin"], "lora", "kohya"),
    ],
)
def test_lycoris(tmp_path: Path, arguments: list[str], adapter: Any, targets: str) -> None:
    settings = MINIMAL | {"network_module": "lycoris.kohya", "network_args": arguments}
    found = imported(project(tmp_path), settings)
    assert found.tree["adapter"] == adapter
    assert found.tree["lora_targets"] == ("kohya+conv" if targets == "+" else targets)
    assert (verdicts(found)["network_module"] == "unsupported") == ("algo=ia3" in arguments)


def test_blocks_become_layers(tmp_path: Path) -> None:
    dims = ",".join(["8"] * 12 + ["16"] + ["8"] * 12)
    weights = ",".join(["1"] * 6 + ["0.5"] * 3 + ["0"] * 3)
    settings = MINIMAL | {"network_dim": 8, "network_alpha": 8, "unet_lr": 1e-4}
    settings |= {"network_args": [f"block_dims={dims}", f"block_alphas={dims}", f"up_lr_weight={weights}"]}
    layers = imported(project(tmp_path), settings).tree["lora_layers"]
    middle, half, zero = sorted(layers, key=lambda layer: (-layer["rank"], "learning_rate" not in layer))
    assert (middle["rank"], middle["alpha"], middle["match"]) == (16, 16, r"(mid_block\.attentions\.0)\..*")
    assert half["learning_rate"] == pytest.approx(5e-5)
    assert r"up_blocks\.2\.attentions\.2" in half["match"]
    assert zero == {"match": zero["match"], "rank": 0}
    assert r"up_blocks\.3\.attentions\.0" in zero["match"]


@pytest.mark.parametrize("curve", ["sine", "cosine+.25", "linear", "reverse_linear", "zeros+0.5", "1,1,0"])
def test_named_curves_of_rates(tmp_path: Path, curve: str) -> None:
    settings = MINIMAL | {"network_args": [f"down_lr_weight={curve}"], "unet_lr": 1e-4}
    layers = imported(project(tmp_path), settings).tree["lora_layers"]
    assert all(layer["match"].startswith(r"(down_blocks") for layer in layers)
