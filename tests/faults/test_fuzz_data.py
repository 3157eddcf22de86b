"""Bytes of every kind into every reader: a result, or one of our errors whose sentence can be printed; never more."""

from __future__ import annotations

import io
import json
import random
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_scripts import messages
from lora_scripts.errors import ConfigError, LoraScriptsError

LONGEST = 5.0
"""Seconds that no reader needs for so little."""
FEW = settings(max_examples=60, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=3000, suppress_health_check=list(HealthCheck))


def outcome(read: Callable[[Path], object], content: bytes, name: str) -> object:
    """Read these bytes; fail on anything but a result or a printable sentence, on waiting, and on writing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        started = time.perf_counter()
        try:
            result = read(path)
        except LoraScriptsError as error:
            result = error
            for language in messages.LANGUAGES:
                assert messages.catalogue(language)[error.code].format(**error.params).encode()
            sentence = str(error)
            assert sentence.encode() and len(sentence) < 3000
            lines = sentence.splitlines() if isinstance(error, ConfigError) else [sentence]
            assert all(line.isprintable() for line in lines), sentence
        assert time.perf_counter() - started < LONGEST
        assert [one.name for one in Path(folder).iterdir()] == [name]
        assert path.read_bytes() == content
    return result


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return the bytes with some changed, cut out, doubled or put in, or a piece from another place."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["byte", "cut", "end", "double", "put", "move", "number"]))
        if kind == "byte" and data:
            data[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 40))]
        elif kind == "end":
            del data[place:]
        elif kind == "double":
            data[place:place] = data[place : place + 30]
        elif kind == "put":
            data[place:place] = draw(st.binary(max_size=12))
        elif kind == "move":
            other = draw(st.integers(0, max(len(data) - 1, 0)))
            data[place : place + 8] = data[other : other + 8]
        else:
            number = draw(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1]))
            data[place : place + 4] = struct.pack(draw(st.sampled_from(["<I", ">I"])), number)
    return bytes(data)


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Load what readers load when they are first used, which takes longer than reading."""
    from lora_scripts import registry

    for kind in ("families", "adapters"):
        for name in registry.names(kind):
            registry.load(kind, name)
    outcome(adapter, lora(), "x.safetensors")
    outcome(recognised, lora(), "x.safetensors")


# Captions

TABLE = b'file_name,prompt,weight\na.png,"a ""b"", c",2\nb.png,"d\ne",1\n'
LINES = b'{"file_name": "a.png", "prompt": "a"}\n{"file_name": "b.png", "captions": [{"text": "b", "weight": 2}]}\n'
WORDS = st.lists(
    st.sampled_from(['file_name', 'prompt', '"', ',', ';', '\t', '\n', '\r', 'a.png', '\\ud800', '{', '}', '[', ']',
                     ':', '1e999', 'NaN', '\ufeff', '\u2028', '\0', '../', 'null', ' ']),
    max_size=40,
).map(lambda words: "".join(words).encode())  # fmt: skip


def caption_table(path: Path) -> object:
    from lora_scripts.data.caption_files import assign
    from lora_scripts.data.record import Dataset

    return assign(Dataset(path.parent), ["a.png", "b.png"], [path.name])


def check_captions(content: bytes, name: str) -> None:
    result = outcome(caption_table, content, name)
    if not isinstance(result, LoraScriptsError):
        for picture in result.pictures.values():
            assert picture.captions and isinstance("".join(picture.captions).encode(), bytes)
            assert all(0 < weight < float("inf") for weight in picture.weights)


CAPTIONS = {
    "csv": ("metadata.csv", TABLE),
    "jsonl": ("metadata.jsonl", LINES),
    "sidecar": ("a.txt", "caf\u00e9, \u732b".encode()),
    "sidecar UTF-16": ("a.txt", "caf\u00e9, \u732b".encode("utf-16")),
    "caption": ("b.caption", b"a cat"),
}


@pytest.mark.parametrize("kind", CAPTIONS)
@given(data=st.data())
@FEW
def test_f75_f77_f78_captions(kind: str, data: st.DataObject):
    name, whole = CAPTIONS[kind]
    check_captions(data.draw(damaged(whole) | WORDS | st.binary(max_size=60)), name)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@given(content=damaged(TABLE.replace(b",", b"\t")) | WORDS)
