"""Every field of a request: honoured, refused by name, or without effect on the text."""

import asyncio
import threading

import pytest
from asgi import refusal, serving

from elutq_cli.generation import ChatTemplate
from elutq_cli.server.endpoint import LARGE_BODY_BYTES, Endpoint

MESSAGES = [{"role": "user", "content": "How do you do?"}]


@pytest.fixture(scope="module")
def client(chat_model):
    with serving(chat_model) as client:
        yield client


@pytest.fixture
def template(client, monkeypatch):
    """Returns a function that gives the model another template."""

    def use(source):
        monkeypatch.setitem(client.model.__dict__, "chat_template", ChatTemplate(source))

    return use


@pytest.fixture
def rendered(client, monkeypatch):
    """The texts that the tokenizer is given."""
    texts, encode = [], client.model.tokenizer.encode

    def listen(text, add_special_tokens=False):
        texts.append(text)
        return encode(text, add_special_tokens)

    monkeypatch.setattr(client.model.tokenizer, "encode", listen)
    return texts


def text(answer):
    assert answer.status == 200, answer.body
    return answer.json["choices"][0]["text"]


def tokens(client, **body):
    """Return the ids of a greedy text's tokens."""
    answer = client.complete(seed=1, logprobs=0, **body)
    assert answer.status == 200, answer.body
    spelled = answer.json["choices"][0]["logprobs"]["tokens"]
    return [client.model.tokenizer.encode(token)[0] for token in spelled], answer.json["choices"][0]


@pytest.mark.parametrize(
    "field",
    [
        *("structural_tag", "format", "allowed_token_ids", "bad_words", "logits_processors"),
        *("use_beam_search", "length_penalty", "typical_p", "mirostat", "dry_multiplier"),
        *("xtc_probability", "dynatemp_range", "samplers", "top_n_sigma", "top_a", "prompt_logprobs", "n_probs"),
        *("skip_special_tokens", "include_stop_str_in_output", "truncate_prompt_tokens", "chat_template"),
        *("min_keep", "lora", "options", "add_special_tokens", "return_token_ids"),
        *("suffix", "functions", "function_call", "audio", "modalities"),
        *("preset", "ban_eos_token", "auto_max_new_tokens", "add_bos_token", "character", "mode", "grammar_lazy"),
        *("instruction_template_str", "guided_whitespace_pattern", "penalize_newline", "repetition_penalty_range"),
    ],
)
def test_a_field_that_would_change_the_result_is_refused_by_name(client, field):
    for answer in (client.complete(**{field: "x"}), client.chat(MESSAGES, **{field: "x"})):
        error = refusal(answer)
        assert (error.param, error.message) == (field, f"{field} is not supported here")


def test_fields_of_the_other_route_are_refused_by_name(client):
    for name in ("messages", "continue_final_message", "chat_template_kwargs", "documents", "top_logprobs", "tools"):
        assert refusal(client.complete(**{name: [1]})).param == name
    assert refusal(client.chat(MESSAGES, prompt="My dear")).param == "prompt"


def test_what_asks_for_nothing_changes_nothing(client):
    neutral = {"n": 1, "best_of": 1, "typical_p": 1.0, "mirostat": 0, "dry_multiplier": 0, "xtc_probability": 0.0}
    neutral |= {
        "dry_base": 1.75,
        "mirostat_tau": 5.0,
        "grammar": "",
        "guided_choice": [],
        "echo": False,
        "suffix": None,
    }
    neutral |= {
        "user": "me",
        "metadata": {"a": 1},
        "store": False,
        "service_tier": "auto",
        "chat_id": "1",
        "priority": 3,
    }
    neutral |= {"tfs_z": 1, "top_a": 0, "min_keep": 0, "samplers": [], "response_format": {"type": "text"}}
    assert text(client.complete(seed=1, **neutral)) == text(client.complete(seed=1))


