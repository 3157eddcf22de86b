"""The quick ways of computing give what the plain ones give: one stream, the head on targets, labels at once."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from lora_scripts import registry
from lora_scripts.adapters.inject import inject
from lora_scripts.contracts import Batch, Placement
from lora_scripts.data.record import Message, TextRow
from lora_scripts.families import _head, _rows
from lora_scripts.families._chat import Tokens
from lora_scripts.families._scores import label_scores
from lora_scripts.families._texts import TextExample
from tests import tiny_text

LENGTHS = (7, 19, 3, 40, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.write_base(tmp_path_factory.mktemp("base"))


def load(folder: Path, dtype: torch.dtype = torch.float64, *, fused: bool = True):
    """The family in one number format, with pairs whose `up` is not zero."""
    plugin = registry.load("families", "causal_lm").plugin
    base = plugin.recognise(folder)
    family = plugin.load(base, Placement(device=torch.device("cpu"), base_dtype=dtype, encoder_dtype=dtype))
    targets = plugin.target_presets["all-linear"]
    injected = inject(family.trainable(), targets=targets, rank=4, alpha=8.0, dropout=0.0, seed=1)
    if fused:
        family.injected(injected)
    generator = torch.Generator().manual_seed(3)
    for parameter in injected.parameters("language_model").values():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype) * 0.1
    return family, injected.parameters("language_model")


def rows(lengths=LENGTHS, seed: int = 5) -> list[TextExample]:
    """Rows of random tokens, the last third of each to be learned, with weights that differ."""
    draw = np.random.default_rng(seed)
    made = []
    for i, length in enumerate(lengths):
        weights = np.zeros(length, np.float32)
        weights[-max(1, length // 3) :] = 1 + i % 2
        ids = draw.integers(3, 250, length).astype(np.int32)
        row = TextRow(f"r{i}", "completion", (Message("user", str(i)),), weight=1.0 + 0.5 * (i % 3))
        made.append(TextExample(row, (Tokens(ids, weights),)))
    return made


def batch(family, examples) -> Batch:
    entries = [{} for _ in examples]
    return Batch(
        weight=sum(example.mass for example in examples),
        weights=torch.tensor([example.weight for example in examples]),
        tensors=family.collate(examples, entries),
        generators=[],
        ids=[example.id for example in examples],
    )


def plain_loss(family, examples) -> torch.Tensor:
    """Every row alone through the model as transformers has it, with the whole table of logits."""
    total = torch.zeros((), dtype=torch.float64)
    with family.plain_attention():
        for example in examples:
            tokens = example.sequences[0]
            ids = torch.from_numpy(tokens.ids.astype(np.int64))[None]
            logits = family.model(input_ids=ids, use_cache=False).logits[0]
            losses = functional.cross_entropy(logits[:-1].double(), ids[0, 1:], reduction="none")
            total = total + example.weight * (losses * torch.from_numpy(tokens.weights[1:])).sum()
    return total


def gradients(loss: torch.Tensor, parameters) -> dict[str, torch.Tensor]:
    found = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("packs", [True, False], ids=["one stream", "padded"])
def test_loss_and_gradients_equal_the_plain_way(folder: Path, packs: bool):
    family, parameters = load(folder)
    assert family.packs
    family.packs = packs
    if not packs:
        family.model.set_attn_implementation("sdpa")
    examples = rows()
    objective = registry.load("objectives", "sft").build(None)
    quick = objective.loss(family, batch(family, examples)).total
    found = gradients(quick, parameters)
    # The layers as PEFT and transformers have them.
    reference, theirs = load(folder, fused=False)
    plain = plain_loss(reference, examples)
    wanted = gradients(plain, theirs)
    assert abs(quick - plain) < 1e-10 * plain
    assert len(found) == 2 * 14
    worst = max(float((found[name] - wanted[name]).norm() / wanted[name].norm()) for name in found)
    # Sums in another order, in float64.
    assert worst < 1e-9


def test_long_rows_through_flash_equal_the_plain_way(folder: Path):
    family, parameters = load(folder)
    examples = rows((_rows.PLAIN_LENGTH + 20, 30))
    objective = registry.load("objectives", "sft").build(None)
    quick = objective.loss(family, batch(family, examples)).total
    reference, theirs = load(folder, fused=False)
    found, wanted = gradients(quick, parameters), gradients(plain_loss(reference, examples), theirs)
    assert max(float((found[name] - wanted[name]).norm() / wanted[name].norm()) for name in found) < 1e-9


def test_gradient_checkpointing_changes_nothing(folder: Path):
    family, parameters = load(folder)
    objective = registry.load("objectives", "sft").build(None)
    wanted = gradients(objective.loss(family, batch(family, rows())).total, parameters)
    family.model.gradient_checkpointing_enable({"use_reentrant": False})
    family.model.train()
    found = gradients(objective.loss(family, batch(family, rows())).total, parameters)
    assert max(float((found[name] - wanted[name]).norm() / wanted[name].norm()) for name in found) < 1e-12


def test_a_row_does_not_know_its_neighbours(folder: Path):
    """The gradient of one row is the same alone, in the middle of others, and beside rows of other words."""
    family, parameters = load(folder)
    objective = registry.load("objectives", "sft").build(None)
    target, others, strangers = rows()[1], rows(), rows(seed=99)

    def of_target(examples) -> dict[str, torch.Tensor]:
        made = batch(family, examples)
        place = next(i for i, example in enumerate(examples) if example is target)
        only = torch.zeros(len(examples))
        only[place] = target.weight
        single = Batch(made.weight, only, made.tensors, made.generators, made.ids)
        return gradients(objective.loss(family, single).total, parameters)

    alone = of_target([target])
    for company in ([others[0], target, others[3]], [strangers[4], strangers[2], target], [target, strangers[3]]):
        found = of_target(company)
        assert max(float((found[name] - alone[name]).norm() / alone[name].norm()) for name in found) < 1e-9


def test_a_neighbour_would_be_noticed(folder: Path):
    """The same stream taken as one row gives another loss: the test above can fail."""
    family, _ = load(folder)
    objective = registry.load("objectives", "sft").build(None)
    made = batch(family, rows())
    right = float(objective.loss(family, made).total)
    made.tensors["lengths"] = [sum(made.tensors["lengths"])]
    assert abs(float(objective.loss(family, made).total) - right) > 1e-3 * right


@pytest.mark.parametrize("cap", [0.0, 5.0], ids=["no cap", "cap"])
@pytest.mark.parametrize("scale", [1.0, 0.25], ids=["as is", "scaled"])
@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
def test_head_equals_the_whole_table(cap: float, scale: float, has_bias: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_head, "CHUNK_BYTES", 1)  # the smallest chunks: 16 positions
    torch.manual_seed(0)
    hidden = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(37, 8, dtype=torch.float64)
    bias = torch.randn(37, dtype=torch.float64) if has_bias else None
    labels, upstream = torch.randint(0, 37, (50,)), torch.randn(50, dtype=torch.float64)
    found = _head.token_logprobs(hidden, labels, _head.Head(weight, bias, scale, cap))
    (quick,) = torch.autograd.grad((found * upstream).sum(), hidden)
    table = hidden @ weight.T + (bias if bias is not None else 0)
    table = table * scale
    table = cap * torch.tanh(table / cap) if cap else table
    plain = table.log_softmax(1)[torch.arange(50), labels]
    (wanted,) = torch.autograd.grad((plain * upstream).sum(), hidden)
    assert torch.allclose(found, plain, atol=1e-12, rtol=0)
    assert torch.allclose(quick, wanted, atol=1e-12, rtol=0)


def test_head_makes_no_whole_table_and_no_gradient_of_itself():
    """Peak of what is kept for the backward pass: N x D, not N x V."""
    hidden = torch.randn(64, 8, requires_grad=True)
    weight = torch.randn(5000, 8)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        found = _head.token_logprobs(hidden, torch.zeros(64, dtype=torch.long), _head.Head(weight))
    found.sum().backward()
    assert kept == [64 * 8] and weight.grad is None


def test_labels_at_once_equal_labels_one_by_one(folder: Path):
    family, _ = load(folder)
    labels = ["billing", "how_to", "x"]
    prompts = [
        family.renderer.prompt((Message("user", text),)) for text in ("short", "a longer message, with more words")
    ]
    quick = label_scores(family, prompts, labels)
    with torch.no_grad(), family.plain_attention():
        for prompt, found in zip(prompts, quick, strict=True):
            for label, score in zip(labels, found, strict=True):
                answer = family.renderer.answer(label)
                ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
                logprobs = family.model(input_ids=ids).logits[0].log_softmax(-1)
                places = range(len(prompt) - 1, ids.shape[1] - 1)
                plain = sum(float(logprobs[i, ids[0, i + 1]]) for i in places)
                assert score == pytest.approx(plain, abs=1e-9)
    family.packs = False
    family.model.set_attn_implementation("sdpa")
    assert np.allclose(label_scores(family, prompts, labels), quick, atol=1e-9)


def test_a_model_with_windows_or_caps_is_padded_instead():
    from transformers import Gemma2Config, LlamaConfig, MistralConfig

    assert _rows.can_pack(LlamaConfig(), 4096)
    assert not _rows.can_pack(Gemma2Config(), 64)
    assert not _rows.can_pack(MistralConfig(sliding_window=32, layer_types=["sliding_attention"] * 32), 4096)
    assert _rows.can_pack(MistralConfig(sliding_window=4096, layer_types=["sliding_attention"] * 32), 4096)


def test_what_a_perfect_model_would_lose(folder: Path):
    """The loss of a uniform guess is log V a token: the sum and the weight belong together."""
    family, _ = load(folder)
    made = batch(family, rows())
    family.head = _head.Head(torch.zeros_like(family.head.weight))
    loss = registry.load("objectives", "sft").build(None).loss(family, made).total
    assert float(loss) / made.weight == pytest.approx(math.log(family.head.weight.shape[0]))


def test_layers_of_the_plain_kind_are_replaced_and_no_others(folder: Path):
    plugin = registry.load("families", "causal_lm").plugin
    placement = Placement(device=torch.device("cpu"), base_dtype=torch.float32, encoder_dtype=torch.float32)
    replaced = {}
    for dropout in (0.0, 0.1):
        family = plugin.load(plugin.recognise(folder), placement)
        injected = inject(
            family.trainable(), targets=plugin.target_presets["all-linear"], rank=4, alpha=8.0, dropout=dropout, seed=1
        )
        family.injected(injected)
        named = {name: module for name, module in family.model.named_modules() if "forward" in vars(module)}
        replaced[dropout] = tuple(sum(name.endswith(end) for name in named) for end in ("proj", "norm", "mlp"))
    assert replaced == {0.0: (14, 5, 2), 0.1: (0, 5, 2)}


def test_a_switched_off_adapter_is_the_base(folder: Path):
    """The replaced layers obey the strength, as PEFT's own do."""
    plugin = registry.load("families", "causal_lm").plugin
    placement = Placement(device=torch.device("cpu"), base_dtype=torch.float32, encoder_dtype=torch.float32)
    family = plugin.load(plugin.recognise(folder), placement)
    ids, positions = torch.arange(3, 20), torch.arange(17)
    with torch.no_grad():
        base = family.hidden(ids, positions, [17])
        injected = inject(
            family.trainable(), targets=plugin.target_presets["q_v"], rank=4, alpha=8.0, dropout=0.0, seed=1
        )
        family.injected(injected)
        for parameter in injected.parameters("language_model").values():
            parameter.normal_(0, 0.3)
        changed = family.hidden(ids, positions, [17])
        with injected.disabled():
            off = family.hidden(ids, positions, [17])
    assert torch.equal(off, base) and not torch.allclose(changed, base)


