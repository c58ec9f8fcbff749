"""`elutq serve` as OpenAI's own client sees it, and what it says of wrong requests and options."""

import socket
import subprocess

import numpy as np
import openai
import pytest
from conftest import CHAT_TEMPLATE
from served import DEADLINE, ELUTQ, Server

from elutq_cli.generation.template import ChatTemplate

MESSAGES = [{"role": "user", "content": "How do you do?"}]


@pytest.fixture(scope="module")
def server(chat_model):
    server = Server(chat_model, "-c", 512, "--parallel", 4)
    yield server
    status, rest = server.stop()
    assert status == 0
    assert all(line.startswith("WARNING:  ") for line in rest.splitlines()), rest  # of requests that are no HTTP


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def test_models(client):
    (entry,) = client.models.list()
    assert entry.object == "model"
    assert client.models.retrieve(entry.id).owned_by == "elutq"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_chat(client):
    reply = client.chat.completions.create(model="any", messages=MESSAGES, max_tokens=8, temperature=0, seed=1)
    assert reply.object == "chat.completion"
    (choice,) = reply.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    usage = reply.usage
    assert (usage.completion_tokens, usage.total_tokens) == (8, usage.prompt_tokens + 8)


def test_chat_streams_the_same_text(client):
    options = {"model": "any", "messages": MESSAGES, "max_completion_tokens": 12, "seed": 7}
    whole = client.chat.completions.create(**options).choices[0].message.content
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.object == "chat.completion.chunk" and chunk.id == chunks[0].id for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-2])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12


def test_streams_carry_usage_only_when_asked(client):
    chunks = list(client.chat.completions.create(model="any", messages=MESSAGES, max_tokens=2, stream=True))
    assert all(chunk.choices for chunk in chunks)


def test_completion(client):
    text = client.completions.create(model="any", prompt="It was a dark night, and", temperature=0, seed=0)
    assert text.object == "text_completion"
    assert text.usage.completion_tokens == 16  # OpenAI's default
    pieces = client.completions.create(
        model="any", prompt="It was a dark night, and", temperature=0, seed=0, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces) == text.choices[0].text


def test_completion_of_token_ids(client):
    text = client.completions.create(model="any", prompt=[0, 84, 90], max_tokens=1)
    assert text.usage.prompt_tokens == 3


def test_same_seed_same_text_whatever_was_asked_before(client):
    options = {"model": "any", "prompt": "The captain said", "max_tokens": 20, "seed": 5}
    first = client.completions.create(**options).choices[0].text
    client.completions.create(model="any", prompt="The captain said that he", max_tokens=5)
    assert client.completions.create(**options).choices[0].text == first


