"""The page in a headless Chromium: chats with a model, conversations, keys, and what goes wrong."""

import pytest
from asgi import serving
from browser import listening
from page_driver import Page, echo, opened

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys


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
    """Of as many tokens as take a while: the few that arrive together have no speed."""
    with serving(chat_model) as client, opened(driver, client.app) as page:
        page.one("#open-settings").click()
        page.one("[name=max_tokens]").send_keys("300")
        page.one("[name=temperature]").send_keys("0")
        page.one("[name=system]").send_keys("Be brief.")
        page.one("#settings .primary").click()
        page.ask("Who are you?")
        found = page.facts.split(" · ")
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
        answer = client.chat(messages, max_tokens=300).json
        left = 512 - answer["usage"]["total_tokens"]
        assert found[0].endswith(" tokens/s")
        assert found[1] == "300 tokens"
        assert found[3:] == [f"{left} left of the context", "cut off at the limit of tokens"]
        assert page.one("#log > details").text == "System prompt"
        assert page.turns[1].split() == answer["choices"][0]["message"]["content"].split()


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
