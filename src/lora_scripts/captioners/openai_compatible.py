"""Any vision-language model behind a server that speaks OpenAI's protocol: LM Studio, llama.cpp, vLLM, Ollama ...

`--model` is the server's address or "model@address"; left without a model's name, the server decides. Each picture is
sent as a data URL. A server on another machine is asked only because its address was given; redirects to elsewhere are
not followed, proxies of the environment are not used, and the key, where one is needed, comes from the variable of the
environment that `key_variable` names; without that name none is sent.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from lora_scripts.contracts import Label
from lora_scripts.data.record import Note
from lora_scripts.errors import ConfigError, MachineError

if TYPE_CHECKING:
    from PIL import Image

NEEDS_MODEL = False
VERSION = 2
ADDRESS = "http://127.0.0.1:1234/v1"
LOCAL = ("127.0.0.1", "localhost", "::1")
MAX_ANSWER = 1 << 20
# Seconds before each further attempt.
WAITS = (0.5, 2.0, 5.0)
AGAIN = (408, 429, 500, 502, 503, 504)
# These are about the server or its address, and no picture's fault.
NOBODYS = (301, 302, 303, 307, 308, 401, 403, 404, 405)
KEY_WANTED = (401, 403)
MOST_IN_A_ROW = 5
GREETING_SECONDS = 10.0


class Config(BaseModel):
    """Its own options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = (
        "Describe this picture for training an image model, in one or two plain sentences: what is seen, "
        "who or what does what, where, in which light. Do not guess names, and do not begin with 'The image'."
    )
    tokens: int = Field(200, ge=1, le=10_000)
    temperature: float = Field(0.0, ge=0, le=2)
    side: int = Field(1024, ge=32, le=8192)
    timeout: float = Field(120.0, gt=0, le=3600)
    key_variable: str = ""


