"""Causal language models (decoder-only transformers), through transformers and PEFT.

Shapes: T = tokens of a micro-batch in one stream, N = target tokens in it, D = width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from lora_scripts import registry
from lora_scripts.contracts import Base, Draw, Pace, Placement, Request
from lora_scripts.data.cache import Cache
from lora_scripts.data.record import Dataset, Message, Note, Scan, TextRow
from lora_scripts.errors import DataError
from lora_scripts.families import _answers, _fused, _lm_folder, _rows, _scores
from lora_scripts.families import _head as heads
from lora_scripts.families._chat import Renderer, Tokens
from lora_scripts.families._texts import Limits, TextExample, tokenise

if TYPE_CHECKING:
    from torch import Tensor, nn

COMPONENT = "language_model"
SMALL = 1_500_000_000
LARGE = 13_000_000_000
# Below this many rows an effective batch of 16 leaves too few steps.
FEW_ROWS = 500
_EDGE = r"(?!.*(lm_head|embed_out|output_layer|score|classifier))"
_ATTENTION = r"(q_proj|k_proj|v_proj|o_proj|qkv_proj|query_key_value|Wqkv|dense|out_proj|c_attn|c_proj)"


class Config(BaseModel):
    """The keys of the run config that this family reads, by their own names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_length: int | None = None
    train_on: str = "completions"
    labels: tuple[str, ...] = ()
    batch_tokens: int = 1024
    max_bad_fraction: float = Field(0.1, ge=0, le=1)


