"""/tokenize, /detokenize and /apply-template, as llama.cpp's and vLLM's clients ask for them."""

import pytest
from asgi import refusal, serving

MESSAGES = [{"role": "user", "content": "How do you do?"}]
RENDERED = "<|begin_of_text|>user:How do you do?<|end_of_text|>assistant:"


@pytest.fixture(scope="module")
def client(chat_model):
    with serving(chat_model) as client:
        yield client


def test_a_text_has_tokens_and_these_have_a_text(client):
    encode = client.model.tokenizer.encode
    for text in ("My dear Sir", RENDERED, "\N{GRINNING FACE} na\xefve", ""):
        answer = client.post("/tokenize", {"content": text}).json
        assert answer == {"tokens": encode(text), "count": len(encode(text)), "max_model_len": 512}
        assert client.post("/tokenize", {"content": text, "add_special": True}).json["tokens"] == encode(text, True)
        assert client.post("/tokenize", {"model": "any", "prompt": text}).json["tokens"] == encode(text, True)
        back = client.post("/detokenize", {"tokens": answer["tokens"]}).json
        assert back == {"content": text, "prompt": text}


def test_pieces_are_texts_or_bytes(client):
    pieces = client.post("/tokenize", {"content": "My \N{GRINNING FACE}", "with_pieces": True}).json["tokens"]
    assert [piece["id"] for piece in pieces] == client.model.tokenizer.encode("My \N{GRINNING FACE}")
    spelled = [piece["piece"] for piece in pieces]
    assert any(isinstance(piece, list) for piece in spelled)
    joined = b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in spelled)
    assert joined.decode() == "My \N{GRINNING FACE}"


def test_a_conversation_is_rendered_as_a_chat_does(client):
    assert client.post("/apply-template", {"messages": MESSAGES}).json == {"prompt": RENDERED}
    without = client.post("/apply-template", {"messages": MESSAGES, "add_generation_prompt": False}).json["prompt"]
    assert without + "assistant:" == RENDERED
    asked = client.chat(MESSAGES, max_tokens=1).json["usage"]["prompt_tokens"]
    assert client.post("/tokenize", {"messages": MESSAGES}).json["count"] == asked


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("tokenize", {}, "content"),
        ("tokenize", {"content": "a", "prompt": "b"}, "content"),
        ("tokenize", {"content": 5}, "content"),
        ("tokenize", {"prompt": ["a"]}, "prompt"),
        ("tokenize", {"content": "a", "parse_special": False}, "parse_special"),
        ("tokenize", {"messages": MESSAGES, "chat_template": "x"}, "chat_template"),
        ("detokenize", {"tokens": ["a"]}, "tokens"),
        ("detokenize", {}, "tokens"),
        ("apply-template", {"messages": []}, "messages"),
        ("apply-template", {"messages": MESSAGES, "images": ["x"]}, "images"),
    ],
)
def test_what_is_wrong_is_refused_by_name(client, path, body, field):
    assert refusal(client.post(f"/{path}", body)).param == field


def test_tokens_that_the_model_has_not_are_refused(client):
    assert "token 99999" in refusal(client.post("/detokenize", {"tokens": [99999]})).message
    assert refusal(client.post("/tokenize", {"content": "word " * 100_000})).code == "context_length_exceeded"
