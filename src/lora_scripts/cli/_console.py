"""Printing: one rich console, plain sentences."""

from __future__ import annotations

import time

from lora_scripts import messages

QUIET_SECONDS = 2.0


def quiet_libraries() -> None:
    """Keep the model libraries' progress bars and advice out of our lines."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


class Console:
    """Prints sentences of the catalogue; repeated progress sentences at most every two seconds."""

    def __init__(self) -> None:
        from rich.console import Console as RichConsole

        self.rich = RichConsole()
        self._last: dict[str, float] = {}

    def line(self, text: str) -> None:
        """Print one line as it is."""
        self.rich.print(text, highlight=False, markup=False, soft_wrap=True)

    def say(self, code: str, **params: object) -> None:
        """Print one sentence of the catalogue."""
        if "done" in params and "total" in params:
            now = time.monotonic()
            if params["done"] != params["total"] and now - self._last.get(code, 0.0) < QUIET_SECONDS:
                return
            self._last[code] = now
        self.line(messages.text(code, **params))