def test_ignore_eos_goes_on_and_min_tokens_waits(client):
    eos = client.model.tokenizer.eos_token_ids[0]
    sure = {"seed": 1, "logit_bias": {str(eos): 100}}
    ended = client.complete(**sure).json
    assert (ended["usage"]["completion_tokens"], ended["choices"][0]["finish_reason"]) == (1, "stop")
    assert client.complete(**sure, min_tokens=3).json["usage"]["completion_tokens"] == 4
    longer = client.complete(**sure, ignore_eos=True).json
    assert (longer["usage"]["completion_tokens"], longer["choices"][0]["finish_reason"]) == (8, "length")
    assert "min_tokens" in refusal(client.complete(min_tokens=9)).message


def test_stop_token_ids_end_a_text(client):
    ids, choice = tokens(client)
    _, ended = tokens(client, stop_token_ids=[ids[3]])
    assert ended["finish_reason"] == "stop"
    assert choice["text"].startswith(ended["text"])
    assert len(ended["text"]) < len(choice["text"])


def test_a_bias_bans_and_forces_tokens(client):
    (first, *_), choice = tokens(client)
    assert tokens(client, logit_bias={str(first): -100})[0][0] != first
    assert set(tokens(client, logit_bias={str(first): 100})[0]) == {first}
    assert tokens(client, logit_bias={str(first): 0})[1]["text"] == choice["text"]


@pytest.mark.parametrize(
    "bias",
    [{"x": 1}, {"-1": 1}, {"1.0": 1}, {"99999": 1}, {"1": 101}, {"1": None}, {"1": True}, [[1, 2]], {"1" * 99: 1}],
)
def test_a_bias_that_means_nothing_is_refused(client, bias):
    assert refusal(client.complete(logit_bias=bias)).param == "logit_bias"


@pytest.mark.parametrize("ids", [[99999], [-1], ["a"], 5, [True], [1] * 5000])
def test_stop_tokens_that_are_not_there_are_refused(client, ids):
    assert refusal(client.complete(stop_token_ids=ids)).param == "stop_token_ids"


@pytest.mark.parametrize("name", ["repeat_penalty", "repetition_penalty"])
def test_the_penalty_has_two_names(client, name):
    options = {"prompt": "the the the the the the the the", "max_tokens": 24, "seed": 1}
    assert text(client.complete(**options, **{name: 1.8})) != text(client.complete(**options))
    assert refusal(client.complete(repeat_penalty=1.1, repetition_penalty=1.2)).param == "repeat_penalty"
    assert client.complete(repeat_penalty=1.1, repetition_penalty=1.1).status == 200


def test_how_far_a_penalty_looks_back_is_honoured(client):
    options = {"prompt": "the the the the the the the the", "max_tokens": 24, "seed": 1, "repeat_penalty": 1.8}
    assert text(client.complete(**options, repeat_last_n=0)) != text(client.complete(**options))


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict", "max_new_tokens"])
def test_every_name_of_the_most_tokens_is_taken_and_4_0_is_4(client, name):
    body = {"prompt": "My dear", "temperature": 0, name: 4.0}
    assert client.post("/v1/completions", body).json["usage"]["completion_tokens"] == 4
    error = refusal(client.post("/v1/completions", {**body, name: 4.5}))
    assert error.param == name
    assert name in error.message


@pytest.mark.parametrize("fields", [{"top_p": 0}, {"top_p": 0.0, "seed": -1}, {"top_k": 1, "seed": -7}, {"top_k": 1.0}])
def test_values_that_others_take_are_taken(client, fields):
    """top_p 0 keeps the likeliest token; -1 is no seed, and other negative numbers are seeds."""
    client.model.clear()
    assert text(client.complete(**{"temperature": 1.5, **fields})) == text(client.complete(seed=1))


def test_same_seed_or_cache_prompt_false_gives_the_same_text_as_an_empty_context(client):
    expected = client.complete(seed=1).json
    client.complete("My dear Sir, I beg your pardon")
    assert client.complete().json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    for fields in ({"seed": 1}, {"cache_prompt": False}):
        answer = client.complete(**fields).json
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert answer["choices"] == expected["choices"]


