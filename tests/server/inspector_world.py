"""A real browser in front of a real server: pages that may complain of nothing, and ask nobody else for anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text(encoding="utf-8")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 20_000


def find_browser() -> str:
    """The browser's program; a test that needs it fails without, and says what to do."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    assert found, "the tests of the inspector need Chromium: install it, on Debian with `apt-get install chromium`"
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """Without a sandbox: it cannot have one as root, and it visits this machine only."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visiting(
    browser: Browser, url: str, *, view: str = "memories", expected: tuple[str, ...] = (), **options: Any
) -> Iterator[Page]:
    """The page, opened by a fresh visitor. Afterwards: no error was told, and no other host was asked.

    ``expected`` are parts of messages that the browser itself writes about answers of 400 and more.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}} | options)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    complaints: list[str] = []
    hosts: set[str] = set()

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in expected):
            complaints.append(message.text)

    page.on("console", heard)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    try:
        page.goto(f"{url}/#{view}")
        yield page
        assert complaints == []
        assert hosts == {urlsplit(url).netloc}
    finally:
        context.close()


def accessibility(page: Page) -> list[str]:
    """What axe-core finds wrong, by rule and place, once the view is there."""
    page.locator("h1:visible").first.wait_for()
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than the screen, once the view is there."""
    page.locator("h1:visible").first.wait_for()
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
