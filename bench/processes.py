"""One process a run, one at a time: no part's memory or warm kernels are another's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TAIL = 3000


def child(module: str, work: Path, *arguments: object) -> tuple[float, int]:
    """Run `python -m module arguments`; return the seconds from its start to its end and its largest resident bytes."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    log = work / "child.log"
    # Nothing is downloaded, and nothing is left in a person's own caches.
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **offline}, stdout=file, stderr=file)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"exit status {process.returncode}: {' '.join(command)}\n{log.read_text(encoding='utf-8')[-TAIL:]}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
