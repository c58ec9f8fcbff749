"""Texts and log-probabilities of tokens that a script chooses: what a client is told of each one."""

import pytest
from conftest import sentencepiece_decoder, sentencepiece_tokenizer

import elutq
from elutq_cli.generation import ChatTemplate, Continuation, Conversation, SamplingOptions, TextOptions
from elutq_cli.server.reply import Reply
from elutq_cli.server.response import ChatResponder, CompletionResponder

EOS = "<|end_of_text|>"


class Script:
    """A sampler that takes given tokens, one after the other."""

    options = SamplingOptions()

    def __init__(self, tokens):
        self._tokens = iter(tokens)

    def sample(self, logits, history, allowed=None):
        return next(self._tokens)


@pytest.fixture(scope="module")
def byte_level(novels_2bit):
    with elutq.load(novels_2bit, ctx_size=256, threads=1) as model:
        yield model


@pytest.fixture
def llama(byte_level, monkeypatch):
    """The same model with a tokenizer as Llama 2 has one."""
    tokenizer = sentencepiece_tokenizer(byte_level.file.config, sentencepiece_decoder())
    monkeypatch.setattr(byte_level, "tokenizer", tokenizer)
    return byte_level


def ids(model, *pieces):
    return [model.tokenizer.token_id(piece) for piece in pieces]


def generate(model, tokens, prompt=(84,), **options):
    """Makes a text of these tokens; the last one may end it."""
    options = {"n_predict": len(tokens), "logprobs": 2, "ignore_eos": True} | options
    generation = Continuation(model, list(prompt), Script(tokens), TextOptions(**options))
    return generation, list(generation)


def test_a_continuation_keeps_its_first_space(llama):
    reply = ids(llama, "▁I", "▁suppose")
    assert generate(llama, reply, ids(llama, "<s>", "▁said", ","))[0].text == " I suppose"
    assert generate(llama, reply, ids(llama, "▁said", "<s>"))[0].text == " I suppose"


def test_a_reply_and_a_text_from_its_start_have_no_first_space(llama):
    reply = ids(llama, "▁I", "▁suppose")
    assert generate(llama, reply, ids(llama, "<s>", "▁said", ","), reply=True)[0].text == "I suppose"
    assert generate(llama, reply, ids(llama, "<s>"))[0].text == "I suppose"


@pytest.mark.parametrize(("template", "expected"), [("{{ messages[0].content }}", "I suppose"), (None, " I suppose")])
def test_a_conversation_has_replies_with_a_template_and_one_text_without(llama, template, expected):
    template = None if template is None else ChatTemplate(template)
    conversation = Conversation(llama, template)
    generation = conversation.ask("said,", Script(ids(llama, "▁I", "▁suppose")), TextOptions(2))
    assert generation.read() == expected


def test_a_conversation_keeps_no_token_that_ended_a_reply(byte_level):
    sea, end = byte_level.tokenizer.encode("The sea"), byte_level.tokenizer.encode("!")[0]
    eos = byte_level.tokenizer.token_id(EOS)
    conversation = Conversation(
        byte_level, ChatTemplate("{% for m in messages %}{{ m.content }}" + EOS + "{% endfor %}")
    )
    first = conversation.ask("Hi", Script([*sea, end]), TextOptions(stop_token_ids=(end,)))
    assert first.read() == "The sea"
    conversation.keep(first)
    second = conversation.ask("Ho", Script([end]), TextOptions(1))
    second.read()
    asked = [byte_level.tokenizer.encode(text) for text in ("Hi", "Ho")]
    assert list(byte_level.tokens) == [*asked[0], eos, *sea, eos, *asked[1], eos]
    assert second.reused_tokens == len(asked[0]) + 1 + len(sea)


def test_generate_takes_messages_for_a_prompt_of_a_reply(llama, monkeypatch):
    monkeypatch.setattr(llama, "_chat_template", "{{ messages[0].content }}")
    force = dict.fromkeys(ids(llama, "▁I"), 100.0)
    monkeypatch.delitem(llama.__dict__, "chat_template", raising=False)
    for prompt, expected in (([{"role": "user", "content": "said,"}], "I"), ("said,", " I"), (ids(llama, ","), " I")):
        assert elutq.generate(llama, prompt, 1, temp=0, logit_bias=force).read() == expected
    llama.__dict__.pop("chat_template")


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_stop_string_that_is_a_special_token_ends_the_text(byte_level, ignore_eos):
    word, eos = byte_level.tokenizer.encode("sea")[0], byte_level.tokenizer.token_id(EOS)
    bos = byte_level.tokenizer.bos_token_id
    for end, stop in ((eos, EOS), (bos, "<|begin_of_text|>")):
        generation, made = generate(byte_level, [word, end, word], stop=(stop,), ignore_eos=ignore_eos)
        assert [token.token_id for token in made] == [word]
        assert generation.finish_reason == "stop"
        assert len(generation.tokens) == 2
        assert generation.stop_string_found == (end == bos or ignore_eos)


def test_special_tokens_are_looked_at_and_not_shown(byte_level):
    word, eos = byte_level.tokenizer.encode("sea")[0], byte_level.tokenizer.token_id(EOS)
    generation, made = generate(byte_level, [word, eos, word], stop=(EOS + "x",), ignore_eos=True)
    assert generation.text == "".join(token.text for token in made) == byte_level.tokenizer.spell(word) * 2
    assert [token.token_id for token in made] == generation.tokens == [word, eos, word]


