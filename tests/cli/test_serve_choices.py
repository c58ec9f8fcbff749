"""Several texts of one request, and prompts that come back with their log-probabilities, through OpenAI's client."""

import asyncio

import numpy as np
import pytest
from asgi import serving
from served import Server

import elutq
from elutq_cli.generation import Generation, Sampler, SamplingOptions, TextOptions
from elutq_cli.generation.context import Reuse

PROMPT = "It was a dark night, and"
MESSAGES = [{"role": "user", "content": "How do you do?"}]
OPTIONS = {"model": "any", "max_tokens": 8}


@pytest.fixture(scope="module")
def model(chat_model):
    with elutq.load(chat_model, ctx_size=512, threads=1) as model:
        yield model


@pytest.fixture(scope="module", params=[1, 3])
def client(request, chat_model):
    server = Server(chat_model, "-c", 512, "--parallel", request.param)
    yield server.client()
    assert server.stop() == (0, "")


@pytest.fixture
def ask(client):
    """Returns a function that sends a request and returns the answer, of a stream the list of its pieces."""

    def send(route="completions", **body):
        create = (client.completions if route == "completions" else client.chat.completions).create
        answer = create(**OPTIONS | body)
        return list(answer) if body.get("stream") else answer

    return send


def test_several_choices_of_a_prompt_are_texts_of_their_own_seeds(ask):
    answer = ask(prompt=PROMPT, n=3, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    alone = [ask(prompt=PROMPT, seed=seed) for seed in (5, 6, 7)]
    assert [choice.text for choice in answer.choices] == [one.choices[0].text for one in alone]
    assert len({choice.text for choice in answer.choices}) > 1
    assert answer.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert answer.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)


def test_a_list_of_prompts_gives_each_the_text_that_it_has_alone(ask, model):
    prompts = [PROMPT, "My dear", "The captain"]
    alone = [ask(prompt=prompt, seed=3) for prompt in prompts]
    ids = [model.encode(prompt) for prompt in prompts]
    for given in (prompts, ids):
        answer = ask(prompt=given, seed=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert [choice.text for choice in answer.choices] == [one.choices[0].text for one in alone]
        assert answer.usage.prompt_tokens == sum(map(len, ids))
    pairs = ask(prompt=prompts, seed=3, n=2).choices
    assert [choice.text for choice in pairs[::2]] == [one.choices[0].text for one in alone]
    assert [choice.index for choice in pairs] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_stream_of_several_texts_tells_them_apart_by_their_index(ask, logprobs):
    body = {"prompt": [PROMPT, "My dear"], "n": 2, "seed": 3, "logprobs": logprobs, "echo": True}
    whole = ask(**body)
    pieces = ask(**body, stream=True, stream_options={"include_usage": True})
    assert pieces[-1].usage == whole.usage
    for choice in whole.choices:
        own = [piece.choices[0] for piece in pieces[:-1] if piece.choices[0].index == choice.index]
        assert "".join(piece.text for piece in own) == choice.text
        assert [piece.finish_reason for piece in own] == [None] * (len(own) - 1) + [choice.finish_reason]
        if logprobs is not None:
            told = [piece.logprobs for piece in own if piece.logprobs is not None]
            for name, values in choice.logprobs.model_dump().items():
                assert [value for piece in told for value in piece.model_dump()[name]] == values


def test_a_chat_has_several_choices(ask):
    answer = ask("chat", messages=MESSAGES, n=2, seed=4, logprobs=True)
    alone = [ask("chat", messages=MESSAGES, seed=seed, logprobs=True) for seed in (4, 5)]
    for index, one in enumerate(alone):
        assert answer.choices[index].index == index
        assert answer.choices[index].message.content == one.choices[0].message.content
        assert answer.choices[index].logprobs == one.choices[0].logprobs
    pieces = ask("chat", messages=MESSAGES, n=2, seed=4, stream=True)
    texts, roles = ["", ""], []
    for piece in pieces:
        (choice,) = piece.choices
        texts[choice.index] += choice.delta.content or ""
        roles += [choice.index] if choice.delta.role == "assistant" else []
    assert texts == [choice.message.content for choice in answer.choices]
    assert sorted(roles) == [0, 1]


def test_best_of_gives_the_likeliest_texts(ask):
    candidates = ask(prompt=PROMPT, n=6, seed=1, logprobs=0).choices
    order = sorted(candidates, key=lambda choice: -np.mean(choice.logprobs.token_logprobs))
    answer = ask(prompt=PROMPT, n=2, best_of=6, seed=1)
    assert [choice.text for choice in answer.choices] == [choice.text for choice in order[:2]]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].logprobs is None
    assert answer.usage.completion_tokens == sum(len(choice.logprobs.tokens) for choice in candidates)
    echoed = ask(prompt=PROMPT, best_of=6, seed=1, echo=True)
    assert echoed.choices[0].text == PROMPT + order[0].text


