"""The sides: each trains on `train.jsonl` of a work folder and saves a PEFT folder; the package says what differs."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.text import rows

ROWS_A_STEP = 16
ROWS_A_MICRO_BATCH = 4
RANK, ALPHA = 16, 32
RATE = 1e-3
MAX_NORM = 1.0
SEED = 7


@dataclass(frozen=True)
class Trained:
    """What a side measured of itself: of each optimizer step the seconds and the loss before it."""

    seconds: list[float]
    losses: list[float]


def our_config(base: Path, work: Path, out: Path) -> dict[str, Any]:
    """Return a run config that leaves out whatever the package may choose by itself."""
    return {
        "train_data_dir": str(work / "shuffled.jsonl"),
        "base_model": str(base),
        "output_dir": str(out),
        "cache_dir": str(out.with_name(f"{out.name}-cache")),
        "seed": SEED,
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "batch_size": ROWS_A_STEP,
        "gradient_accumulation": 1,
        "epochs": 1,
        "learning_rate": RATE,
        "optimizer": {"name": "adamw", "weight_decay": 0.0},
        "schedule": "constant",
        "warmup": 0,
        "max_grad_norm": MAX_NORM,
        "save_steps": 1_000_000,
        "preview": False,
    }


def ours(base: Path, work: Path, out: Path) -> Trained:
    """Train through the package's public use-case."""
    from lora_scripts import app
    from lora_scripts.config.load import from_mapping

    app.train(from_mapping(our_config(base, work, out)))
    events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [event for event in events if event["event"] == "Stepped"]
    return Trained([step["seconds"] for step in steps], [step["loss"] for step in steps])


def our_order(count: int) -> list[int]:
    """Return the rows' numbers in the order in which our loader shows them, 16 a step."""
    from lora_scripts.data.order import steps_of_epoch

    examples: Any = [_Stub()] * count
    return [visit.example for step in steps_of_epoch(examples, 0, SEED, ROWS_A_STEP) for visit in step]


class _Stub:
    """What the order of a text depends on besides its number."""

    group = ()
    repeats = 1


def trl(base: Path, work: Path, out: Path, *, checkpointing: bool | None = None) -> Trained:
    """Train with `SFTTrainer` and a `peft_config`, as its documentation shows."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    more: dict[str, Any] = {} if checkpointing is None else {"gradient_checkpointing": checkpointing}
    config = SFTConfig(
        output_dir=str(out),
        use_cpu=True,
        bf16=True,
        per_device_train_batch_size=ROWS_A_MICRO_BATCH,
        gradient_accumulation_steps=ROWS_A_STEP // ROWS_A_MICRO_BATCH,
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=MAX_NORM,
        completion_only_loss=True,
        packing=False,
        train_sampling_strategy="sequential",
        seed=SEED,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **more,
    )

    class Clock(TrainerCallback):
        started = 0.0
        seconds: list[float] = []  # noqa: RUF012 - one clock a process

        def on_step_begin(self, *arguments: Any, **others: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *arguments: Any, **others: Any) -> None:
            self.seconds.append(time.perf_counter() - self.started)

    clock = Clock()
    trainer = SFTTrainer(
        model=str(base),
        args=config,
        train_dataset=Dataset.from_list([dict(row) for row in rows.read(work / "train.jsonl")]),
        peft_config=LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model(str(out))
    return Trained(clock.seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def trl_kept(base: Path, work: Path, out: Path) -> Trained:
    """TRL without gradient checkpointing."""
    return trl(base, work, out, checkpointing=False)


def plain(base: Path, work: Path, out: Path) -> Trained:
    """Train in the loop that tutorials show."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    model.train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.0)
    read = [rows.tokens(row, tokenizer) for row in rows.read(work / "train.jsonl")]
    parts = [_padded(read[i : i + ROWS_A_MICRO_BATCH]) for i in range(0, len(read), ROWS_A_MICRO_BATCH)]
    accumulation = ROWS_A_STEP // ROWS_A_MICRO_BATCH
    seconds, losses = [], []
    for start in range(0, len(parts), accumulation):
        started = time.perf_counter()
        total = counted = 0.0
        for batch in parts[start : start + accumulation]:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**batch).loss
            (loss / accumulation).backward()
            targets = int((batch["labels"] >= 0).sum())
            total, counted = total + loss.item() * targets, counted + targets
        torch.nn.utils.clip_grad_norm_(learned, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        losses.append(total / counted)
    model.save_pretrained(out)
    return Trained(seconds, losses)


def _padded(part: list[rows.Tokens]) -> dict[str, Any]:
    """Put rows side by side, filled up at the end with tokens that are masked and not learned."""
    import torch

    size = (len(part), max(len(row.ids) for row in part))
    ids, mask, labels = torch.zeros(size).long(), torch.zeros(size).long(), torch.full(size, -100)
    for i, row in enumerate(part):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
        labels[i, row.start : row.end] = torch.tensor(row.ids[row.start : row.end])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


SIDES = {"ours": ours, "trl": trl, "trl-kept": trl_kept, "plain": plain}
