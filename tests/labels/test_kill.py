"""kill -9, Ctrl-C and a second process during labelling."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from lora_scripts.cli import main
from tests import toy_labels
from tests.labels.test_label import journal, table

COUNT = 40
COMMAND = [sys.executable, "-c", "import sys; from lora_scripts.cli import main; sys.exit(main(sys.argv[1:]))"]

PEAK = [sys.executable, "-c"]
PEAK += [
    "import sys; from lora_scripts.cli import main; from lora_scripts.train.memory import peak_bytes; "
    "assert main(sys.argv[1:]) == 0; print(peak_bytes())"
]


def start(folder: Path, log: Path, seconds: float = 0.1, more: Sequence[str] = ()) -> subprocess.Popen:
    words = [
        "label",
        "--input",
        str(folder),
        "--captioner",
        "toy",
        "--set",
        f"log={log}",
        "--set",
        f"seconds={seconds}",
    ]
    return subprocess.Popen([*COMMAND, *words, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.002)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture
def expected(toy, tmp_path) -> bytes:
    """The table of a run that nobody disturbed."""
    folder = toy_labels.folder(tmp_path / "whole", COUNT)
    assert main(["label", "--input", str(folder), "--captioner", "toy"]) == 0
    return (folder / "metadata.csv").read_bytes()


def test_kill_9_and_the_same_command_again(toy, tmp_path, expected):
    folder, log = toy_labels.folder(tmp_path / "data", COUNT), tmp_path / "log"
    side = folder / "metadata.labels.jsonl"
    kept = 0
    for moment in (4, 13, 25):
        process = start(folder, log)
        wait_for(lambda moment=moment: lines(side) >= moment, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = lines(side)
        assert now >= max(moment, kept)
        kept = now
    last = start(folder, log, 0)
    said = last.communicate()[0]
    assert last.returncode == 0, said
    assert (folder / "metadata.csv").read_bytes() == expected
    names = [line["file_name"] for line in journal(folder) if line["kind"] == "caption"]
    assert len(names) == len(set(names)) == COUNT
    # Only what a kill cut off in the middle of a batch was shown to the model again.
    shown = log.read_text().split()
    assert len(set(shown)) == COUNT and len(shown) <= COUNT + 3 * 4
    assert not list(folder.glob(".staged-*")) and not list(folder.glob(".*lock*"))[1:]


def test_kill_9_while_all_but_a_person_s_is_labelled_anew(toy, tmp_path):
    """What too many captions say is dropped at the end: a run that was cut off comes to that all the same."""
    words = ["--existing", "relabel", "--kind", "style", "--set", "always=warm", "--set", "voice=new"]
    folders = []
    for name in ("whole", "data"):
        folder = toy_labels.folder(tmp_path / name, COUNT)
        assert main(["label", "--input", str(folder), "--captioner", "toy"]) == 0
        text = (folder / "metadata.csv").read_text().replace('"red square, oil painting, on a table"', "mine", 1)
        (folder / "metadata.csv").write_text(text)
        folders.append(folder)
    whole, folder = folders
    assert main(["label", "--input", str(whole), "--captioner", "toy", *words]) == 0
    expected = (whole / "metadata.csv").read_bytes()
    assert b"warm" not in expected and expected.count(b"mine") == 1 and b"oil" not in expected
    before = lines(folder / "metadata.labels.jsonl")
    for moment in (5, 17, 33):
        process = start(folder, tmp_path / "log", 0.05, words)
        wait_for(lambda moment=moment: lines(folder / "metadata.labels.jsonl") >= before + moment, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert main(["label", "--input", str(folder), "--captioner", "toy", *words]) == 0
    assert (folder / "metadata.csv").read_bytes() == expected
    assert (folder / "metadata.labels.jsonl").read_bytes() == (whole / "metadata.labels.jsonl").read_bytes()


def test_a_torn_last_line_is_taken_for_what_it_is(toy, tmp_path, expected):
    folder, log = toy_labels.folder(tmp_path / "data", COUNT), tmp_path / "log"
    process = start(folder, log)
    wait_for(lambda: lines(folder / "metadata.labels.jsonl") >= 9, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with (folder / "metadata.labels.jsonl").open("ab") as file:
        file.write(b'{"schema": 1, "kind": "capt')
    assert main(["label", "--input", str(folder), "--captioner", "toy"]) == 0
    assert (folder / "metadata.csv").read_bytes() == expected


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_polite_stop_writes_what_was_done(toy, tmp_path, expected, number, code):
    folder, log = toy_labels.folder(tmp_path / "data", COUNT), tmp_path / "log"
    process = start(folder, log)
    wait_for(lambda: lines(log) >= 8, process)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == code and "Traceback" not in said and "Stopped" in said
    done = len(table(folder))
    assert 8 <= done < COUNT
    assert main(["label", "--input", str(folder), "--captioner", "toy"]) == 0
    assert (folder / "metadata.csv").read_bytes() == expected


def test_a_second_process_is_refused(toy, tmp_path, capsys):
    folder, log = toy_labels.folder(tmp_path / "data", COUNT), tmp_path / "log"
    process = start(folder, log)
    wait_for(lambda: lines(log) >= 4, process)
    assert main(["label", "--input", str(folder), "--captioner", "toy"]) == 6
    assert f"process {process.pid}" in capsys.readouterr().err
    process.communicate()
    assert process.returncode == 0


def test_a_deleted_table_is_written_again(toy, tmp_path, expected):
    folder = toy_labels.folder(tmp_path / "data", COUNT)
    for _ in range(2):
        assert main(["label", "--input", str(folder), "--captioner", "toy"]) == 0
        assert (folder / "metadata.csv").read_bytes() == expected
        (folder / "metadata.csv").unlink()


def test_memory_does_not_grow_with_the_number_of_pictures(toy, tmp_path):
    peaks = {}
    for count in (100, 1000):
        folder = tmp_path / f"n{count}"
        folder.mkdir()
        first = toy_labels.folder(tmp_path / "few", 4)
        for i in range(count):
            shutil.copy(first / f"{i % 4:03d}.png", folder / f"{i:05d}.png")
        peaks[count] = int(
            subprocess.check_output([*PEAK, "label", "--input", folder, "--captioner", "toy"]).split()[-1]
        )
    assert peaks[1000] < peaks[100] + 12_000_000
