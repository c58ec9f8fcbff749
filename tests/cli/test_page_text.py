"""What becomes of a model's text on the page: Markdown is shown, markup that would do harm is text."""

import re

import pytest
from browser import listening
from page_driver import Page, echo

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

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