class CausalLM:
    """See `contracts.Family` and `contracts.Speaker`."""

    name: ClassVar[str] = "causal_lm"
    title: ClassVar[str] = "LLM"
    reads: ClassVar[str] = "texts"
    Config: ClassVar[type[BaseModel]] = Config
    pace: ClassVar[Pace] = Pace(share=0.78, seconds=0.05, bytes_per_operation=0.004)
    quantises: ClassVar[tuple[str, ...]] = ("fp8", "nf4")
    keys: ClassVar[None] = None
    objectives: ClassVar[tuple[str, ...]] = ("sft", "dpo", "kto")
    default_preset: ClassVar[str] = "all-linear"
    target_presets: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "all-linear": {COMPONENT: (rf"{_EDGE}.*\.\d+\..*",)},
        "attention": {COMPONENT: (rf".*\.\d+\..*\.?{_ATTENTION}",)},
        "q_v": {COMPONENT: (r".*\.(q_proj|v_proj)",)},
    }

    def __init__(self, base: Base, placement: Placement, model: Any, renderer: Renderer):
        self.base, self.placement, self.model, self.renderer = base, placement, model, renderer
        self.head = heads.find(model)
        self.packs = _rows.can_pack(model.config.get_text_config(), base.max_tokens)
        self._released = False

    # What is known without loading

    @classmethod
    def recognise(cls, path: Path, said: str = "") -> Base | None:
        """Return what `path` is: a folder, or a hub id, of a causal language model."""
        return _lm_folder.recognise(path)

    @classmethod
    def defaults(cls, base: Base, given: Mapping[str, Any], rows: int) -> Mapping[str, Any]:
        """Return this family's values of keys that a config leaves out.

        Sources: the settings agreed on by "LoRA Without Regret" and the libraries that follow it: all linear layers,
        alpha twice the rank, a rate ten times that of full training; more for small models, fewer epochs for more rows.
        """
        size = sum(base.parameters.values())
        rank = given.get("lora_rank") or 16
        rate = 3e-4 if size <= SMALL else 1e-4 if size > LARGE else 2e-4
        batch = 8 if rows < FEW_ROWS else 16
        return {
            "lora_rank": rank,
            "lora_alpha": float(2 * rank),
            "learning_rate": rate / 2 if given.get("init_lora") else rate,
            "epochs": 3 if rows < 2_000 else 2 if rows < 20_000 else 1,
            "batch_size": batch,
            "gradient_accumulation": max(1, -(-batch // (given.get("batch_size") or batch))),
            "schedule": {"name": "cosine", "options": {"floor": 0.1}},
            "optimizer": {"name": "adamw", "options": {"weight_decay": 0.0}},
            "exporters": ("peft",),
        }

    @classmethod
    def scan(
        cls, base: Base, datasets: Sequence[Dataset], options: Any, cache: Cache | None, *, held: Sequence[Dataset] = ()
    ) -> Scan:
        """Read and tokenise rows; those of `held` are only measured, and none of them may be trained on too."""
        reader = registry.load("readers", cls.reads)
        renderer = _lm_folder.renderer(base)
        found = reader.read(datasets, labels=options.labels, max_bad_fraction=options.max_bad_fraction)
        limits = Limits(options.max_length, options.train_on, base.max_tokens, _lm_folder.vocabulary(base))
        settings = _lm_folder.tokenizer_hash(base)
        rows, notes, dropped = list(found.rows), [*found.notes], [*found.dropped]
        kept_apart: Sequence[TextExample] = ()
        if held:
            labels = options.labels or found.labels
            other = reader.read(held, labels=labels, held_out=True, max_bad_fraction=options.max_bad_fraction)
            leaked = {row.id for row in reader.leaks(rows, other.rows)}
            if leaked:
                notes.append(Note("llm.leaked", {"count": len(leaked), "names": ", ".join(sorted(leaked)[:5])}))
            rows = [row for row in rows if row.id not in leaked]
            kept_apart, more, _ = tokenise(other.rows, renderer, limits, cache, settings)
            notes += [*other.notes, *more[1:]]
            dropped += other.dropped
        rows, balance = _balanced(rows)
        notes += balance
        examples, told, longest = tokenise(rows, renderer, limits, cache, settings)
        if not examples:
            raise DataError("llm.no_rows", found=found.found, dropped=len(dropped))
        facts = {"labels": list(found.labels), "max_length": longest}
        return Scan(examples, found.found, dropped, [*notes, *told], held=tuple(kept_apart), facts=facts)

    @classmethod
    def notes(cls, base: Base, examples: Sequence[TextExample]) -> list[Note]:
        """Nothing beyond what `scan` found."""
        return []

    @classmethod
    def explain(cls, base: Base, examples: Sequence[TextExample], count: int) -> list[str]:
        """Show the first rows as the model reads them, what is learned in double angle brackets."""
        renderer = _lm_folder.renderer(base)
        return [_answers.marked(renderer, example) for example in _spread(examples, count)]

    @classmethod
    def skeleton(cls, base: Base) -> Mapping[str, nn.Module]:
        """Build the model without weights."""
        return {COMPONENT: _lm_folder.skeleton(base)}

    @classmethod
    def operations(cls, base: Base, modules: Mapping[str, nn.Module], shape: int) -> float:
        """Two operations a weight and token, and attention's two products; the head sees target tokens only."""
        model: Any = modules[COMPONENT]
        config = model.config.get_text_config()
        head = config.vocab_size * config.hidden_size
        attention = 2.0 * config.num_hidden_layers * config.hidden_size * shape
        return shape * (2.0 * (sum(base.parameters.values()) - head) + 2 * attention)

    @classmethod
    def rehearsal(cls, base: Base, placement: Placement, options: Any = None) -> None:
        """None: layers and streams are tried with numbers when a model is loaded, which no shape can stand in for."""

    @classmethod
    def weights_hash(cls, base: Base) -> str:
        """sha256 over the base's weight files."""
        return _lm_folder.weights_hash(base)

    @classmethod
    def usage(cls, base: Base, files: Mapping[str, Path], facts: Mapping[str, Any], example: TextExample) -> list[Note]:
        """Say how the result is used."""
        folder = next(iter(files.values())).parent
        if facts.get("labels"):
            return [Note("llm.use_classify", {"path": folder}), Note("llm.use_draft", {"path": folder})]
        return [Note("llm.use_sample", {"path": folder, "prompt": example.title.replace('"', "'")[:60]})]

    # The live model

    @classmethod
    def load(cls, base: Base, placement: Placement, options: Any = None) -> CausalLM:
        """Load model and tokenizer; a model that may be given streams is tried on two rows first."""
        model = _lm_folder.model(base, placement)
        family = cls(base, placement, model, _lm_folder.renderer(base))
        if placement.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        family.packs = family.packs and family._packing_holds()
        if not family.packs:
            model.set_attn_implementation("sdpa")
        return family

    def trainable(self) -> Mapping[str, nn.Module]:
        """The whole model."""
        return {COMPONENT: self.model}

    def train_components(self, components: Sequence[str]) -> None:
        """Nothing: there is one component."""

    def injected(self, pairs: Any) -> None:
        """Let the layers with pairs keep less for the backward pass."""
        _fused.install(self.model)

    def encoder_key(self, part: str) -> str:
        """sha256 over what the reference is: the base, its precision, and the adapter that training starts from."""
        held = f"{self.placement.base_dtype} {self.placement.quantisation}"
        digest = hashlib.sha256(f"{part} {self.weights_hash(self.base)} {held}".encode())
        for name, tensor in self.model.state_dict().items():
            if ".lora_" in name:
                digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def draw(self, example: TextExample, random: Random) -> Draw:
        """Nothing is drawn."""
        return Draw()

    def requests(self, example: TextExample, draw: Draw) -> list[Request]:
        """The reference's log-probabilities of a pair or a thumb; they are found before the first step."""
        if example.row.kind not in ("pair", "thumb"):
            return []
        content = hashlib.sha256(b"".join(tokens.digest() for tokens in example.sequences)).hexdigest()
        return [Request("reference", content, example)]

    def encode(self, requests: Sequence[Request]) -> list[Mapping[str, Tensor]]:
        """Measure with the adapter that training starts from, without dropout."""
        import torch

        if self._released:
            raise DataError("llm.reference_gone", count=len(requests))
        made: list[Mapping[str, Tensor]] = []
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        with torch.no_grad(), self._autocast():
            for request in requests:
                batch = self._stream(request.payload.sequences)
                sums = self.sequence_logprobs(batch, len(request.payload.sequences))
                made.append({"reference": sums.float().cpu()})
        for module, mode in modes.items():
            module.training = mode
        return made

    def release_encoders(self) -> None:
        """The reference is known from here on; the live weights move away from it."""
        self._released = True

    def collate(self, examples: Sequence[TextExample], entries: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        """One stream of all sequences; `reference` (sequences,) where the rows have one."""
        import torch

        sequences = [tokens for example in examples for tokens in example.sequences]
        owners = [i for i, example in enumerate(examples) for _ in example.sequences]
        batch = self._stream(sequences) | {"owners": torch.tensor(owners)}
        batch["liked"] = torch.tensor([example.row.liked is not False for example in examples])
        if entries and "reference" in entries[0]:
            batch["reference"] = torch.cat([entry["reference"] for entry in entries])
        return batch

    def _stream(self, sequences: Sequence[Tokens]) -> dict[str, Any]:
        """ids, positions (T,), lengths, and of each target: `at` (position before it), label, weight, sequence (N,)."""
        import numpy as np
        import torch

        lengths = [len(tokens.ids) for tokens in sequences]
        weights = np.concatenate([tokens.weights for tokens in sequences])
        ids = np.concatenate([tokens.ids for tokens in sequences]).astype(np.int64)
        targets = np.flatnonzero(weights)
        return {
            "ids": torch.from_numpy(ids),
            "positions": torch.cat([torch.arange(length) for length in lengths]),
            "lengths": lengths,
            "at": torch.from_numpy(targets - 1),
            "labels": torch.from_numpy(ids[targets]),
            "weights": torch.from_numpy(weights[targets]),
            "sequences": torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)[targets]),
        }

    def token_logprobs(self, batch: Mapping[str, Any]) -> Tensor:
        """(N,) float32 log p of every target token of a stream, through the head on those positions only."""
        hidden = self.hidden(batch["ids"], batch["positions"], batch["lengths"])
        device = self.placement.device
        return heads.token_logprobs(hidden[batch["at"].to(device)], batch["labels"].to(device), self.head)

    def sequence_logprobs(self, batch: Mapping[str, Any], count: int) -> Tensor:
        """(count,) sums over each sequence's targets."""
        import torch

        found = self.token_logprobs(batch)
        return torch.zeros(count, dtype=found.dtype, device=found.device).index_add(
            0, batch["sequences"].to(found.device), found
        )

    def hidden(
        self, ids_T: Tensor, positions_T: Tensor, lengths: Sequence[int], masks: Sequence[Tensor | None] = ()
    ) -> Tensor:
        """(T, D) last hidden states of rows that lie in one stream."""
        inner = getattr(self.model, self.model.base_model_prefix)
        device = self.placement.device
        ids, positions = ids_T.to(device), positions_T.to(device)
        if self.packs:
            masks = [mask if mask is None else mask.to(device) for mask in masks]
            made = inner(
                input_ids=ids[None],
                position_ids=positions[None],
                use_cache=False,
                row_lengths=list(lengths),
                row_masks=masks,
            )
            return made.last_hidden_state[0]
        return self._padded(inner, ids, positions, lengths)

    def _padded(self, inner: Any, ids: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
        """The same for models that may not be given streams: rows side by side, padded at the end."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = pad_sequence(list(ids.split(list(lengths))), batch_first=True, padding_value=0)
        mask = torch.arange(rows.shape[1], device=ids.device)[None] < torch.tensor(lengths, device=ids.device)[:, None]
        made = inner(input_ids=rows, attention_mask=mask.long(), use_cache=False)
        return made.last_hidden_state[mask]

    def _packing_holds(self) -> bool:
        """Try two rows in one stream: the second must be what the model makes of it alone, whatever its neighbour.

        Rounding in 16 bits alone moves hidden states by several percent, so the measure is how far they would be moved
        if the second row did see the first.
        """
        import torch

        rows = [torch.arange(3, 8) % self.head.weight.shape[0], torch.arange(5, 12) % self.head.weight.shape[0]]
        stream, first = torch.cat(rows), len(rows[0])
        positions = torch.cat([torch.arange(len(row)) for row in rows])
        with torch.no_grad(), self._autocast():
            packed = self.hidden(stream, positions, [len(row) for row in rows])[first:].float()
            merged = self.hidden(stream, positions, [len(stream)])[first:].float()
            with self.plain_attention():
                inner = getattr(self.model, self.model.base_model_prefix)
                made = inner(input_ids=rows[1][None].to(self.placement.device), use_cache=False)
        alone = made.last_hidden_state[0].float()
        return bool((packed - alone).norm() < (merged - alone).norm() / 2)

    def plain_attention(self) -> Any:
        """Context manager: the model's own attention, for generating with a cache."""
        return _lm_folder.attention(self.model, "sdpa")

    def _autocast(self) -> Any:
        import torch

        dtype = self.placement.base_dtype
        return torch.autocast(self.placement.device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16))

    # Looking at results

    @classmethod
    def preview_settings(cls, base: Base, section: Any, examples: Sequence[TextExample]) -> tuple[list[Any], dict]:
        """Return prompts (the config's, else rows spread over the data) and how long answers may be."""
        settings = {"new_tokens": section.new_tokens}
        if section.prompts:
            return [(Message("user", prompt),) for prompt in section.prompts], settings
        answered = [e for e in examples if e.row.prompt and e.row.kind != "text"]
        return [e.row.prompt for e in _spread(answered, section.count)], settings

    def preview(self, prompts: Sequence[Sequence[Message]], *, seed: int, new_tokens: int) -> list[str]:
        """One answer a prompt, the likeliest token each time."""
        return [answer.text for answer in _answers.generate(self, prompts, new_tokens)]

    @staticmethod
    def lay_out(before: Sequence[str], after: Sequence[str], prompts: Sequence[Any], stem: Path) -> Path:
        """Write base and LoRA side by side as a text file."""
        return _answers.lay_out(before, after, prompts, stem)

    def label_shares(self, prompts: Sequence[Sequence[Message]], labels: Sequence[str], heat: float) -> Any:
        """(prompts, labels) array: the share of each label among the allowed ones, at a temperature."""
        ids = [self.renderer.prompt(prompt) for prompt in prompts]
        return _scores.probabilities(_scores.label_scores(self, ids, labels), heat)

    def scores(self, examples: Sequence[TextExample], facts: Mapping[str, Any], answers: int) -> Mapping[str, Any]:
        """Measure the task on held-out rows: label accuracy, macro-F1, confusion; format and stop rate of answers."""
        with self._autocast():
            return _scores.measure(self, examples, facts.get("labels") or [], answers)

    @staticmethod
    def leave(folder: Path, facts: Mapping[str, Any], scores: Mapping[str, Any]) -> list[Path]:
        """Write `task.json` for `classify` and `draft`: labels, calibration, and what was measured."""
        return _scores.write_task(folder, facts, scores)


plugin = CausalLM


def _balanced(rows: Sequence[TextRow]) -> tuple[list[TextRow], list[Note]]:
    """Weigh thumbs down to equal shares, unless the liked are 1 to 4/3 times the others already.

    The range is the one that arXiv:2402.01306 (section 4.2) found good for weight x count of either kind.
    """
    thumbs = [row for row in rows if row.kind == "thumb"]
    liked = sum(bool(row.liked) for row in thumbs)
    disliked = len(thumbs) - liked
    if not thumbs or not liked or not disliked or 1 <= liked / disliked <= 4 / 3:
        return list(rows), []
    weight = min(liked, disliked) / max(liked, disliked)
    lighter = liked > disliked
    made = [
        replace(row, weight=row.weight * weight) if row.kind == "thumb" and bool(row.liked) is lighter else row
        for row in rows
    ]
    return made, [Note("llm.thumbs", {"liked": liked, "disliked": disliked, "weight": f"{weight:.3f}"})]


def _spread(examples: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` examples spread evenly."""
    every = max(1, len(examples) // max(1, count))
    return list(examples[::every][:count])