def build(config: Config, model: str | None, device: str) -> Any:
    """Find the server; see `contracts.Captioner`.

    Raises:
        ConfigError: the address is none.
        MachineError: nothing answers there, or the key is missing or refused.
    """
    name, _, address = (model or ADDRESS).rpartition("@")
    try:
        parts = urlsplit(address)
        # Reading a port is what finds a wrong one.
        told = parts.port != 0 and address.isprintable() and " " not in address
    except ValueError:
        told = False
    if not told or parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise ConfigError("captioner.address", model=model, example=f"my-model@{ADDRESS}")
    server = Server(config, name, address.rstrip("/"))
    server.check()
    return server


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none: pictures go where the person said."""


class _Refused(Exception):
    """An answer that is none, in one line.

    Attributes:
        status: of HTTP; 0 where nothing answered in that way.
        again: another attempt may help.
        gone: there was no connection, or it broke.
    """

    def __init__(self, reason: str, *, status: int = 0, again: bool = False, gone: bool = False):
        super().__init__(reason)
        self.status, self.again, self.gone = status, again, gone


class Server:
    """One server and model."""

    batch_size = 1

    def __init__(self, config: Config, name: str, address: str):
        self.config, self.name, self.address = config, name, address
        host = urlsplit(address).hostname or ""
        far = "" if host in LOCAL else f" ({host}: pictures leave this machine)"
        self.title = f"{name or 'the model'} at {address}{far}"
        said = config.model_dump_json(exclude={"timeout", "key_variable"})
        self.identity = hashlib.sha256(f"openai {VERSION} {name} {address} {said}".encode()).hexdigest()
        self._open = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({})).open
        self._key = _key(config.key_variable)
        self._failed = 0

    def check(self) -> None:
        """Ask for the list of models, so that an absent server is told once and not for each picture.

        Raises:
            MachineError: nothing answers, or the key is refused.
        """
        try:
            self._ask("/models", None, min(GREETING_SECONDS, self.config.timeout))
        except _Refused as error:
            self._stop_for_key(error)
            # Servers without that list are servers all the same.
            if not error.status:
                raise MachineError("captioner.no_server", address=self.address, reason=str(error)) from error

    def caption(self, pictures: Sequence[Image.Image]) -> list[Label]:
        """Label one picture after another; one that fails has a doubt and no words.

        Raises:
            MachineError: the server went away, does not take pictures at this address, or failed for many in a row:
                nothing is written for pictures that it would have had no fault with.
        """
        return [self._label(picture) for picture in pictures]

    def _label(self, picture: Image.Image) -> Label:
        from lora_scripts.captioners._prose import clean

        body: dict[str, Any] = {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": self.config.prompt},
                        {"type": "image_url", "image_url": {"url": self._data_url(picture)}},
                    ],
                }
            ],
            "max_tokens": self.config.tokens,
            "temperature": self.config.temperature,
            "stream": False,
        }
        if self.name:
            body["model"] = self.name
        try:
            choice = self._with_patience(body)["choices"][0]
            text, whole = choice["message"]["content"], choice.get("finish_reason") != "length"
            if not isinstance(text, str):
                raise TypeError("content")
        except (KeyError, IndexError, TypeError) as error:
            return self._doubt(f"unexpected answer ({error})")
        except _Refused as error:
            self._stop_for_key(error)
            if error.status in NOBODYS:
                raise MachineError("captioner.not_there", address=self.address, reason=str(error)) from error
            if error.gone:
                # A picture may break a connection; then the server is there for the next.
                self.check()
            return self._doubt(str(error))
        self._failed = 0
        return clean(text, whole=whole)

    def _doubt(self, reason: str) -> Label:
        self._failed += 1
        if self._failed >= MOST_IN_A_ROW:
            raise MachineError("captioner.server_fails", address=self.address, count=self._failed, reason=reason)
        return Label(doubts=(Note("captioner.server_failed", {"reason": reason}),))

    def _stop_for_key(self, error: _Refused) -> None:
        if error.status in KEY_WANTED:
            raise MachineError("captioner.key_refused", address=self.address, reason=str(error)) from error

    def _with_patience(self, body: dict[str, Any]) -> Any:
        for wait in (*WAITS, None):
            try:
                return self._ask("/chat/completions", body, self.config.timeout)
            except _Refused as error:
                if wait is None or not error.again:
                    raise
            time.sleep(wait)
        raise AssertionError

    def _ask(self, path: str, body: dict[str, Any] | None, seconds: float) -> Any:
        """Return the server's JSON.

        Raises:
            _Refused: in one line, whatever went wrong; never with the key in it.
        """
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.address + path, data, headers)
            with self._open(request, timeout=seconds) as answer:
                raw = _read(answer, time.monotonic() + seconds)
        except urllib.error.HTTPError as error:
            with error:
                again = error.code in AGAIN
                raise _Refused(f"HTTP {error.code} {error.reason}", status=error.code, again=again) from None
        except (OSError, HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)
            # Asked again, a slow server would have two to do.
            if isinstance(cause, TimeoutError):
                raise _Refused(f"no answer within {seconds:g} s") from None
            raise _Refused(str(cause) or type(cause).__name__, again=True, gone=True) from None
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise _Refused("the answer is no JSON") from None

    def _data_url(self, picture: Image.Image) -> str:
        copy = picture.convert("RGB")
        copy.thumbnail((self.config.side, self.config.side))
        buffer = io.BytesIO()
        copy.save(buffer, "JPEG", quality=92)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _read(answer: Any, until: float) -> bytes:
    """Read an answer that may neither be endless nor drip for ever."""
    parts, length = [], 0
    while part := answer.read1(1 << 16):
        parts.append(part)
        length += len(part)
        if length > MAX_ANSWER:
            raise _Refused("the answer is longer than 1 MiB")
        if time.monotonic() > until:
            raise TimeoutError
    return b"".join(parts)


def _key(variable: str) -> str:
    """Return the key, or "" where none is asked for.

    Raises:
        MachineError: the variable holds none. What it holds is not told.
    """
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise MachineError("captioner.no_key", variable=variable)
    return key
