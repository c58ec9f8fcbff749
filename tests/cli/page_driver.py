"""The page as a person uses it, and a model that says what it is asked."""

import asyncio
import json
from contextlib import contextmanager

import pytest
from browser import SECONDS, listening
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
