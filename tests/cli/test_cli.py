"""The command line itself: verbs, help, languages, exit codes."""

from __future__ import annotations

from lora_scripts import cli, messages


def test_every_verb_has_help_in_both_languages(capsys, monkeypatch):
    some = {"check", "classify", "draft", "export", "fetch", "import", "lora", "sample", "train"}
    some |= {"preview-now", "resume", "runs", "save-now", "stop"}
    assert some <= set(cli.verbs()) and cli.verbs() == sorted(cli.verbs())
    for language in messages.LANGUAGES:
        monkeypatch.setenv("LORA_SCRIPTS_LANG", language)
        for verb in cli.verbs():
            try:
                cli.main([verb, "--help"])
            except SystemExit as done:
                assert done.code == 0
            # argparse breaks lines where it likes.
            printed = "".join(capsys.readouterr().out.split())
            assert "".join(messages.text(f"cli.verb.{verb.replace('-', '_')}").split()) in printed


def test_a_fault_of_ours_is_a_sentence_with_the_trace_in_a_file(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_parser", lambda words: 1 / 0)
    assert cli.main(["train"]) == 1
    printed = capsys.readouterr()
    assert "ZeroDivisionError" in printed.err and "Traceback" not in printed.err
    assert "Traceback" in (tmp_path / "lora-scripts-error.log").read_text()


def test_memory_is_told_with_what_to_do(monkeypatch, tmp_path, capsys):
    def fail(words):
        raise MemoryError("too much")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_parser", fail)
    assert cli.main([]) == 4
    assert "batch_size" in capsys.readouterr().err


def test_sentences_follow_the_language(monkeypatch):
    for value, language in (("zh_CN", "zh_CN"), ("zh-TW", "zh_CN"), ("en", "en"), ("fr", "en")):
        monkeypatch.setenv("LORA_SCRIPTS_LANG", value)
        assert messages.language() == language
    monkeypatch.delenv("LORA_SCRIPTS_LANG")
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.delenv("LC_MESSAGES", raising=False)
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert messages.language() == "zh_CN"