@FEW
def test_f77_tables_by_tabs(end: bytes, content: bytes):
    from lora_scripts.data.caption_tables import read_table

    outcome(read_table, content.replace(b"\n", end), "x.tsv")


# Texts

ROWS = [{"prompt": "a", "completion": "b", "weight": 1.5}, {"prompt": "c", "completion": "d\n"}]


def parquet(rows: list[dict[str, Any]] = ROWS) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


TEXTS = {
    "jsonl": lambda: "\n".join(map(json.dumps, ROWS)).encode(),
    "json": lambda: json.dumps({"data": ROWS, "version": 1}).encode(),
    "csv": lambda: b'prompt,completion\na,"b\nc"\nd,e\n',
    "tsv": lambda: b"prompt\tcompletion\na\tb\n",
    "txt": lambda: "caf\u00e9".encode(),
    "parquet": parquet,
}


def text_rows(path: Path) -> object:
    from lora_scripts.data.readers.texts import read
    from lora_scripts.data.record import Dataset

    return read([Dataset(path)], max_bad_fraction=1.0)


@pytest.mark.parametrize("kind", TEXTS)
@given(data=st.data())
@FEW
def test_f75_f77_f78_texts(kind: str, data: st.DataObject):
    result = outcome(text_rows, data.draw(damaged(TEXTS[kind]()) | st.binary(max_size=40)), f"x.{kind}")
    if not isinstance(result, LoraScriptsError):
        for row in result.rows:
            assert "".join(turn.content for turn in (*row.prompt, *row.answer)).encode().strip()


# Pictures


def picture(form: str) -> bytes:
    from PIL import Image

    noise = Image.frombytes("L", (24, 16), random.Random(1).randbytes(24 * 16))
    sink = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    options: dict[str, Any] = {"exif": exif} if form in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    if form == "GIF":
        options = {"save_all": True, "append_images": [noise.rotate(90).convert("P")], "transparency": 3}
    if form == "TIFF":
        options["compression"] = "tiff_lzw"
    noise.convert("P" if form == "GIF" else "RGB").save(sink, form, **options)
    return sink.getvalue()


def decoded(path: Path) -> object:
    from lora_scripts.data.decode import decode_bytes, displayed_size, read_bytes, read_header

    data = read_bytes(path)
    result = decode_bytes(data, path)
    # The reader takes the header's word for pictures it knows.
    assert result.picture.mode == "RGB" and displayed_size(path) == result.picture.size
    assert read_header(data, path).first_of_several == result.first_of_several
    return result


FORMS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
@FEW
def test_f65_pictures(form: str, data: st.DataObject):
    outcome(decoded, data.draw(damaged(picture(form))), f"x.{form.lower()}")


# Configs

CONFIG = b"""train_data_dir: data
base_model: embedded/pictures
output_dir: out
lora_rank: 8
optimizer: {name: adamw, weight_decay: 0.01}
caption: {trigger: "x", dropout: 0.1}
datasets: [{path: a, repeats: 2}]
lora_targets: [".*to_q"]
validation: {share: 0.1, levels: 2}
"""


def config(path: Path) -> object:
    from lora_scripts.config.load import load

    return load(path)


YAML = st.lists(
    st.sampled_from([
        "\n", ": ", "- ", "{", "}", "[", "]", "&a ", "*a", "!!python/object:os.system ", "!!int ", "!!timestamp ", "<<",
        "?", "|\n", ">", "#", "'", '"', "\t", "  ", "%YAML 9.9\n", "---\n", "...", "lora_rank", "seed", "epochs",
        "output_dir", "1_0", "0o9", "1e999", ".nan", "2001-99-99", "null", "~", "yes", "\u00e9", "\ufeff",
        "\x85", "\ud7ff", "9" * 50,
    ]),
    max_size=30,
).map(lambda parts: "".join(parts).encode())  # fmt: skip


@given(content=damaged(CONFIG) | YAML | st.binary(max_size=40))
@FEW
def test_f82_configs(content: bytes):
    outcome(config, content, "run.yaml")


# Safetensors headers, and the LoRA files in them