def test_a_seed_takes_over_whole_pieces_of_a_prompt_and_gives_the_same_text(client):
    prompt = "It was a dark night, and the captain stood on the deck of his ship. " * 12
    fields = {"temperature": 0.8, "max_tokens": 12, "logprobs": 0}
    choices = []
    for others in ({"seed": 3, "cache_prompt": False}, {"seed": 3}, {"seed": 4}, {"seed": 3}):
        client.complete("My dear")
        client.complete(prompt[:700], seed=1)
        answer = client.complete(prompt, **fields, **others).json
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == (0 if "cache_prompt" in others else 128), answer["usage"]
        choices.append(answer["choices"][0])
    assert choices[0] == choices[1] == choices[3] != choices[2]


def test_a_final_message_can_be_continued(client, rendered):
    messages = [*MESSAGES, {"role": "assistant", "content": "Very well, I"}]
    assert client.chat(messages, continue_final_message=True, add_generation_prompt=False).status == 200
    assert client.chat(messages, continue_final_message=True).status == 200
    assert client.chat(messages, add_generation_prompt=False).status == 200
    begun = "<|begin_of_text|>user:How do you do?<|end_of_text|>assistant:Very well, I"
    assert rendered == [begun, begun, begun + "<|end_of_text|>"]
    error = refusal(client.chat(messages, continue_final_message=True, add_generation_prompt=True))
    assert error.param == "continue_final_message"


def test_a_template_sees_the_clients_variables(client, template, rendered):
    template("{{ enable_thinking }} {{ documents | tojson }} {{ reasoning_effort }} {{ tools }}{{ messages[0].name }}")
    variables = {"chat_template_kwargs": {"enable_thinking": False}, "documents": [{"a": 1}], "reasoning_effort": "low"}
    assert client.chat([{**MESSAGES[0], "name": "Ann"}], **variables).status == 200
    assert rendered == ['False [{"a": 1}] low NoneAnn']
    for wrong in ("x", {"messages": []}, {"add_generation_prompt": True}):
        assert refusal(client.chat(MESSAGES, chat_template_kwargs=wrong)).param == "chat_template_kwargs"


CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC", "n": 2}'}}
RESULT = {"role": "tool", "tool_call_id": "c1", "name": "clock", "content": [{"type": "text", "text": "noon"}]}
TOOL_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for call in m.tool_calls or [] %}"
    "<{{ call.function.name }} {{ call.function.arguments | tojson }}>{% endfor %}[{{ m.tool_call_id }}]{% endfor %}"
)


@pytest.mark.parametrize("content", [{"content": ""}, {"content": None}, {}])
def test_calls_of_tools_and_their_results_are_rendered_by_the_template(client, template, rendered, content):
    template(TOOL_TEMPLATE)
    assert client.chat([*MESSAGES, {"role": "assistant", **content, "tool_calls": [CALL]}, RESULT]).status == 200
    assert rendered == ['user:How do you do?[]assistant:<clock {"zone": "UTC", "n": 2}>[]tool:noon[c1]']


@pytest.mark.parametrize(("arguments", "shown"), [({"a": 1}, '{"a": 1}'), ("", "{}"), ("[1]", "[1]")])
def test_arguments_are_objects_however_they_came(client, template, rendered, arguments, shown):
    template(TOOL_TEMPLATE)
    call = {"function": {"name": "f", "arguments": arguments}}
    assert client.chat([{"role": "assistant", "tool_calls": [call]}]).status == 200
    assert rendered == [f"assistant:<f {shown}>[]"]


def test_a_template_that_wants_arguments_as_text_gets_them(client, template, rendered):
    template("{% for m in messages %}{{ 'call ' + m.tool_calls[0].function.arguments }}{% endfor %}")
    assert client.chat([{"role": "assistant", "tool_calls": [CALL]}]).status == 200
    assert rendered == ["call " + CALL["function"]["arguments"]]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant"},
        {"role": "user", "content": None},
        {"role": "system", "content": None},
        {"role": "assistant", "tool_calls": "x"},
        {"role": "assistant", "tool_calls": [{"function": {}}]},
        {"role": "assistant", "tool_calls": [None]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
        {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "tool"},
    ],
)
def test_messages_that_say_nothing_are_refused(client, message):
    assert refusal(client.chat([message])).param == "messages"


