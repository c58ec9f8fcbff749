"""The page in a headless Chromium: chats with a model, and what becomes of text that would do harm as markup."""

import asyncio
import json
import re
from contextlib import contextmanager

import pytest
from asgi import serving
from browser import SECONDS, chromium, listening
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from elutq_cli.server.page import page_routes

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

PIECE = 7
ATTACKS = [
    "<img src=x onerror=window.hacked=1>",
    "<script>window.hacked=1</script>",
    "<svg onload='window.hacked=1'><iframe srcdoc='<script>parent.hacked=1</script>'>",
    "[a](javascript:window.hacked=1) ![b](data:text/html,<script>1</script>) <javascript:window.hacked=1>",
    '[c](JaVaScRiPt&colon;alert(1)) [d](vbscript:x) [e](//evil.example) [f](https://ok.example/"onmouseover="x)',
    "`<b onclick=1>` **<i onclick=1>** > <u>\n\n| <a onclick=1> |\n|---|\n| <script>window.hacked=1</script> |",
    "```html onload=x\n</code></pre><script>window.hacked=1</script>\n```",
]
MARKDOWN = {
    "plain\nlines": "<p>plain<br>lines</p>",
    "## Title": "<h4>Title</h4>",
    "**b *i* b** ***bi*** ~~gone~~ `a*b*` snake_case_name 2 * 3 * 4": (
        "<p><strong>b <em>i</em> b</strong> <em><strong>bi</strong></em> <del>gone</del> <code>a*b*</code>"
        " snake_case_name 2 * 3 * 4</p>"
    ),
    "**open and *left": "<p>**open and *left</p>",
    "``a ` b`` \\*kept\\* `open": "<p><code>a ` b</code> *kept* `open</p>",
    "- a\n  - b\n\n    more\n- c": "<ul><li><p>a</p><ul><li><p>b</p><p>more</p></li></ul></li><li><p>c</p></li></ul>",
    "2. a\n3. b\n\nend": '<ol start="2"><li><p>a</p></li><li><p>b</p></li></ol><p>end</p>',
    "- [x] done\n- [ ] not": "<ul><li><p>☑ done</p></li><li><p>☐ not</p></li></ul>",
    "> a\n> > b\n\n---": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><hr>",
    "| a | b |\n|--|--:|\n| 1 \\| 2 | `x` | 3 |": (
        '<div class="table" tabindex="0"><table><thead><tr><th>a</th><th style="text-align: right;">b</th></tr></thead>'
        '<tbody><tr><td>1 | 2</td><td style="text-align: right;"><code>x</code></td></tr></tbody></table></div>'
    ),
    "a\n```\n# no title": (
        '<p>a</p><div class="block"><div><span>text</span><button type="button">Copy</button></div>'
        '<pre tabindex="0"><code># no title</code></pre></div>'
    ),
}


@pytest.fixture(scope="module")
def driver():
    with chromium("--window-size=1000,700") as driver:
        yield driver


def echo(texts=None):
    """An application with the page and a model that answers with the question, in pieces; texts gets what it reads.

    Asked to think, fail or break off, it does so after it.
    """

    async def models(_):
        described = {"id": "echo", "context_length": 100, "capabilities": ["completion", "chat"]}
        return JSONResponse({"data": [described]})

    async def chat(request):
        body = await request.json()
        if texts is not None:
            texts.append([(message["role"], message["content"]) for message in body["messages"]])
        text = body["messages"][-1]["content"]

        async def events():
            for at in range(0, len(text), PIECE):
                yield event({"choices": [{"index": 0, "delta": {"content": text[at : at + PIECE]}}]})
                await asyncio.sleep(0)
            if text == "think":
                yield event({"choices": [{"index": 0, "delta": {"reasoning_content": "<b>hm</b>"}}]})
            elif text == "fail":
                yield event({"error": {"message": "the weights are damaged", "code": None}})
                return
            elif text == "break off":
                return
            yield event({"choices": [], "usage": {"completion_tokens": 5, "total_tokens": 30}})
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    def event(value):
        return f": at work\n\ndata: {json.dumps(value)}\r\n\r\n"

    return Starlette(
        routes=[
            *page_routes(),
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
        ]
    )


