"""What a process says of its memory is its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = "from lora_scripts.train.memory import peak_bytes; print(peak_bytes())"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such number to get wrong")
def test_a_large_parent_is_not_counted():
    held = bytearray(200 << 20)
    held[::4096] = b"1" * len(held[::4096])
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert 4 << 20 < int(done.stdout) < 100 << 20