def test_content_null_of_a_model_or_a_tool_is_an_empty_text(client, rendered):
    for message in ({"role": "assistant", "content": None}, {"role": "tool", "tool_call_id": "c1", "content": None}):
        assert client.chat([*MESSAGES, message]).status == 200
        assert rendered.pop().endswith(f"<|end_of_text|>{message['role']}:<|end_of_text|>assistant:")


def test_stop_strings_have_bounds(client):
    whole = text(client.complete(seed=1))
    assert text(client.complete(seed=1, stop=["#" * 1024] * 63 + [whole[5:8]])) == whole[: whole.index(whole[5:8])]
    for stop in (["x"] * 65, "x" * 1025, [str(number) for number in range(100_000)]):
        assert refusal(client.complete(stop=stop)).param == "stop"


@pytest.mark.parametrize("asked", [{}, {"max_tokens": -1}, {"max_tokens": 5}, {"max_tokens": 1000}])
def test_the_servers_limit_bounds_every_text(client, asked):
    limited = client.with_options(max_tokens=5)
    for path, body in (("completions", {"prompt": "My dear"}), ("chat/completions", {"messages": MESSAGES})):
        answer = limited.post(f"/v1/{path}", {**body, **asked, "ignore_eos": True})
        assert answer.json["usage"]["completion_tokens"] == 5
        assert answer.json["choices"][0]["finish_reason"] == "length"
    assert limited.complete(max_tokens=2).json["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("prompt", ["word " * 2000, [5] * 513, "word " * 1_000_000, "-" * 2_000_000, [5] * 1_000_000])
def test_a_prompt_too_long_names_the_context_as_others_do(client, prompt):
    error = refusal(client.complete(prompt))
    assert error.code == "context_length_exceeded"
    assert "maximum context length is 512 tokens" in error.message


def test_a_conversation_too_long_names_the_context(client):
    assert refusal(client.chat([{"role": "user", "content": "word " * 600}])).code == "context_length_exceeded"


def test_a_long_prompt_is_refused_before_it_is_tokenized(client, monkeypatch):
    lengths, encode = [], client.model.tokenizer._encode
    monkeypatch.setattr(
        client.model.tokenizer, "_encode", lambda text, *rest: lengths.append(len(text)) or encode(text, *rest)
    )
    assert refusal(client.complete("It was a dark night. " * 300_000)).code == "context_length_exceeded"
    assert sum(lengths) < 100_000


def test_large_bodies_are_read_one_at_a_time(client):
    """Each takes memory; small ones do not wait for them."""
    reading, most, large, small = [], [], b" " * LARGE_BODY_BYTES + b"1", b"0"
    small_was_read = threading.Event()

    def read(body, *_):
        if body == 0:
            small_was_read.set()
            return body
        reading.append(body)
        most.append(len(reading))
        assert small_was_read.wait(60)
        reading.pop()
        return body

    async def ask():
        endpoint = Endpoint(client.engine, "tested", None)
        return await asyncio.gather(*(endpoint._read(body, read) for body in (large, large, large, small)))

    assert asyncio.run(ask()) == [1, 1, 1, 0]
    assert most == [1, 1, 1]


def test_the_model_tells_its_context_under_the_names_that_others_use(client):
    (entry,) = client.get("/v1/models").json["data"]
    assert entry["id"] == "tested"
    assert entry["context_length"] == entry["max_model_len"] == entry["meta"]["n_ctx"] == 512
    assert entry["meta"]["n_ctx_train"] == client.model.native.context_length
    assert client.get("/v1/models/tested").json == entry
    assert client.with_options(max_tokens=9).get("/v1/models").json["data"] == [entry]
