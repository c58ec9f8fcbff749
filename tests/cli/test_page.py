"""The page that a server has at /: its files, and the headers that keep what a model writes from doing anything."""

import re
from pathlib import Path

import pytest
from asgi import refusal, serving

from elutq_cli.server import page

MOST_BYTES = 60 << 10
FOLDER = Path(page.__file__).parent
SCRIPTS = sorted(FOLDER.glob("*.js"))


@pytest.fixture(scope="module")
def client(chat_model):
    with serving(chat_model, ctx_size=64, hosts=[]) as client:
        yield client


def source(name):
    return (FOLDER / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", page.FILES)
def test_each_file_of_the_page_is_served_with_its_type(client, path):
    name, media_type = page.FILES[path]
    answer = client.get(path)
    assert (answer.status, answer.body) == (200, (FOLDER / name).read_bytes())
    assert answer.headers["content-type"].partition(";")[0] == media_type
    assert client.request("HEAD", path).status == 200
    assert client.post(path, {}).status == 405


@pytest.mark.parametrize("path", page.FILES)
def test_a_policy_lets_no_text_run_and_nobody_frame_the_page(client, path):
    headers = client.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    own = {name: value for name, value in policy.items() if value != "'none'"}
    assert set(own) == {"script-src", "style-src", "img-src", "connect-src", "require-trusted-types-for"}
    assert {value for name, value in own.items() if name.endswith("-src")} == {"'self'"}
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"


def test_the_page_is_small_and_whole(client):
    served = {name for name, _ in page.FILES.values()}
    assert served == {path.name for path in FOLDER.iterdir() if path.suffix not in (".py", "") and path.is_file()}
    assert sum((FOLDER / name).stat().st_size for name in served) < MOST_BYTES
    html = source("index.html")
    used = set(re.findall(r'(?:src|href)="(ui/[^"]+)"', html))
    used |= {f"ui/{name}" for path in SCRIPTS for name in re.findall(r'from "\./([^"]+)"', path.read_text())}
    assert {f"/{name}" for name in used} | {"/"} == set(page.FILES)


def test_nothing_comes_from_elsewhere_and_no_text_is_parsed_as_markup():
    for name, _ in page.FILES.values():
        text = source(name).replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(?:src|href|url|import|from|fetch)\W{1,4}(?:https?:)?//\w", text), name
    html = source("index.html")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", html)  # the policy forbids them
    for path in SCRIPTS:
        parsed = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b", path.read_text()
        )
        assert parsed == [], path.name


def test_the_page_is_served_without_the_key_that_it_asks_for(client):
    locked = client.with_options(api_key="secret", hosts=[])
    assert locked.get("/").status == locked.get("/ui/main.js").status == 200
    for path in ("/v1/models", "/ui/", "/ui/main.js/", "//", "/ui/../v1/models"):
        assert locked.get(path).status == 401


def test_the_page_answers_to_the_servers_own_names_only(client):
    headers = [("Host", "evil.example")]
    assert refusal(client.get("/", headers=headers)).message.startswith("this server does not answer to the name")
    assert client.get("/", headers=[("Host", "localhost:8080")]).status == 200


def test_without_a_page_its_paths_are_not_there(client):
    bare = client.with_options(ui=False)
    assert [bare.get(path).status for path in page.FILES] == [404] * len(page.FILES)
    assert bare.get("/v1/models").status == 200


def test_models_say_whether_they_chat(client, novels_2bit):
    assert client.get("/v1/models").json["data"][0]["capabilities"] == ["completion", "chat"]
    with serving(novels_2bit, ctx_size=64) as other:
        assert other.get("/v1/models").json["data"][0]["capabilities"] == ["completion"]
