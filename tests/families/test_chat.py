"""From rows to tokens: exactly the answers are learned, whatever the template does."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from lora_scripts.data.record import Message, TextRow
from lora_scripts.errors import BaseModelError, DataError
from lora_scripts.families import _answers, _chat
from tests import tiny_text
from tests.families.chats import (
    ASK,
    BRACKETS,
    CHAT,
    DONE,
    ENDLESS,
    HELLO,
    HI,
    OPEN_THOUGHT,
    STRICT,
    THINKING,
    chat,
    completion,
    learned,
    notes_of,
    renderer,
    tokens_of,
    whole,
)

# What is learned


def test_every_answer_with_its_end_and_nothing_else():
    made = renderer()
    tokens = tokens_of(made, chat(*CHAT))
    assert learned(made, tokens) == ["hi, what is it?<|im_end|>", "It comes today.<|im_end|>"]
    assert tokens.targets == sum(len(turn.content) + 1 for turn in (HI, DONE))
    assert set(tokens.weights.tolist()) == {0.0, 1.0}
    assert tokens.ended and not tokens.cut and not tokens.skipped
    # What is rendered is what the template says, to the character.
    assert whole(made, tokens) == made.tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in CHAT], tokenize=False
    )


def test_last_learns_the_last_answer_only():
    made = renderer()
    assert learned(made, tokens_of(made, chat(*CHAT), "last")) == ["It comes today.<|im_end|>"]
    # The last answer need not be the last turn.
    assert learned(made, tokens_of(made, chat(*CHAT[:4]), "last")) == ["hi, what is it?<|im_end|>"]


@pytest.mark.parametrize("row", [chat(*CHAT), completion("a question", "an answer")], ids=["chat", "completion"])
def test_all_learns_everything_but_the_first_token(row: TextRow):
    made = renderer()
    tokens = tokens_of(made, row, "all")
    assert tokens.weights.tolist() == [0.0] + [1.0] * (len(tokens.ids) - 1)


def test_weights_of_messages_count_and_nought_keeps_out():
    made = renderer()
    silent, loud = Message("assistant", HI.content, 0.0), Message("assistant", DONE.content, 2.5)
    tokens = tokens_of(made, chat(HELLO, silent, ASK, loud))
    assert learned(made, tokens) == ["It comes today.<|im_end|>"]
    assert set(tokens.weights.tolist()) == {0.0, 2.5}
    everything = tokens_of(made, chat(HELLO, silent, ASK, loud), "all")
    assert set(everything.weights.tolist()) == {0.0, 1.0, 2.5}
    assert "what is it?" not in "".join(learned(made, everything))


@pytest.mark.parametrize("kind", ["pair", "thumb"])
def test_pairs_and_thumbs_learn_their_answer_and_not_the_talk_before_it(kind: str):
    made = renderer()
    row = TextRow("r", kind, CHAT[:4], (DONE,), rejected=(Message("assistant", "No idea."),))
    for answer in (row.answer, row.rejected):
        for train_on in ("completions", "last", "all"):
            (tokens,) = made.sequence(row, answer, train_on)
            assert learned(made, tokens) == [f"{answer[0].content}<|im_end|>"]


@pytest.mark.parametrize("text", ["您好，包裹今天到。", "👍🏽 ok 👩‍👩‍👧", "naïve é ñ", "ends in emoji 🎉", "\u4f60"])
def test_characters_of_several_bytes_are_learned_whole(text: str):
    made = renderer()
    tokens = tokens_of(made, chat(Message("user", "包裹在哪里👀"), Message("assistant", text), HELLO, DONE))
    assert learned(made, tokens) == [f"{text}<|im_end|>", "It comes today.<|im_end|>"]
    assert tokens.targets == len(text.encode()) + 1 + len(DONE.content) + 1


# Templates


def test_an_end_of_turn_that_is_not_the_end_of_a_text():
    """As Llama 3's <|eot_id|>, where the tokenizer's own end is another token."""
    words = tiny_text.tokenizer()
    words.eos_token = "<unk>"
    made = renderer(words=words)
    assert learned(made, tokens_of(made, chat(*CHAT)))[-1] == "It comes today.<|im_end|>"
    end, turn_end = words.convert_tokens_to_ids(["<unk>", "<|im_end|>"])
    assert made.stops == (end, turn_end)
    assert made.answer("yes").tolist()[-1] == turn_end
    # A raw text is no turn: it ends as texts do.
    text = TextRow("t", "text", answer=(Message("assistant", "a raw text"),))
    assert tokens_of(made, text).ids.tolist()[-1] == end


def test_an_end_that_only_the_generation_config_names():
    words = tiny_text.tokenizer()
    words.eos_token = None
    made = renderer(words=words, ends=[2])
    assert made.stops == (2,) and tokens_of(made, chat(HELLO, DONE)).ended


def test_a_template_without_an_end_is_told():
    made = renderer(ENDLESS)
    tokens = tokens_of(made, chat(HELLO, HI, ASK, DONE))
    assert learned(made, tokens) == ["hi, what is it?\n", "It comes today.\n"] and not tokens.ended
    # A label is scored as it was learned, and a line end does not stop a reply.
    assert made.tokenizer.decode(made.answer("billing").tolist()) == "billing\n"
    assert made.stops == (made.tokenizer.eos_token_id,)
    notes = notes_of([chat(HELLO, DONE)], made)
    assert notes["llm.endless"] == {"count": 1}


def test_spaces_around_an_answer_belong_to_it():
    """A label is scored with the tokens it was trained with."""
    made = renderer(BRACKETS)
    row = chat(HELLO, Message("assistant", "billing"))
    tokens = tokens_of(made, row)
    assert learned(made, tokens) == [" billing <|im_end|>"]
    assert np.array_equal(made.answer("billing"), tokens.ids[tokens.weights > 0])


@pytest.mark.parametrize("template", [tiny_text.TEMPLATE, THINKING, BRACKETS, ENDLESS, STRICT])
@pytest.mark.parametrize("merged", [False, True], ids=["bytes", "merges"])
def test_what_is_asked_at_use_is_what_training_began_with(template: str, merged: bool):
    """The ids after which an answer is generated are the first ones of the row, and the answer's ids are the rest."""
    made = renderer(template, merging() if merged else None)
    for turns in (CHAT[1:3], CHAT[1:5]):
        tokens = tokens_of(made, chat(*turns), "last")
        prompt, answer = made.prompt(turns[:-1]), made.answer(turns[-1].content)
        size = len(prompt)
        assert np.array_equal(tokens.ids[:size], prompt)
        assert int(np.argmax(tokens.weights > 0)) == size
        assert np.array_equal(tokens.ids[size : size + len(answer)], answer)
        assert tokens.targets == len(answer)


