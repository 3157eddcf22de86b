"""A tiny model for each captioner, built in code: random weights, real classes, real files."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

TAGS = (
    ("general", "rating", "9"),
    ("explicit", "rating", "9"),
    ("1girl", "general", "0"),
    ("red_square", "general", "0"),
    ("blue_eyes", "general", "0"),
    ("^_^", "general", "0"),
    ("saber_(fate)", "character", "4"),
)
WORDS = ["a", "red", "square", "blue", "disc", "on", "white", "ground", "the", "of", "picture", "with", "green", "."]


def write_wd14(
    folder: Path,
    *,
    outputs: int = len(TAGS),
    side: int = 16,
    batch: int | str = "n",
    squashed: bool = True,
    raised: float = 0.0,
) -> Path:
    """A graph whose scores depend on the picture's mean colours: sigmoid(mean(x) W + b)."""
    import numpy
    from onnx import TensorProto, helper, numpy_helper, save

    random = numpy.random.default_rng(0)
    weights = random.normal(0, 0.02, (3, outputs)).astype(numpy.float32)
    bias = (random.normal(0, 1, outputs) + raised).astype(numpy.float32)
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["means"], keepdims=0),
        helper.make_node("Gemm", ["means", "weights", "bias"], ["logits"]),
        helper.make_node("Sigmoid" if squashed else "Identity", ["logits"], ["output"]),
    ]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, side, side, 3])
    out = helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, outputs])
    kept = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(bias, "bias"),
        numpy_helper.from_array(numpy.array([1, 2], dtype=numpy.int64), "axes"),
    ]
    graph = helper.make_graph(nodes, "tagger", [given], [out], kept)
    folder.mkdir(parents=True, exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx")
    rows = [f"{i},{name},{category},{100 - i}" for i, (name, _, category) in enumerate(TAGS)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]) + "\n")
    return folder


def _bert_tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return BertTokenizer(str(folder / "vocab.txt"))


def write_blip(folder: Path) -> Path:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor

    tokenizer = _bert_tokenizer(folder / "words")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0, "is_decoder": True}
    text = {**shape, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "encoder_hidden_size": 16}
    vision = {**shape, "image_size": 32, "patch_size": 8}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=8, image_text_hidden_size=16)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def _word_tokenizer(extra: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *extra, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": extra[0]},
    )


def write_llava(folder: Path) -> Path:
    """A vision-language model of a native class whose processor needs no torchvision."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _word_tokenizer(["<image>"])
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**shape, image_size=32, patch_size=8)
    text = LlamaConfig(
        **shape,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    template = (
        "{% for turn in messages %}{% for part in turn['content'] %}{% if part['type'] == 'image' %}<image> "
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    return folder


def write_qwen(folder: Path) -> Path:
    """A vision-language model whose processor has a part for videos, which alone needs torchvision."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

    marks = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = _word_tokenizer(marks)
    torch.manual_seed(0)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    }
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(marks), strict=True))
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=64, max_pixels=1024, patch_size=4).save_pretrained(folder)
    # As on the hub, where the name is that of the class that needs torchvision.
    kept = json.loads((folder / "preprocessor_config.json").read_text())
    kept |= {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(kept))
    (folder / "chat_template.jinja").write_text(
        "{% for turn in messages %}{% for part in turn['content'] %}{% if part['type'] == 'image' %}<|vision_start|>"
        "<|image_pad|><|vision_end|> {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    return folder


def write_florence(folder: Path) -> Path:
    from transformers import (
        BartConfig,
        CLIPImageProcessorPil,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        Florence2VisionConfig,
    )

    tokenizer = _word_tokenizer(["<image>"])
    torch.manual_seed(0)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    vision = Florence2VisionConfig(
        depths=[1, 1],
        embed_dim=[8, 16],
        num_heads=[2, 2],
        num_groups=[2, 2],
        patch_size=[7, 3],
        patch_stride=[4, 2],
        patch_padding=[3, 1],
        patch_prenorm=[False, True],
        window_size=4,
        projection_dim=16,
        image_size=32,
    )
    text = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    config = Florence2Config(vision_config=vision, text_config=text, image_token_id=image_token)
    model = Florence2ForConditionalGeneration(config)
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    # 16 places of the picture and one for the whole.
    images.image_seq_length = 17
    Florence2Processor(images, tokenizer, num_additional_image_tokens=1).save_pretrained(folder)
    return folder


@contextmanager
def server(
    answer: Callable[[dict[str, Any] | None], tuple[int, bytes, dict[str, str]]], drip: float = 0
) -> Iterator[str]:
    """A real server that speaks the protocol; `answer` makes (status, body, headers) of what was posted.

    `drip` is how many seconds it takes for each byte of an answer to a picture.
    """

    class Handler(BaseHTTPRequestHandler):
        def _send(self, body: dict[str, Any] | None) -> None:
            status, data, headers = answer(body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # who asked has gone
                for part in [data[i : i + 1] for i in range(len(data))] if drip and body else [data]:
                    self.wfile.write(part)
                    time.sleep(drip if body else 0)

        def do_GET(self) -> None:
            self._send(None)

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(length))
            body["authorization"] = self.headers.get("Authorization")
            self._send(body)

        def log_message(self, *_: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1"
    finally:
        running.shutdown()
        running.server_close()


def colour_of(body: dict[str, Any]) -> str:
    """What the server says: the middle colour of the picture it was sent."""
    from PIL import Image

    url = body["messages"][0]["content"][1]["image_url"]["url"]
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    middle = picture.getpixel((picture.width // 2, picture.height // 2))
    return "red" if middle[0] > middle[2] else "blue"


def says(text: str, finish: str = "stop") -> tuple[int, bytes, dict[str, str]]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return 200, json.dumps({"choices": [choice]}).encode(), {}