def expected_logprobs(model, tokens):
    """Log-probabilities of the tokens of a prompt but its first, and the likeliest ones, by one call of the runtime."""
    with model.native.session(len(tokens), 1) as session:
        logits = session.eval(tokens, all_logits=True).astype(np.float64)[:-1]
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logprobs[np.arange(len(tokens) - 1), tokens[1:]], logprobs.argmax(axis=1)


@pytest.mark.parametrize("n_words", [1, 40])
@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_echo_and_logprobs_are_those_of_the_prompts_own_tokens(ask, model, max_tokens, n_words):
    """Whatever a slot holds of the prompt: all of it is computed."""
    prompt = PROMPT + " the captain stood on the deck of his ship;" * n_words
    tokens = model.encode(prompt)
    expected, likeliest = expected_logprobs(model, tokens)
    for given in (prompt, [tokens, tokens]):
        answer = ask(prompt=given, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0)
        for choice in answer.choices:
            logprobs = choice.logprobs
            assert choice.text.startswith(prompt)
            assert choice.finish_reason == "length"
            assert len(logprobs.tokens) == len(tokens) + max_tokens
            assert logprobs.token_logprobs[0] is logprobs.top_logprobs[0] is None
            assert logprobs.token_logprobs[1 : len(tokens)] == pytest.approx(expected.tolist(), abs=1e-5)
            for top, token in zip(logprobs.top_logprobs[1 : len(tokens)], likeliest, strict=True):
                assert max(top, key=top.get) == model.tokenizer.spell(int(token))
            ends = np.cumsum([0, *map(len, logprobs.tokens[1:])]).tolist()
            assert logprobs.text_offset == [0, *ends[:-1]]  # the first token is BOS, which has no text
            assert answer.usage.completion_tokens == max_tokens * len(answer.choices)


def test_echo_alone_begins_with_the_prompt(ask):
    plain = ask(prompt=PROMPT, seed=2).choices[0]
    for options in ({}, {"stop": ["night"]}):
        choice = ask(prompt=PROMPT, seed=2, echo=True, **options).choices[0]
        assert choice.text == PROMPT + plain.text  # a stop string is looked for in what is new
        assert choice.logprobs is None


def test_the_token_that_ends_a_text_has_its_place_beside_a_prompt_with_logprobs(ask, model):
    """Clients take the last log-probability for that of the one token that they asked for."""
    tokens, eos = model.encode(PROMPT), model.tokenizer.eos_token_ids[0]
    options = {"prompt": PROMPT, "max_tokens": 1, "logprobs": 1, "logit_bias": {str(eos): 100}}
    logprobs = ask(**options, echo=True).choices[0].logprobs
    assert len(logprobs.tokens) == len(tokens) + 1
    assert logprobs.tokens[-1] == model.tokenizer.spell(eos)
    assert ask(**options).choices[0].logprobs is None


def test_users_who_take_turns_have_no_token_of_their_histories_computed_twice(chat_model):
    with serving(chat_model, parallel=2) as client:
        histories = [[{"role": "user", "content": f"I am {name}."}] for name in ("Ishmael", "Ahab")]
        held = [0, 0]
        for _ in range(5):
            for user, history in enumerate(histories):
                answer = client.chat(history, ignore_eos=True).json
                usage = answer["usage"]
                assert usage["prompt_tokens_details"]["cached_tokens"] >= held[user]
                held[user] = usage["total_tokens"] - 1  # the last token made was not evaluated
                history.append(answer["choices"][0]["message"])
                history.append({"role": "user", "content": "And then?"})


@pytest.mark.parametrize("n_slots", [1, 3])
def test_requests_of_several_texts_take_turns_with_others(chat_model, n_slots):
    """One text of each request that waits, then the next."""
    order = []

    async def watch(engine):
        def texts(n):
            options, model = TextOptions(40, ignore_eos=True), engine.model
            sampler = Sampler(SamplingOptions())
            return [Generation([0, 84, 90], sampler, options, model.tokenizer, model.ctx_size) for _ in range(n)]

        async def read(name, job):
            async for index, token in job.stream():
                if token is None:
                    order.append((name, index))

        waiting = [texts(n) for n in (9, 1, 1)]  # all made before the first begins
        jobs = [engine.submit(some, Reuse.NOTHING) for some in waiting]
        await asyncio.gather(*(read(name, job) for name, job in zip("abc", jobs, strict=True)))

    with serving(chat_model, ctx_size=64, parallel=n_slots) as client:
        asyncio.run(watch(client.engine))
        assert client.engine.n_waiting == 0
    assert [index for name, index in order if name == "a"] == list(range(9))
    # Before them come at most the texts that had slots, and one of each turn.
    assert order.index(("b", 0)) <= n_slots + 1
    assert order.index(("c", 0)) <= n_slots + 3
