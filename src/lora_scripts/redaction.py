"""Takes secrets out of what is written to files: tokens by their form, values by the name they stand behind."""

from __future__ import annotations

import re

HIDDEN = "[hidden]"
_TOKENS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bA(?:KIA|SIA)[0-9A-Z]{16}\b"
)
_NAMED = re.compile(
    r"((?:api[_-]?key|token|secret|passw(?:or)?d|authorization)[\"']?\s*[=:]\s*[\"']?(?:bearer\s+)?)([^\s\"',;&]{6,})",
    re.IGNORECASE,
)
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@\"']+@", re.IGNORECASE)
# Colours of a terminal may stand in the middle of a token.
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def hide(text: str) -> str:
    """Return a text without tokens, named secrets and the user part of addresses."""
    bare = _ESCAPES.sub("", text)
    return _USER.sub(rf"\1{HIDDEN}@", _NAMED.sub(rf"\1{HIDDEN}", _TOKENS.sub(HIDDEN, bare)))