def test_without_a_seed_texts_differ_and_the_context_is_reused(client):
    options = {"model": "any", "prompt": "The captain said to the mate", "max_tokens": 12}
    texts = [client.completions.create(**options) for _ in range(4)]
    assert len({text.choices[0].text for text in texts}) > 1
    usage = texts[-1].usage
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_conversation_reuses_the_context(client):
    first = client.chat.completions.create(model="any", messages=MESSAGES, max_tokens=6, temperature=0)
    longer = [*MESSAGES, {"role": "assistant", "content": first.choices[0].message.content}]
    longer.append({"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]})
    second = client.chat.completions.create(model="any", messages=longer, max_tokens=2)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_embeddings(client):
    """The client asks for base64 of its own, and for numbers where it is told to."""
    texts = ["It was a dark night.", "My dear Sir"]
    made = client.embeddings.create(model="any", input=texts)
    numbers = client.embeddings.create(model="any", input=texts, encoding_format="float")
    assert [entry.embedding for entry in made.data] == [entry.embedding for entry in numbers.data]
    assert [len(entry.embedding) for entry in made.data] == [256, 256]
    assert made.usage.prompt_tokens == made.usage.total_tokens > 5


def test_stop_string(client):
    options = {"model": "any", "prompt": "It was a dark night, and", "max_tokens": 30, "temperature": 0, "seed": 0}
    whole = client.completions.create(**options).choices[0].text
    for stop in (whole[10:14], ["never seen", whole[10:14]]):
        choice = client.completions.create(**options, stop=stop).choices[0]
        assert choice.text == whole[: whole.index(whole[10:14])]
        assert choice.finish_reason == "stop"


def test_chat_logprobs(client):
    options = {"model": "any", "messages": MESSAGES, "max_tokens": 3, "temperature": 0, "seed": 0}
    reply = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    content = reply.choices[0].logprobs.content
    assert len(content) == 3
    for entry in content:
        assert bytes(entry.bytes).decode() == entry.token
        assert entry.logprob == entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
    chunks = client.chat.completions.create(**options, logprobs=True, stream=True)
    streamed = [chunk.choices[0].logprobs.content[0] for chunk in chunks if chunk.choices[0].logprobs]
    assert [entry.token for entry in streamed] == [entry.token for entry in content]
    assert streamed[0].top_logprobs == []


def test_completion_logprobs(client):
    text = client.completions.create(model="any", prompt="My dear", max_tokens=4, logprobs=2, temperature=0)
    logprobs = text.choices[0].logprobs
    assert logprobs.text_offset == [0, *np.cumsum([len(token) for token in logprobs.tokens[:-1]]).tolist()]
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 4
    assert all(len(top) == 2 for top in logprobs.top_logprobs)


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("completions", b"{", "not JSON"),
        ("completions", b"[" * 100_000, "not JSON"),
        ("completions", b"\xff{}", "not JSON"),
        ("completions", [], "JSON object"),
        ("completions", {}, "prompt must be"),
        ("completions", {"prompt": ""}, None),
        ("completions", {"prompt": []}, "no tokens"),
        ("completions", {"prompt": ["a", 1]}, "prompt must be one text, the token ids of one, or a list of these"),
        ("completions", {"prompt": [[1], ["a"]]}, "prompt must be one text"),
        ("completions", {"prompt": [[1], []]}, "no tokens"),
        ("completions", {"prompt": [[1], [99999]]}, "token 99999"),
        ("completions", {"prompt": ["a", "word " * 2000]}, "maximum context length is 512"),
        ("completions", {"prompt": [1, 99999]}, "token 99999"),
        ("completions", {"prompt": [1, True]}, "prompt must be"),
        ("completions", {"prompt": "word " * 2000}, "maximum context length is 512"),
        ("completions", {"prompt": "a", "temperature": -1}, "temperature is -1"),
        ("completions", {"prompt": "a", "temperature": "hot"}, "temperature must be a number"),
        ("completions", '{"prompt": "a", "temperature": NaN}', "temperature must be a finite number"),
        ("completions", '{"prompt": "a", "temperature": 1' + 400 * "0" + "}", "finite"),
        ("completions", {"prompt": "a", "top_p": 2}, "top_p is 2"),
        ("completions", {"prompt": "a", "max_tokens": -2}, "max_tokens"),
        ("completions", {"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
        ("completions", {"prompt": "a", "n": 0}, "n must be a whole number from 1 to 1024"),
        ("completions", {"prompt": ["a", "b"], "n": 513}, "at most 1024 texts"),
        ("completions", {"prompt": "a", "n": 3, "best_of": 2}, "best_of is 2: it must be at least n, which is 3"),
        ("completions", {"prompt": "a", "best_of": 2, "stream": True}, "leave out stream"),
        ("completions", {"prompt": "a", "echo": 1}, "echo must be true or false"),
        ("completions", {"prompt": "a", "stop": 5}, "stop must be"),
        ("completions", {"prompt": "a", "stream": "yes"}, "stream must be true or false"),
        ("completions", {"prompt": "a", "logprobs": 21}, "logprobs must be"),
        ("completions", {"prompt": "a", "seed": "x"}, "seed must be"),
        ("chat/completions", {}, "messages must be"),
        ("chat/completions", {"messages": []}, "messages must be"),
        ("chat/completions", {"messages": ["hello"]}, "role"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ("chat/completions", {"messages": [{"role": [], "content": "x"}]}, "role"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "content"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "type text"),
        ("chat/completions", {"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools.0 must be"),
        ("chat/completions", {"messages": MESSAGES, "response_format": {"type": "xml"}}, "response_format"),
        ("chat/completions", {"messages": MESSAGES, "top_logprobs": 3}, "needs logprobs"),
        ("chat/completions", {"messages": MESSAGES, "n": 1025}, "n must be a whole number"),
        ("chat/completions", {"messages": MESSAGES, "echo": True}, "echo is not supported"),
        ("chat/completions", {"messages": MESSAGES, "best_of": 2}, "best_of is not supported"),
        ("chat/completions", {"messages": MESSAGES, "stream_options": 3}, "JSON object"),
    ],
)
def test_wrong_requests_get_400_and_the_reason(server, path, body, word):
    status, answer = server.post(body, f"/v1/{path}")
    if word is None:  # an empty text is its BOS
        assert status == 200
        return
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert word in answer["error"]["message"]


def test_what_front_ends_send_beside_is_passed_over(client):
    """Open WebUI's and SillyTavern's fields; -1 for no limit, no seed and every token."""
    beside = {"chat_id": "1", "metadata": {}, "features": {"web_search": False}, "top_k": -1, "repetition_penalty": 1}
    beside |= {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "user": "me", "stop": []}
    options = {"model": "any", "messages": MESSAGES, "max_tokens": -1, "seed": -1, "n": 1, "logit_bias": {}}
    reply = client.chat.completions.create(**options, extra_body=beside)
    usage = reply.usage
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.choices[0].finish_reason == "stop" or usage.total_tokens >= 512  # the context is full


def test_wrong_requests_raise_in_the_client(client):
    with pytest.raises(openai.BadRequestError, match="the type of response_format must be"):
        client.chat.completions.create(model="any", messages=MESSAGES, response_format={"type": "xml"})


def test_other_statuses(server):
    assert server.request("GET", "/v1/nothing")[0] == 404
    assert server.request("GET", "/v1/completions")[0] == 405
    assert server.post(b"{}", Content_Type="text/plain")[0] == 415
    assert server.post(b" " * (9 << 20))[0] == 413
    assert server.request("GET", "/v1/models", headers={"Host": "evil.example"})[0] == 400
    assert server.request("GET", "/v1/models", headers={"Host": f"localhost:{server.port}"})[0] == 200
    assert server.request("GET", "/")[1].startswith(b"<!doctype html>")
    assert server.request("GET", "/health") == (200, {"status": "ok", "waiting": 0, "slots": 4, "busy": 0})


def test_model_without_a_template_completes_but_does_not_chat(novels_2bit):
    server = Server(novels_2bit, "-c", 64, "--parallel", 3)
    assert "3 slots, each with a context of 64 tokens, KV cache 0.6 MB, 1 thread" in server.line
    try:
        status, answer = server.post({"messages": MESSAGES}, "/v1/chat/completions")
        assert (status, "no chat template" in answer["error"]["message"]) == (400, True)
        assert server.post({"prompt": "My dear", "max_tokens": 2})[0] == 200
    finally:
        status, rest = server.stop()
    assert status == 0
    assert "no chat template" in rest


def test_a_template_and_a_cache_type_may_be_given(novels_2bit, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text(CHAT_TEMPLATE)
    server = Server(novels_2bit, "-c", 64, "--chat-template", template, "--cache-type", "q8")
    try:
        status, answer = server.post({"messages": MESSAGES, "max_tokens": 2}, "/v1/chat/completions")
        assert (status, answer["usage"]["completion_tokens"]) == (200, 2)
    finally:
        status, rest = server.stop()
    assert (status, rest) == (0, "")


def test_api_key(chat_model):
    server = Server(chat_model, "-c", 64, ELUTQ_API_KEY="secret")
    try:
        assert server.client("secret").models.list()
        for wrong in ("guess", "s\u00e9cret"):
            assert server.request("GET", "/v1/models", headers={"Authorization": f"Bearer {wrong}"})[0] == 401
        assert server.post({"prompt": "a"})[0] == 401
        with pytest.raises(openai.AuthenticationError):
            server.client("guess").completions.create(model="any", prompt="a")
    finally:
        assert server.stop()[0] == 0


def test_what_is_no_http_is_told_in_json_and_never_ends_in_a_traceback(server):
    """Also when the answer is on its way already, and over HTTP/1.0, and with an upgrade that is not there."""
    head = b"POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\n"
    for sent, status in (
        (b"\xff\xfe\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n", b"200"),
        (head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"40"),
        (head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", b"400"),
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.split(b" ", 1)[1].startswith(status), sent
        assert b"\r\ncontent-type: application/json\r\n" in answer, answer
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        received = connection.recv(4096)
        connection.sendall(b"no chunk\r\n")
        received += b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 404")
    assert received.count(b"HTTP/1.1") == 1


def test_another_address_a_name_and_bounds_may_be_given(chat_model):
    options = [
        "--alias",
        "my/model",
        "--allowed-host",
        "models.example",
        "--max-tokens",
        3,
        "--host",
        "127.0.0.2",
        "--no-ui",
    ]
    server = Server(chat_model, "-c", 64, *options)
    try:
        client = server.client()
        assert [entry.id for entry in client.models.list()] == ["my/model"]
        assert client.models.retrieve("my/model").context_length == 64
        text = client.completions.create(model="my/model", prompt="My dear", max_tokens=40)
        assert (text.usage.completion_tokens, text.choices[0].finish_reason) == (3, "length")
        assert server.request("GET", "/v1/models", headers={"Host": "models.example"})[0] == 200
        assert server.request("GET", "/")[0] == 404
        assert server.request("GET", "/v1/models", headers={"Host": "other.example"})[0] == 400
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="any", prompt="word " * 100)
        assert caught.value.code == "context_length_exceeded"
    finally:
        status, rest = server.stop()
    assert (status, rest) == (0, "")


def test_port_in_use_is_one_line(server, chat_model):
    result = subprocess.run(
        [ELUTQ, "serve", chat_model, "--port", str(server.port)], capture_output=True, text=True, timeout=DEADLINE
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"cannot listen on 127.0.0.1, port {server.port}" in result.stderr


def test_broken_template_is_told_at_the_start(chat_model, tmp_path):
    broken = tmp_path / "broken.gguf"
    assert chat_model.read_bytes().count(b"{% endfor %}") == 1
    broken.write_bytes(chat_model.read_bytes().replace(b"{% endfor %}", b"{% for    %}"))
    result = subprocess.run([ELUTQ, "serve", broken, "--port", "0"], capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 2
    assert "not valid Jinja" in result.stderr


def test_template_of_these_tests_ends_where_the_reply_begins():
    assert (
        ChatTemplate(CHAT_TEMPLATE, {"bos_token": "<s>"}).render(MESSAGES)
        == "<s>user:How do you do?<|end_of_text|>assistant:"
    )