@cache
def merging() -> Any:
    """A byte-level tokenizer that has learned some merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(tiny_text.SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [turn.content for turn in CHAT] + [message for message, _, _ in tiny_text.MESSAGES]
    core.train_from_iterator(texts * 4, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<|im_end|>")
    assert len(made("where is my parcel?")["input_ids"]) < 10
    return made


def test_a_place_for_thoughts_is_learned_with_the_last_answer_and_scored_with_a_label():
    made = renderer(THINKING)
    tokens = tokens_of(made, chat(HELLO, HI, ASK, DONE))
    # The earlier answer stands there without the place, and is learned as it stands.
    assert learned(made, tokens) == ["hi, what is it?<|im_end|>", "<think>\n\n</think>\n\nIt comes today.<|im_end|>"]
    assert tokens.skipped == 0
    assert made.tokenizer.decode(made.answer("billing").tolist()) == "<think>\n\n</think>\n\nbilling<|im_end|>"
    cut = _answers._cut(made, made.answer("billing").tolist(), made.stops)
    assert cut == _answers.Answer("billing", stopped=True)


def test_an_answer_that_loses_its_thoughts_is_only_read_and_counted():
    made = renderer(THINKING)
    thoughtful = Message("assistant", "<think>who is it?</think>hi, what is it?")
    tokens = tokens_of(made, chat(HELLO, thoughtful, ASK, DONE))
    assert learned(made, tokens) == ["<think>\n\n</think>\n\nIt comes today.<|im_end|>"]
    assert tokens.skipped == 1
    # As the last one it is learned as the template lays it out.
    last = tokens_of(made, chat(HELLO, thoughtful))
    assert learned(made, last) == ["<think>\nwho is it?\n</think>\n\nhi, what is it?<|im_end|>"] and not last.skipped
    notes = notes_of([chat(HELLO, thoughtful, ASK, DONE), chat(HELLO, DONE)], made)
    assert notes["llm.rewritten"] == {"count": 1}


def test_an_answer_is_learned_as_the_template_writes_it():
    made = renderer(tiny_text.TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'].upper() }}"))
    tokens = tokens_of(made, chat(HELLO, HI, ASK, DONE))
    assert learned(made, tokens) == ["HI, WHAT IS IT?<|im_end|>", "IT COMES TODAY.<|im_end|>"] and not tokens.skipped


def test_the_end_word_inside_an_answer_does_not_end_it():
    made = renderer()
    answer = "write <|im_end|> to stop"
    assert learned(made, tokens_of(made, chat(HELLO, Message("assistant", answer)))) == [f"{answer}<|im_end|>"]


def test_a_template_that_asks_otherwise_than_it_answers_leaves_nothing_to_learn():
    made = renderer(OPEN_THOUGHT)
    tokens = tokens_of(made, chat(*CHAT))
    assert tokens.targets == 0 and tokens.skipped == 2
    with pytest.raises(DataError, match="the chat template"):
        notes_of([chat(*CHAT)], made)


def test_a_conversation_that_the_assistant_begins():
    """It is learned where the template puts nothing of its own before it, else only read, and counted."""
    opened = "You are a bot.\n" + tiny_text.TEMPLATE
    for template, expected in ((tiny_text.TEMPLATE, 2), (opened, 1)):
        made = renderer(template)
        tokens = tokens_of(made, chat(HI, ASK, DONE))
        assert len(learned(made, tokens)) == expected and tokens.skipped == 2 - expected


def test_a_template_that_refuses_a_row_names_it():
    made = renderer(STRICT)
    with pytest.raises(DataError) as caught:
        tokens_of(made, chat(*CHAT))
    sentence = str(caught.value)
    assert "0/rows.jsonl:1" in sentence and "A user begins." in sentence and ".." not in sentence
    with pytest.raises(BaseModelError, match="A user begins"):
        made.prompt(CHAT[:1])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages.append(messages[0]) }}",
        "{% for m in messages %}{{ m.update({'role': 'user'}) }}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(template: str):
    made = renderer(template)
    try:
        said = whole(made, tokens_of(made, chat(*CHAT), "all"))
    except DataError as error:
        assert error.code == "llm.row_refused"
    else:
        # The sandbox gives undefined names no text at all.
        assert said == ""


def test_a_template_of_absurd_size_is_refused():
    with pytest.raises(BaseModelError, match=str(_chat.MAX_TEMPLATE)):
        renderer("x" * (_chat.MAX_TEMPLATE + 1))


# Without a template


def test_without_a_template_prompt_and_completion_stand_one_behind_the_other():
    made = renderer(None)
    tokens = tokens_of(made, completion("2 + 2 =", " 4"))
    assert whole(made, tokens) == "2 + 2 = 4<|im_end|>"
    assert learned(made, tokens) == [" 4<|im_end|>"] and tokens.ended
    assert np.array_equal(made.prompt((Message("user", "2 + 2 ="),)), tokens.ids[:7])
    assert np.array_equal(made.answer(" 4"), tokens.ids[7:])


def test_without_a_template_conversations_are_refused_in_a_sentence():
    made = renderer(None)
    for row in (chat(*CHAT), TextRow("p", "pair", (ASK,), (DONE,), (HI,)), TextRow("t", "thumb", (ASK,), (DONE,))):
        with pytest.raises(BaseModelError) as caught:
            tokens_of(made, row)
        assert caught.value.code == "llm.no_template" and caught.value.exit_code == 2
        assert "prompt and completion" in str(caught.value)


def test_a_start_token_stands_before_texts_and_bare_prompts_but_not_before_a_rendered_chat():
    from tokenizers.processors import TemplateProcessing

    words = tiny_text.tokenizer()
    start = ("<|im_start|>", words.bos_token_id)
    words._tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[start])
    bare = renderer(None, words)
    assert tokens_of(bare, completion("a", "b")).ids.tolist()[:2] == [start[1], *words("a")["input_ids"][1:]]
    text = TextRow("t", "text", answer=(Message("assistant", "raw"),))
    tokens = tokens_of(bare, text)
    assert whole(bare, tokens) == "<|im_start|>raw<|im_end|>" and learned(bare, tokens) == ["raw<|im_end|>"]
    made = renderer(words=words)
    assert whole(made, tokens_of(made, chat(HELLO, HI))).count("<|im_start|>") == 2