def test_text_held_back_to_the_end_is_of_the_tokens_that_it_came_with(byte_level):
    sea = byte_level.tokenizer.encode("The sea sea")
    text = byte_level.tokenizer.decode(sea)
    endings = (
        ({"n_predict": len(sea)}, []),
        ({"n_predict": -1, "ignore_eos": False}, [byte_level.tokenizer.token_id(EOS)]),
    )
    for options, end in endings:
        generation, made = generate(byte_level, sea + end, stop=(text + "!",), **options)
        assert [token.token_id for token in made] == sea
        assert "".join(token.text for token in made) == text == generation.text
        assert all(token.logprob is not None and len(token.alternatives) == 2 for token in made)


def test_a_character_cut_short_is_of_the_last_token(llama):
    made = generate(llama, ids(llama, "▁I", "<0xE2>", "<0x80>"))[1]
    assert [token.text for token in made] == [" I", "", "\N{REPLACEMENT CHARACTER}" * 2]


def test_cancelling_hands_out_what_was_held_back(byte_level):
    sea = byte_level.tokenizer.encode("The sea sea")
    generation = Continuation(byte_level, [84], Script(sea), TextOptions(stop=("sea sea sea",), logprobs=0))
    first = next(generation)
    generation.cancel()
    rest = list(generation)
    assert first.text + "".join(token.text for token in rest) == generation.text
    assert generation.text == byte_level.tokenizer.decode(generation.tokens)
    assert generation.finish_reason == "cancelled"


def bodies(kind, model, tokens, **options):
    """Returns the logprobs of the whole answer, and of a stream's pieces."""
    generation, made = generate(model, tokens, **options)
    whole = kind("model", model.tokenizer, True, Reply).whole([(generation, made)], {})["choices"][0]
    stream = kind("model", model.tokenizer, True, Reply)
    pieces = [piece["choices"][0] for token in made for piece in stream.pieces(0, token)]
    return whole, [piece["logprobs"] for piece in pieces]


def test_chat_logprobs_have_the_bytes_of_each_token(llama):
    tokens = ids(llama, "▁I", "▁é", "<0xE2>", "<0x80>", "<0xA6>", "<s>")
    whole, pieces = bodies(ChatResponder, llama, tokens)
    content = whole["logprobs"]["content"]
    assert [entry for piece in pieces for entry in piece["content"]] == content
    assert [entry["bytes"] for entry in content] == [[*b" I"], [*" é".encode()], [0xE2], [0x80], [0xA6], [*b"<s>"]]
    assert [entry["token"] for entry in content] == [" I", " é", r"\xe2", r"\x80", r"\xa6", "<s>"]
    assert b"".join(bytes(entry["bytes"]) for entry in content[:5]).decode() == whole["message"]["content"]
    for entry in content:
        for other in entry["top_logprobs"]:
            assert bytes(other["bytes"]).decode("utf-8", "backslashreplace") == other["token"]


def test_offsets_count_the_characters_of_the_text(llama):
    tokens = ids(llama, "▁I", "<0xE2>", "<0x80>", "<0xA6>", "<s>", "▁suppose", "s", "a")
    for stop in ((), (" supposes!", "…<s> supposesa?")):
        whole, pieces = bodies(CompletionResponder, llama, tokens, stop=stop)
        logprobs = whole["logprobs"]
        assert whole["text"] == " I… supposesa"
        assert logprobs["tokens"] == [
            " I", r"bytes:\xe2", r"bytes:\x80", r"bytes:\xa6", "<s>", " suppose", "s", "a",
        ]  # fmt: skip
        assert logprobs["text_offset"] == [0, 2, 2, 2, 3, 3, 11, 12]
        assert None not in logprobs["token_logprobs"]
        for name, values in logprobs.items():
            assert [value for piece in pieces for value in piece[name]] == values


def test_alternatives_that_spell_alike_do_not_collide(llama, monkeypatch):
    letter, byte, other = ids(llama, "a", "<0x61>", "▁I")
    made = generate(llama, [letter])[1][0]
    alternative = type(made.alternatives[0])
    alternatives = tuple(alternative(token, "", -1.0 - token) for token in (byte, other, letter))
    for chosen, keys in ((letter, ["a", f"token_id:{byte}", " I"]), (byte, ["a", " I", f"token_id:{letter}"])):
        token = type(made)(chosen, "a", -1.0 - chosen, alternatives)
        (body,) = CompletionResponder("model", llama.tokenizer, True, Reply).pieces(0, token)
        body = body["choices"][0]["logprobs"]
        (top,) = body["top_logprobs"]
        assert list(top) == keys
        assert top[body["tokens"][0]] == body["token_logprobs"][0] == -1.0 - chosen


def test_the_token_that_came_is_among_the_likeliest_of_a_completion(byte_level):
    unlikely = byte_level.tokenizer.encode("sea")
    whole, _ = bodies(CompletionResponder, byte_level, unlikely, logprobs=0)
    assert whole["logprobs"]["top_logprobs"] == [
        {byte_level.tokenizer.spell(token): logprob}
        for token, logprob in zip(unlikely, whole["logprobs"]["token_logprobs"], strict=True)
    ]


def test_offsets_count_bytes_that_turn_out_to_be_no_character_for_their_own_token(llama):
    for tokens, offsets in (
        (ids(llama, "<0xE2>", "▁I", "a"), [0, 1, 3]),
        (ids(llama, "<0xE2>", "<0x80>", "▁I", "a"), [0, 2, 2, 4]),
    ):
        whole, pieces = bodies(CompletionResponder, llama, tokens)
        assert whole["logprobs"]["text_offset"] == offsets
        assert [offset for piece in pieces for offset in piece["text_offset"]] == offsets
        assert whole["text"].endswith(" Ia") and whole["text"][offsets[-2] :] == " Ia"
