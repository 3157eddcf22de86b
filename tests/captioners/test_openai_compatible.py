"""The captioner that asks a server: a real one of the standard library, which answers well, badly or not at all."""

from __future__ import annotations

import time

import pytest
from PIL import Image

from lora_scripts.captioners import openai_compatible
from lora_scripts.contracts import Label
from lora_scripts.errors import ConfigError, MachineError
from tests.captioners import tiny

RED = Image.new("RGB", (40, 30), "red")


def build(model: str, **options) -> openai_compatible.Server:
    return openai_compatible.build(openai_compatible.Config(**options), model, "cpu")


def asked(address: str, **options) -> Label:
    return build(address, **options).caption([RED])[0]


def test_a_server_is_asked_with_picture_prompt_and_model(monkeypatch):
    seen = []

    def answer(body):
        seen.append(body)
        return tiny.says("Sure! The image shows a red square, which appears to be new.") if body else (200, b"{}", {})

    monkeypatch.setenv("MY_KEY", "sk-secret")
    with tiny.server(answer) as address:
        label = asked(f"qwen@{address}", prompt="What is it?", key_variable="MY_KEY")
    assert label.text == "A red square, which is new." and not label.doubts
    body = seen[-1]
    assert body["model"] == "qwen" and body["messages"][0]["content"][0]["text"] == "What is it?"
    assert body["authorization"] == "Bearer sk-secret" and tiny.colour_of(body) == "red"


def test_a_server_that_stumbles_is_asked_again(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    answers = [(500, b"", {}), (429, b"", {}), tiny.says("A thing.")]
    with tiny.server(lambda body: answers.pop(0) if body else (404, b"", {})) as address:
        assert asked(address).text == "A thing."


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((400, b"", {}), "HTTP 400"),
        ((200, b"{", {}), "no JSON"),
        ((200, b"[" * 100_000, {}), "no JSON"),
        ((200, b'{"choices": []}', {}), "unexpected answer"),
        ((200, b'{"choices": [{"message": {"content": 3}}]}', {}), "unexpected answer"),
        ((200, b" " * (1 << 20) + b"{}", {}), "1 MiB"),
    ],
)
def test_answers_that_are_none_are_doubts_of_that_picture(answer, reason, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with tiny.server(lambda body: answer if body else (200, b"{}", {})) as address:
        label = asked(address)
    assert not label.text and label.doubts[0].code == "captioner.server_failed"
    assert reason in str(label.doubts[0].params["reason"])


def test_a_cut_off_answer_loses_its_broken_sentence():
    with tiny.server(
        lambda body: tiny.says("A red square. It stands on a wh", "length") if body else (200, b"{}", {})
    ) as address:
        label = asked(address)
    assert label.text == "A red square." and label.doubts[0].code == "captioner.cut_off"


def test_an_absent_server_is_told_before_the_first_picture():
    with pytest.raises(MachineError, match="Nothing answers at") as caught:
        build("http://127.0.0.1:9/v1", timeout=2)
    assert caught.value.exit_code == 4
    for wrong in (
        "ftp://x/v1",
        "not an address",
        "http://user:word@host/v1",
        "http://[::1/v1",
        "http://h:x/v1",
        "http://h/v 1",
    ):
        with pytest.raises(ConfigError, match="no address"):
            build(wrong)


def test_it_is_said_when_pictures_leave_the_machine():
    Config, Server = openai_compatible.Config, openai_compatible.Server
    assert "leave this machine" in Server(Config(), "", "http://192.168.1.7:1234/v1").title
    assert "leave this machine" not in Server(Config(), "", "http://127.0.0.1:1234/v1").title


@pytest.mark.parametrize("status", [302, 401, 403, 404])
def test_a_server_that_takes_no_pictures_ends_the_run_at_the_first(status):
    """Nothing is written for it, so that the same command labels it once the address or key is right."""
    turned = {"Location": "http://127.0.0.1:9/elsewhere"} if status == 302 else {}
    asked_for = []

    def answer(body):
        asked_for.append(body)
        return (status, b"", turned) if body else (200, b"{}", {})

    with tiny.server(answer) as address, pytest.raises(MachineError, match=f"HTTP {status}") as caught:
        asked(address)
    assert caught.value.exit_code == 4 and len(asked_for) == 2


def test_a_wanted_key_is_told_before_the_first_picture():
    with tiny.server(lambda body: (401, b"", {})) as address, pytest.raises(MachineError, match="key_variable"):
        build(address)


def test_no_key_is_sent_unless_its_variable_is_named(monkeypatch):
    seen = []

    def answer(body):
        seen.append(body)
        return tiny.says("A thing.") if body else (200, b"{}", {})

    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with tiny.server(answer) as address:
        asked(address)
        assert seen[-1]["authorization"] is None
        # A line end, as files have it, is no part of a key.
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")
        asked(address, key_variable="OPENAI_API_KEY")
        assert seen[-1]["authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize("key", [None, " ", "sk-se cret", "sk-secret\nX: y", "sk-secr\u00e9t", "sk-\u5bc6secret"])
def test_a_key_that_is_none_is_told_without_it(key, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("MY_KEY", key)
    with tiny.server(lambda body: (200, b"{}", {})) as address, pytest.raises(MachineError, match="MY_KEY") as caught:
        build(address, key_variable="MY_KEY")
    assert "sk-" not in str(caught.value)


def test_a_slow_server_is_not_waited_for_for_ever_nor_asked_twice():
    asked_for = []

    def answer(body):
        if body:
            asked_for.append(body)
            time.sleep(1)
        return tiny.says("Late.") if body else (200, b"{}", {})

    with tiny.server(answer) as address:
        begun = time.monotonic()
        label = asked(address, timeout=0.2)
        assert time.monotonic() - begun < 0.9
    assert "0.2 s" in str(label.doubts[0].params["reason"]) and len(asked_for) == 1


def test_an_answer_that_drips_is_not_waited_for_for_ever():
    """Each byte arrives in time, the whole never does."""
    with tiny.server(lambda body: (200, b"x" * 200, {}) if body else (200, b"{}", {}), drip=0.05) as address:
        begun = time.monotonic()
        label = asked(address, timeout=0.3)
        assert time.monotonic() - begun < 3
    assert "0.3 s" in str(label.doubts[0].params["reason"])


def test_a_server_that_goes_away_ends_the_run_with_nothing_written(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with tiny.server(lambda body: tiny.says("A thing.") if body else (200, b"{}", {})) as address:
        captioner = build(address)
        assert captioner.caption([RED])[0].text == "A thing."
    with pytest.raises(MachineError, match="Nothing answers at"):
        captioner.caption([RED])


def test_a_server_that_fails_for_every_picture_ends_the_run():
    answers = [400] * 4 + [200] + [400] * 5
    with tiny.server(
        lambda body: (tiny.says("A thing.") if answers.pop(0) == 200 else (400, b"", {})) if body else (200, b"{}", {})
    ) as address:
        captioner = build(address)
        labels = captioner.caption([RED] * 9)
        assert [bool(label.text) for label in labels] == [False] * 4 + [True] + [False] * 4
        with pytest.raises(MachineError, match="5 pictures in a row"):
            captioner.caption([RED])
    assert not answers