class Page:
    """The page as a person uses it."""

    def __init__(self, driver, address):
        self.driver = driver
        if not driver.current_url.startswith(address):
            driver.get(address)
        driver.get_log("browser")

    def find(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def until(self, condition):
        """Wait until a condition holds; what it looks at may be replaced meanwhile."""
        wait = WebDriverWait(self.driver, SECONDS, 0.05, [StaleElementReferenceException])
        return wait.until(lambda _: condition())

    def press(self, *keys):
        self.one("#input").send_keys(*keys)

    def put(self, text):
        """Put a text into the field as pasting does."""
        script = "arguments[0].value = arguments[1]"
        self.driver.execute_script(script, self.one("#input"), text)

    def ask(self, text):
        self.put(text)
        self.press(Keys.ENTER)
        self.wait()

    def wait(self):
        """Wait for the end of the answer."""
        self.until(lambda: self.find(".turn.assistant") and not self.busy)

    @property
    def busy(self):
        return self.one("#send").text == "Stop"

    @property
    def turns(self):
        return [turn.text for turn in self.find(".turn > .text")]

    @property
    def facts(self):
        return self.find(".turn.assistant footer > p")[-1].text

    def html(self):
        """What the last answer has become."""
        return self.find(".turn.assistant > .text")[-1].get_attribute("innerHTML")


@contextmanager
def opened(driver, app):
    """Yield the page of an application; whatever the browser complains of fails the test."""
    with listening(app) as address:
        yield Page(driver, address)
        # Leave before the server does, with nothing kept: the next one may have the same port.
        driver.execute_script("localStorage.clear()")
        complaints = driver.get_log("browser")
        driver.get("about:blank")
    assert complaints == []


def test_a_chat_streams_and_stop_stops_it_and_a_reload_keeps_it(driver, endless_model):
    with serving(endless_model, ctx_size=1 << 15) as client, opened(driver, client.app) as page:
        page.until(lambda: page.one("#model").text == "tested")
        page.press("Once upon a time", Keys.ENTER)
        early = page.until(lambda: page.turns[1:] and page.turns[1])
        page.until(lambda: len(page.turns[1]) > len(early) and "tokens/s" in page.facts)
        assert page.busy
        page.press(Keys.ESCAPE)
        page.wait()
        page.until(lambda: client.engine.n_busy == 0)
        assert page.facts.endswith("stopped")
        told = page.turns
        assert told[0] == "Once upon a time"
        assert told[1].startswith(early[: len(early) // 2])
        page.driver.refresh()
        page.until(lambda: page.turns == told)
        assert [link.text for link in page.find("#chats a[aria-current]")] == ["Once upon a time"]
        page.press("And then?", Keys.ENTER)  # the conversation goes on
        begun = page.until(lambda: len(page.turns) == 4 and page.turns[3])
        page.driver.refresh()  # in the middle of an answer
        page.until(lambda: len(page.turns) == 4 and page.turns[3].startswith(begun[: len(begun) // 2]))
        page.until(lambda: client.engine.n_busy == 0)


def test_under_an_answer_stand_its_speed_and_the_context_left(driver, chat_model):
    with serving(chat_model) as client, opened(driver, client.app) as page:
        page.one("#open-settings").click()
        page.one("[name=max_tokens]").send_keys("20")
        page.one("[name=temperature]").send_keys("0")
        page.one("[name=system]").send_keys("Be brief.")
        page.one("#settings .primary").click()
        page.ask("Who are you?")
        found = page.facts.split(" · ")
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
        answer = client.chat(messages, max_tokens=20).json
        left = 512 - answer["usage"]["total_tokens"]
        assert found[0].endswith(" tokens/s")
        assert found[1] == "20 tokens"
        assert found[3:] == [f"{left} left of the context", "cut off at the limit of tokens"]
        assert page.one("#log > details").text == "System prompt"
        assert page.turns[1].split() == answer["choices"][0]["message"]["content"].split()


@pytest.fixture(scope="module")
def echo_address():
    with listening(echo()) as address:
        yield address


@pytest.fixture
def mirror(driver, echo_address):
    """The page of a model that says what it is asked, with whatever it was asked before."""
    page = Page(driver, echo_address)
    page.until(lambda: page.one("#model").text == "echo")
    return page


@pytest.mark.parametrize("text", ATTACKS)
def test_markup_that_a_model_writes_is_text(mirror, text):
    mirror.ask(text)
    shown = mirror.find(".turn.assistant")[-1]
    allowed = (
        "p, br, h3, ul, li, blockquote, code, pre, table, thead, tbody, tr, th, td, strong, em, a, div, span, button"
    )
    assert shown.find_elements(By.CSS_SELECTOR, f".text :not({allowed})") == []
    attributes = mirror.driver.execute_script(
        "return [...arguments[0].querySelectorAll('.text *')].flatMap((found) => found.getAttributeNames())", shown
    )
    assert set(attributes) <= {"class", "tabindex", "type", "href", "title", "target", "rel", "start", "style"}
    for link in shown.find_elements(By.CSS_SELECTOR, "a"):
        assert link.get_attribute("href").startswith("https://ok.example/")
    for part in (
        "<img src=x onerror=window.hacked=1>",
        "<script>window.hacked=1</script>",
        "javascript:window.hacked=1",
    ):
        assert (part in shown.text) == (part in text)
    assert mirror.driver.execute_script("return window.hacked") is None


@pytest.mark.parametrize(("text", "html"), MARKDOWN.items())
def test_markdown_becomes_elements(mirror, text, html):
    mirror.ask(text)
    assert mirror.html() == html


def test_links_lead_only_where_a_person_sees(mirror):
    mirror.ask(
        "see https://a.example/b_(c). [**two**](https://b.example) <https://c.example/x> [x](mailto:me@d.example)"
    )
    links = mirror.find(".turn:last-child .text a")
    found = [(link.text, link.get_attribute("href")) for link in links]
    assert found == [
        ("https://a.example/b_(c)", "https://a.example/b_(c)"),
        ("two", "https://b.example/"),
        ("https://c.example/x", "https://c.example/x"),
        ("x", "mailto:me@d.example"),
    ]
    assert {link.get_attribute("rel") for link in links} == {"noopener noreferrer nofollow"}
    assert {link.get_attribute("title") for link in links} == {href for _, href in found}


@pytest.mark.parametrize("text", ["> " * 20000, "*a " * 20000, "[" * 50000, "`" * 9999 + "a", "- " * 5000, "|" * 9999])
def test_text_that_nests_or_never_closes_is_shown_in_time(mirror, text):
    mirror.ask(text[: 7 * 400])  # in pieces
    script = "const { showMarkdown } = await import('/ui/markdown.js'); const made = document.createElement('div');"
    script += "const begin = performance.now(); showMarkdown(made, arguments[0]); return performance.now() - begin"
    took = mirror.driver.execute_async_script(
        f"const done = arguments[1]; (async () => {{ {script} }})().then(done, (error) => done(String(error)))", text
    )
    assert isinstance(took, float | int), took


def test_the_policy_holds_even_if_the_page_put_markup_in(mirror):
    """The second line of defence: parsing is refused, and a handler that got in does not run."""
    script = """
    const done = arguments[0];
    let parsed = "";
    try { document.body.innerHTML = "<img src=x onerror=window.hacked=1>"; parsed = "innerHTML"; } catch {}
    const image = document.createElement("img");
    try { image.setAttribute("onerror", "window.hacked=1"); } catch {}
    image.addEventListener("error", () => setTimeout(() => done([parsed, window.hacked ?? null]), 50));
    image.src = "https://evil.example/x.png";
    """
    assert mirror.driver.execute_async_script(script) == ["", None]
    assert any("Content Security Policy" in entry["message"] for entry in mirror.driver.get_log("browser"))


def test_code_can_be_copied(mirror):
    mirror.ask("Here:\n```c\nint a;\n\tint b;\n```\nDone")
    button = mirror.one(".turn:last-child .block button")
    button.click()
    mirror.until(lambda: button.text == "Copied")
    mirror.press(Keys.CONTROL, "v")
    assert mirror.one("#input").get_attribute("value") == "int a;\n\tint b;"


@pytest.mark.parametrize(
    ("text", "message"),
    [("fail", "the weights are damaged"), ("break off", "The server broke off in the middle of the answer.")],
)
def test_an_answer_that_fails_keeps_what_has_come_and_says_why(mirror, text, message):
    mirror.ask(text)
    assert mirror.one(".turn:last-child .text").text == text
    assert mirror.one(".turn:last-child .error").text == message
    assert mirror.one(".turn:last-child .regenerate").is_displayed()


def test_thoughts_are_folded_away_from_the_answer(mirror):
    mirror.ask("think")
    thoughts = mirror.one(".turn:last-child details")
    assert (thoughts.text, mirror.turns[-1]) == ("Thoughts", "think")
    thoughts.click()
    assert thoughts.text == "Thoughts\n<b>hm</b>"


def test_a_browser_that_keeps_nothing_is_told_so(mirror):
    refuse = (
        "Storage.prototype.kept = Storage.prototype.setItem; Storage.prototype.setItem = () => { throw new Error() }"
    )
    mirror.driver.execute_script(refuse)
    try:
        mirror.ask("hello")
        assert "no room for the conversation" in mirror.one("#note").text
        assert mirror.turns[-1] == "hello"
    finally:
        mirror.driver.execute_script("Storage.prototype.setItem = Storage.prototype.kept")


def test_the_page_is_dark_or_light_as_the_system_is_or_a_person_wants(mirror):
    def brightness():
        colour = mirror.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    for scheme in ("dark", "light"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        mirror.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        assert (brightness() < 200) == (scheme == "dark")
    for theme in ("dark", "light"):
        mirror.press(Keys.ALT, "s")
        mirror.one(f"#settings [value={theme}]").click()
        mirror.one("#settings .primary").click()
        mirror.until(lambda dark=theme == "dark": (brightness() < 200) == dark)


def test_what_another_tab_asks_is_listed_here_too(mirror):
    first, address = mirror.driver.current_window_handle, mirror.driver.current_url.partition("#")[0]
    mirror.driver.switch_to.new_window("tab")
    try:
        mirror.driver.get(address)
        mirror.ask("asked in another tab")
    finally:
        mirror.driver.close()
        mirror.driver.switch_to.window(first)
    listed = "return [...document.querySelectorAll('#chats a')].map((link) => link.textContent)"
    mirror.until(lambda: "asked in another tab" in mirror.driver.execute_script(listed))


def test_a_narrow_screen_needs_no_scrolling_sideways(mirror):
    mirror.ask("word" * 80 + "\n\n```\n" + "code " * 80 + "\n```\n|" + " a |" * 40 + "\n|" + "-|" * 40)
    size = {"width": 320, "height": 560, "deviceScaleFactor": 1, "mobile": True}
    mirror.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        widths = "return [innerWidth, document.documentElement.scrollWidth, document.getElementById('log').scrollWidth]"
        assert max(mirror.driver.execute_script(widths)) == 320
        mirror.one("#menu").click()
        mirror.one("#chats a")
        mirror.one("#open-settings").click()
        assert mirror.one("#settings .primary").rect["x"] < 320 - mirror.one("#settings .primary").rect["width"]
        mirror.one("#settings [value=cancel]").click()
    finally:
        mirror.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_an_answer_is_made_again_and_a_question_is_edited(driver):
    asked = []
    with opened(driver, echo(asked)) as page:
        page.ask("one")
        page.ask("two")
        page.press(Keys.ALT, "r")
        page.until(lambda: len(asked) == 3)
        page.wait()
        assert asked[1] == asked[2] == [("user", "one"), ("assistant", "one"), ("user", "two")]
        page.press(Keys.ARROW_UP)
        page.one(".turn form textarea").send_keys(" more", Keys.ENTER)
        page.until(lambda: len(asked) == 4)
        page.wait()
        assert page.turns == ["one", "one", "two more", "two more"]
        page.find(".turn.user")[0].find_element(By.XPATH, ".//button[text()='Edit']").click()
        page.one(".turn form textarea").send_keys(Keys.ESCAPE)
        assert page.turns == ["one", "one", "two more", "two more"]
        page.find(".turn.user")[0].find_element(By.XPATH, ".//button[text()='Edit']").click()
        page.one(".turn form textarea").send_keys("!", Keys.SHIFT, Keys.ENTER, Keys.NULL, "?", Keys.ENTER)
        page.until(lambda: len(asked) == 5)
        page.wait()
        assert asked[-1] == [("user", "one!\n?")]


def test_conversations_are_listed_opened_and_deleted(driver):
    with opened(driver, echo()) as page:
        page.ask("first")
        page.press(Keys.ALT, "n")
        assert page.turns == []
        page.ask("second")
        page.one("#menu").click()
        assert [link.text for link in page.find("#chats a")] == ["second", "first"]
        page.find("#chats a")[1].click()
        page.until(lambda: page.turns == ["first", "first"])
        page.driver.back()
        page.until(lambda: page.turns == ["second", "second"])
        page.find("#chats button")[0].click()
        page.driver.switch_to.alert.accept()
        page.until(lambda: page.turns == [])
        assert [link.text for link in page.find("#chats a")] == ["first"]
        script = "localStorage.setItem('elutq.chat.bad', arguments[0])"
        for bad in ("{", "null", "[]", '{"messages": 5}', '{"messages": [null, {"role": "x"}], "system": {}}'):
            page.driver.execute_script(script, bad)  # what others have written breaks nothing
            page.driver.refresh()
            page.until(lambda: "first" in [link.text for link in page.find("#chats a")])


def test_a_server_that_wants_its_key_is_given_it_once(driver, chat_model):
    with serving(chat_model, api_key="sécret") as client, listening(client.app) as address:
        page = Page(driver, address)
        page.until(lambda: page.one("#ask-key").is_displayed())
        page.one("#ask-key input").send_keys("guess", Keys.ENTER)
        page.until(lambda: "does not take this key" in page.one("#key-reason").text)
        page.one("#ask-key input").send_keys("sécret", Keys.ENTER)
        page.until(lambda: page.one("#model").text == "tested")
        driver.refresh()
        page.until(lambda: page.one("#model").text == "tested")
        assert not page.one("#ask-key").is_displayed()
        driver.execute_script("localStorage.clear()")
        driver.get("about:blank")


def test_a_model_without_a_chat_template_continues_the_text(driver, novels_2bit):
    with serving(novels_2bit) as client, opened(driver, client.app) as page:
        page.until(lambda: "no chat template" in page.one("#note").text)
        page.one("#open-settings").click()
        page.one("[name=max_tokens]").send_keys("8")
        page.one("[name=temperature]").send_keys("0")
        page.one("#settings .primary").click()
        page.ask("It was a dark night, and")
        page.press(Keys.ENTER)  # nothing: it goes on
        page.until(lambda: len(page.turns) == 3)
        page.wait()
        begun = client.complete("It was a dark night, and").json["choices"][0]["text"]
        goes_on = client.complete("It was a dark night, and" + begun).json["choices"][0]["text"]
        assert [turn.split() for turn in page.turns[1:]] == [begun.split(), goes_on.split()]


def test_what_goes_wrong_stands_where_the_answer_would(driver, chat_model):
    with serving(chat_model, ctx_size=32) as client, listening(client.app) as address:
        page = Page(driver, address)
        page.until(lambda: page.one("#model").text == "tested")
        page.ask("word " * 100)
        assert "maximum context length is 32 tokens" in page.one(".turn.assistant .error").text
        driver.execute_script("localStorage.clear()")
        driver.get("about:blank")