def test_the_loss_found_while_labels_are_scored_is_the_objectives_own(folder: Path):
    """Held-out rows are not run twice: what scoring found of a row is what the objective would find of it."""
    family, _ = load(folder)
    objective = registry.load("objectives", "sft").build(None)
    made = []
    for number, label in enumerate(("billing", "delivery", "billing")):
        prompt = (Message("user", f"message {number}"),)
        row = TextRow(
            f"r{number}", "completion", prompt, (Message("assistant", label),), label=label, weight=1 + number
        )
        made.append(TextExample(row, tuple(family.renderer.sequence(row, row.answer, "completions"))))
    found = family.scores(made, {"labels": ["billing", "delivery"]}, 0)["losses"]
    assert found.keys() == {"r0", "r1", "r2"}
    for example in made:
        alone = batch(family, [example])
        loss, mass = found[example.id]
        assert mass == alone.weight
        assert loss == pytest.approx(float(objective.loss(family, alone).total.detach()), rel=1e-9)


def test_gradients_through_a_base_in_four_bits(folder: Path, tmp_path: Path):
    """Those of the same base with its weights as the four bits say: nothing is lost on the way back."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    wide = tiny_text.write_base(tmp_path / "wide", hidden_size=64, intermediate_size=128)
    plugin = registry.load("families", "causal_lm").plugin
    examples, found = rows(), []
    for quantised in (True, False):
        kind = {"quantisation": "nf4"} if quantised else {}
        placement = Placement(device=torch.device("cpu"), base_dtype=torch.float32, encoder_dtype=torch.float32, **kind)
        family = plugin.load(plugin.recognise(wide), placement)
        if quantised:
            weights = {
                name: bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
                for name, module in family.model.named_modules()
                if isinstance(module, bitsandbytes.nn.Linear4bit)
            }
            assert len(weights) == 14
        else:
            for name, module in family.model.named_modules():
                if name in weights:
                    module.weight.data = weights[name]
        targets = plugin.target_presets["all-linear"]
        injected = inject(family.trainable(), targets=targets, rank=4, alpha=8.0, dropout=0.0, seed=1)
        parameters = injected.parameters("language_model")
        generator = torch.Generator().manual_seed(3)
        for parameter in parameters.values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        family.injected(injected)
        objective = registry.load("objectives", "sft").build(None)
        found.append(gradients(objective.loss(family, batch(family, examples)).total, parameters))
    four, plain = found
    assert max(float((four[name] - plain[name]).norm() / plain[name].norm()) for name in plain) < 1e-4