def _entry(begin: int, end: int, shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def lora(metadata: dict[str, str] | None = None) -> bytes:
    """Return the bytes of a kohya file with one module."""
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    header: dict[str, Any] = {"__metadata__": metadata or {"ss_network_alpha": "4", "ss_base_model_version": "sd_1.5"}}
    header[f"{name}.alpha"] = _entry(0, 4, [])
    header[f"{name}.lora_down.weight"] = _entry(4, 36, [2, 4])
    header[f"{name}.lora_up.weight"] = _entry(36, 68, [4, 2])
    text = json.dumps(header).encode()
    numbers = random.Random(1)
    return struct.pack("<Q", len(text)) + text + struct.pack("<17f", *(numbers.uniform(-1, 1) for _ in range(17)))


def lora_header(path: Path) -> object:
    from lora_scripts.adapters.safetensors_file import read_header

    return read_header(path)


def base_header(path: Path) -> object:
    from lora_scripts.families._stream import TensorFile

    file = TensorFile(path)
    return sum(tensor.numel() for _, tensor in file.read(file.shapes))


def adapter(path: Path) -> object:
    from lora_scripts.adapters import files

    return files.load(path)


def recognised(path: Path) -> object:
    from lora_scripts import registry

    return [registry.load("families", name).plugin.recognise(path, "") for name in registry.names("families")]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["F32", "F16", "Q4", "", "\ud800", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
HEADERS = st.dictionaries(
    st.sampled_from(["__metadata__", "a.lora_down.weight", "lora_unet_x.alpha", "b", "\ud800", ""]),
    JSON_VALUES
    | st.fixed_dictionaries({"dtype": st.sampled_from(["F32", "I64", "BF16", "F8_E4M3", "Z"]), "shape": JSON_VALUES,
                             "data_offsets": st.lists(st.integers(-4, 80), max_size=3)}),
    max_size=4,
).map(lambda header: json.dumps(header).encode())  # fmt: skip
FILES = damaged(lora()) | HEADERS.map(lambda text: struct.pack("<Q", len(text)) + text + b"\0" * 32)
READERS = {"header": lora_header, "base": base_header, "LoRA": adapter, "family": recognised}


@pytest.mark.parametrize("reader", READERS)
@given(content=FILES | st.binary(max_size=40))
@FEW
def test_f83_f84_safetensors(reader: str, content: bytes):
    outcome(READERS[reader], content, "x.safetensors")


def test_the_whole_files_are_read():
    """What is damaged above is a good file before."""
    for kind, (name, whole) in CAPTIONS.items():
        assert not isinstance(outcome(caption_table, whole, name), LoraScriptsError), kind
    for kind, make in TEXTS.items():
        assert not isinstance(outcome(text_rows, make(), f"x.{kind}"), LoraScriptsError), kind
    for form in FORMS:
        assert not isinstance(outcome(decoded, picture(form), "x"), LoraScriptsError), form
    for name in ("header", "base", "LoRA"):
        assert not isinstance(outcome(READERS[name], lora(), "x.safetensors"), LoraScriptsError), name


Case = tuple[str, Callable[[bytes], object], Callable[[], st.SearchStrategy[bytes]]]


def reads(read: Callable[[Path], object], name: str) -> Callable[[bytes], object]:
    return lambda content: outcome(read, content, name)


def slow_cases() -> list[Case]:
    cases: list[Case] = [("config", reads(config, "run.yaml"), lambda: damaged(CONFIG) | YAML)]
    for kind, (name, whole) in CAPTIONS.items():
        check = lambda content, name=name: check_captions(content, name)  # noqa: E731
        cases.append((f"captions {kind}", check, lambda whole=whole: damaged(whole) | WORDS))
    for kind, make in TEXTS.items():
        cases.append((f"texts {kind}", reads(text_rows, f"x.{kind}"), lambda make=make: damaged(make())))
    for form in FORMS:
        cases.append((f"picture {form}", reads(decoded, "x"), lambda form=form: damaged(picture(form))))
    for kind, read in READERS.items():
        cases.append((f"file {kind}", reads(read, "x.safetensors"), lambda: FILES))
    return cases


SLOW = slow_cases()


def test_the_cases_are_all():
    assert len(SLOW) == 22


@pytest.mark.slow
@pytest.mark.parametrize(("check", "strategy"), [row[1:] for row in SLOW], ids=[row[0] for row in SLOW])
def test_many_more(check: Callable[[bytes], object], strategy: Callable[[], st.SearchStrategy[bytes]]):
    @given(content=strategy())
    @MANY
    def search(content: bytes) -> None:
        check(content)

    search()
