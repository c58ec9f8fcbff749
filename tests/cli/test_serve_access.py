"""Who may ask a server: the names by which it is called, and the API key."""

import subprocess

import pytest
from asgi import refusal, serving
from served import DEADLINE, ELUTQ

from elutq_cli.server.access import checked_hosts, checked_key, checked_origins
from elutq_cli.server.listener import is_local, listen, url
from elutq_formats.errors import ElutqError


@pytest.fixture(scope="module")
def local(chat_model):
    with serving(chat_model, ctx_size=64, hosts=[]) as client:
        yield client


def status(client, host, server=("127.0.0.1", 8080)):
    return client.get("/v1/models", headers=[("Host", host)], server=server).status


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "app.localhost", "localhost.", "127.0.0.1:1", "127.3.2.1"]
)
def test_names_of_this_machine_are_answered(local, host):
    assert status(local, host) == 200


@pytest.mark.parametrize("host", ["[::1]", "[::1]:8080", "[0:0::1]:8080"])
def test_an_ipv6_loopback_address_is_answered(local, host):
    assert status(local, host, server=("::1", 8080)) == 200


def test_the_bound_address_is_answered_and_others_are_not(local):
    for host, bound in (("192.0.2.7:8080", "192.0.2.7"), ("[2001:db8::7]", "2001:db8:0::7")):
        assert status(local, host, (bound, 8080)) == 200
        assert status(local, host) == 400


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "notlocalhost"),
        *("localhost:80:80", "[::1", "::1]", "[::1]evil", "localhost@evil.example", "a b", "\xe9.example"),
        "[evil.example]",
    ],
)
def test_another_name_is_refused_in_json(local, host):
    error = refusal(local.get("/v1/models", headers=[("Host", host)]))
    assert "--allowed-host" in error.message
    assert error.type == "invalid_request_error"


def test_two_names_are_both_looked_at(local):
    headers = [("Host", "localhost"), ("Host", "evil.example")]
    assert local.get("/v1/models", headers=headers).status == 400


def test_allowed_hosts_are_answered_beside_the_local_names(local):
    client = local.with_options(hosts=checked_hosts(["API.example.com", "*.lan", "2001:db8::1", "10.0.0.1"]))
    for host in ("api.example.com", "api.example.com:443", "box.lan", "a.box.lan", "[2001:db8:0::1]:80", "10.0.0.1"):
        assert status(client, host) == 200
    assert status(client, "localhost") == 200
    for host in ("example.com", "x.api.example.com", "lan", "evillan"):
        assert status(client, host) == 400
    assert status(local.with_options(hosts=None), "whatever.example") == 200


@pytest.mark.parametrize("name", ["", "*", "a.*.com", "http://a.example", "a/b", "a b"])
def test_what_is_no_host_is_refused_at_the_start(name):
    with pytest.raises(ElutqError, match="--allowed-host"):
        checked_hosts([name])


def test_requests_without_a_host_and_health_checks_are_answered(local):
    assert local.get("/v1/models", http_version="1.0").status == 200
    assert local.get("/health", headers=[("Host", "backend-7")]).status == 200
    assert local.request("HEAD", "/health").status == 200


@pytest.mark.parametrize("address", ["127.0.0.2", "::1"])
def test_any_local_address_can_be_listened_on(address):
    try:
        listener = listen(address, 0)
    except ElutqError:
        pytest.skip(f"this machine has no {address}")
    with listener:
        assert is_local(listener)
        port = listener.getsockname()[1]
        assert url(listener) == (f"http://[::1]:{port}/v1" if address == "::1" else f"http://{address}:{port}/v1")
    with listen("0.0.0.0", 0) as everywhere:
        assert not is_local(everywhere)


def test_an_empty_address_is_refused():
    with pytest.raises(ElutqError, match="--host is empty"):
        listen("", 0)


@pytest.fixture(scope="module")
def locked(local):
    return local.with_options(api_key="sécret", hosts=None)


@pytest.mark.parametrize(
    "header",
    [
        ("Authorization", "Bearer sécret".encode()),
        ("Authorization", "Bearer sécret".encode("latin-1")),
        ("authorization", "bearer  sécret ".encode()),
        ("X-Api-Key", "sécret".encode()),
    ],
)
def test_a_key_is_taken_from_either_header(locked, header):
    assert locked.get("/v1/models", headers=[header]).status == 200


@pytest.mark.parametrize(
    "header",
    [
        ("Authorization", "Basic sécret".encode()),
        ("Authorization", "sécret".encode()),
        ("Authorization", "Bearer"),
        ("Authorization", "Bearer "),
        ("Authorization", "Bearer s\xe9cre"),
        ("X-Api-Key", ""),
        ("X-Api-Key", "Bearer sécret".encode()),
        ("Cookie", "sécret".encode()),
    ],
)
def test_without_the_key_nothing_is_told(locked, header):
    for path in ("/v1/models", "/v1/models/tested", "/v1/nothing"):
        answer = locked.get(path, headers=[header])
        assert refusal(answer, 401).code == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert locked.get("/health", headers=[header]).status == 200


@pytest.mark.parametrize("key", ["", " ", "\n", "secret\n", " secret", "sec\x00ret"])
def test_a_key_that_no_client_can_send_is_refused(key):
    with pytest.raises(ElutqError, match="the API key"):
        checked_key(key)


@pytest.mark.parametrize("given", ["option", "variable"])
def test_an_empty_key_does_not_open_the_server(chat_model, given, monkeypatch):
    arguments = ["--api-key", ""] if given == "option" else []
    if given == "variable":
        monkeypatch.setenv("ELUTQ_API_KEY", "")
    command = [ELUTQ, "serve", chat_model, "--port", "0", "-c", "64", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "the API key is empty" in result.stderr


def preflight(client, origin):
    headers = [("Origin", origin), ("Access-Control-Request-Method", "POST")]
    return client.request("OPTIONS", "/v1/chat/completions", headers=[*headers, ASKED_HEADERS])


ASKED_HEADERS = ("Access-Control-Request-Headers", "authorization, content-type, x-stainless-os")


def test_pages_of_given_origins_may_ask_and_read_errors_too(locked):
    origins = checked_origins(["HTTPS://Chat.example:443", "app://obsidian.md"])
    client = locked.with_options(api_key="secret", origins=origins)
    for origin in ("https://chat.example", "app://obsidian.md"):
        answer = preflight(client, origin)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)
        assert answer.headers["access-control-allow-headers"] == ASKED_HEADERS[1]
        answer = client.get("/v1/models", headers=[("Origin", origin)])  # without the key
        assert refusal(answer, 401).code == "invalid_api_key"
        assert answer.headers["access-control-allow-origin"] == origin


def test_pages_of_other_origins_may_not(local):
    for client in (local, local.with_options(origins=["https://chat.example"])):
        for origin in ("https://evil.example", "https://chat.example.evil.example", "http://chat.example", "null"):
            assert preflight(client, origin).status == 400
            answer = client.get("/v1/models", headers=[("Origin", origin)])
            assert "access-control-allow-origin" not in answer.headers
    answer = local.with_options(origins=["*"]).get("/v1/models", headers=[("Origin", "https://evil.example")])
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("origin", ["", "chat.example", "https://", "https://a.example/", "https://*.example", "null"])
def test_what_is_no_origin_is_refused_at_the_start(origin):
    with pytest.raises(ElutqError, match="--cors-origin"):
        checked_origins([origin])
