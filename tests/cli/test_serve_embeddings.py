"""/v1/embeddings and /api/embed: hidden states of the model, pooled, in the forms that clients want them in."""

import numpy as np
import pytest
from asgi import refusal, serving

from elutq_native import Engine, Model, NativeSequence, Run

TEXTS = ["It was a dark night.", "My dear Sir", "The captain said " * 30]


@pytest.fixture(scope="module")
def client(chat_model):
    with serving(chat_model, parallel=3) as client:
        yield client


@pytest.fixture(scope="module")
def states(chat_model, client):
    """Returns a function that computes the hidden states of a text's tokens, in whole pieces."""
    with Model(chat_model) as model, Engine(model, 1) as engine:

        def compute(text):
            tokens = client.model.encode(text)
            hidden = np.empty((len(tokens), model.info.hidden_size), np.float32)
            with NativeSequence(model, 512) as sequence:
                engine.eval([Run(sequence, tokens, 0, hidden)])
            return hidden

        yield compute


def unit(vector):
    return vector / np.linalg.norm(vector)


def embed(client, given, **fields):
    answer = client.post("/v1/embeddings", {"model": "any", "input": given, **fields})
    assert answer.status == 200, answer.body
    assert [entry["index"] for entry in answer.json["data"]] == list(range(len(answer.json["data"])))
    return [np.array(entry["embedding"], np.float32) for entry in answer.json["data"]]


def test_an_embedding_is_the_mean_of_the_hidden_states_or_the_last(client, states):
    for found, text in zip(embed(client, TEXTS), TEXTS, strict=True):
        assert np.allclose(found, unit(states(text).mean(axis=0)), atol=1e-6)
    for found, text in zip(embed(client.with_options(pooling="last"), TEXTS), TEXTS, strict=True):
        assert np.allclose(found, unit(states(text)[-1]), atol=1e-6)


def test_an_embedding_has_the_same_bits_in_any_company_and_whatever_slots_hold(client):
    alone = [embed(client, text)[0] for text in TEXTS]
    client.complete(TEXTS[2])
    assert all(map(np.array_equal, embed(client, [*TEXTS, *TEXTS[::-1]]), [*alone, *alone[::-1]]))


def test_token_ids_are_inputs_too_and_tokens_are_counted(client):
    tokens = client.model.encode(TEXTS[0])
    assert np.array_equal(embed(client, tokens)[0], embed(client, TEXTS[0])[0])
    answer = client.post("/v1/embeddings", {"input": [tokens, tokens]}).json
    assert answer["usage"] == {"prompt_tokens": 2 * len(tokens), "total_tokens": 2 * len(tokens)}


def test_texts_are_made_beside_embeddings_and_after_them(client):
    expected = client.complete(seed=1).json["choices"]
    embed(client, TEXTS * 3)
    assert client.complete(seed=1).json["choices"] == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("input", value) for value in (None, [], [1, "a"], 5, [[]], [99999])),
        ("input", ["a"] * 2049),
        ("dimensions", 3),
        ("encoding_format", "hex"),
        ("truncate_prompt_tokens", 5),
        ("pooling", "last"),
        ("normalize", False),
    ],
)
def test_what_is_wrong_or_not_here_is_refused_by_name(client, field, value):
    assert refusal(client.post("/v1/embeddings", {"input": "a", field: value})).param == field


def test_an_input_that_does_not_fit_or_takes_too_long_is_no_embedding(client, monkeypatch):
    error = refusal(client.post("/v1/embeddings", {"input": ["a", "word " * 600]}))
    assert error.code == "context_length_exceeded"
    monkeypatch.setattr(client.engine, "_max_seconds", 1e-9)
    assert "--max-seconds" in refusal(client.post("/v1/embeddings", {"input": TEXTS[2] * 4}), 500).message


def test_ollamas_form(client):
    answer = client.post("/api/embed", {"model": "any", "input": TEXTS[:2], "truncate": True, "keep_alive": "5m"}).json
    assert [np.array(vector, np.float32).tolist() for vector in answer["embeddings"]] == [
        vector.tolist() for vector in embed(client, TEXTS[:2])
    ]
    assert answer["prompt_eval_count"] == sum(len(client.model.encode(text)) for text in TEXTS[:2])
    for options, status in (({"num_ctx": 512, "temperature": 0.5}, 200), ({"num_ctx": 513}, 400)):
        assert client.post("/api/embed", {"input": "a", "options": options}).status == status
    assert "dimensions" in client.post("/api/embed", {"input": "a", "dimensions": 3}).json["error"]
    for wrong in ({}, {"prompt": ["a"]}):
        assert client.post("/api/embeddings", wrong).status == 400


@pytest.mark.parametrize("text", ["word " * 600, "word " * 100_000, " " * 9000 + "word " * 600, "word " * 2])
def test_ollamas_inputs_are_cut_to_the_context_unless_they_may_not_be(client, text):
    tokens = client.model.tokenizer.encode(text, add_special_tokens=True)
    (whole,) = embed(client, tokens[:512])
    answer = client.post("/api/embed", {"input": text})
    assert (answer.status, answer.json["prompt_eval_count"]) == (200, min(len(tokens), 512))
    assert np.array_equal(np.array(answer.json["embeddings"][0], np.float32), whole)
    status = 400 if len(tokens) > 512 else 200
    assert client.post("/api/embed", {"input": text, "truncate": False}).status == status
