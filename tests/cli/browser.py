"""A headless browser and servers that it can reach, for tests of the page."""

import shutil
import threading
from contextlib import contextmanager

import pytest
import uvicorn

from elutq_cli.server.listener import listen

SECONDS = 60
"""Longer than any step of a page takes, however loaded the machine is."""


@contextmanager
def chromium(*arguments):
    """Yield Selenium's driver of a headless Chromium with a profile of its own; skip where one is missing."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = programs[0]
    # In a container there is no room for the sandbox of the browser, whose pages are our own.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options, selenium.ChromeService(programs[1]))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def listening(app):
    """Yield the address at which an ASGI application answers."""
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()
