"""The pictures of docs/inspector.md, from a real browser: made at every run, kept when AGENTMEM_PICTURES is set."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from inspector_world import chromium, visiting
from playwright.sync_api import Browser, Page, expect
from server_world import Running, running

from agentmem import MemoryLLM
from agentmem.store.inputs import now_us
from agentmem.store.schema import EventRow, MemoryRow, MemoryUsage

DOCS = Path(__file__).parents[2] / "docs"
DAY_US = 86_400_000_000
TOLD = (
    "My dog is called Biscuit.",
    "I live in Oslo.",
    "My sister is called Vera.",
    "My cat is called Luna.",
)
NOTED = {
    "The boiler was serviced in March; the next visit is due in a year.": "home",
    "Biscuit is afraid of thunder and hides under the stairs.": "pets",
    "Vera prefers the early train, because the late one is always full.": "family",
    "The spare key is with the neighbours on the second floor.": "home",
    "Luna eats only in the evening, and never from the blue bowl.": "pets",
    "The library card expires at the end of the year.": "",
    "Tuesday's rehearsal was moved to the small hall.": "choir",
}
ASKED = (
    "What is my dog called?",
    "Where do I live?",
    "What is my cat called?",
    "Tell me what my dog is called.",
    "What is my sister called?",
    "Do you know what my dog is called?",
    "In which city do I live?",
    "My dog ran away. What is my dog called?",
    "What is the cat called?",
    "And what is my dog called?",
)
DESK = {"viewport": {"width": 1180, "height": 760}}
TALL = {"viewport": {"width": 1180, "height": 850}}
PHONE = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Some weeks of a dialogue, told and asked just now and then dated back."""
    with MemoryLLM(store=tmp_path_factory.mktemp("pictures") / "memory.db", max_new_tokens=32) as llm:
        mine = llm.memories(user="me")
        for text, tag in NOTED.items():
            mine.add(text, tags=[tag] if tag else [])
        for text in TOLD:
            llm.conversation(user="me", session="first").chat(text)
        assert llm.flush(60)
        mine.prune(max_bytes=180_000)
        mine.delete([memory.id for memory in mine.list(sort="created_at") if "library" in memory.text])
        for asked in ASKED:
            reply = llm.conversation(user="me").chat(asked, remember=False)
            uses = [(read.memory.id, read.attention) for read in reply.memories]
            llm.store.scope(mine.scope).record_uses(uses, turn=asked)
        mine.pin(mine.list(sort="created_at", limit=1)[0].id)
        _date_back(llm)
        with running(llm) as server:
            yield server


def _date_back(llm: MemoryLLM) -> None:
    """As if a day or two had passed between one memory and the next."""
    llm.store.flush_uses()
    now = now_us()
    with llm.store.write() as connection:
        ids = connection.execute(sa.select(MemoryRow.id, MemoryRow.uid).order_by(MemoryRow.id)).all()
        n = len(ids)
        for place, (key, uid) in enumerate(ids):
            at = now - (n - place) * 2 * DAY_US
            connection.execute(sa.update(MemoryRow).where(MemoryRow.id == key).values(created_us=at))
            events = sa.update(EventRow).where(EventRow.memory_uid == uid)
            connection.execute(events.where(EventRow.action.in_(["added", "kv_attached"])).values(at_us=at))
            connection.execute(events.where(EventRow.action == "kv_dropped").values(at_us=now - 9 * DAY_US))
            reads = connection.scalar(sa.select(MemoryUsage.recent_reads).where(MemoryUsage.memory_id == key)) or []
            dated = [[now - (len(reads) - i) * DAY_US // 3, share] for i, (_, share) in enumerate(reads)]
            values = {"recent_reads": dated, "last_us": dated[-1][0] if dated else None}
            connection.execute(sa.update(MemoryUsage).where(MemoryUsage.memory_id == key).values(values))
        gone = sa.update(EventRow).where(EventRow.memory_uid.not_in([uid for _, uid in ids]))
        connection.execute(gone.where(EventRow.action == "added").values(at_us=now - 20 * DAY_US))
        connection.execute(gone.where(EventRow.action == "deleted").values(at_us=now - 5 * DAY_US))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def keep(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Where a picture goes."""
    folder = DOCS / "images" if os.environ.get("AGENTMEM_PICTURES") else tmp_path
    return folder / f"{request.node.name.removeprefix('test_').replace('_', '-')}.png"


def take(page: Page, path: Path, **options: Any) -> None:
    page.wait_for_timeout(300)  # bars grow for a moment
    page.screenshot(path=path, **options)
    assert path.stat().st_size > 10_000


def ask_about_the_dog(page: Page) -> None:
    page.get_by_label("Message").fill("What is my dog called?")
    page.keyboard.press("Enter")
    expect(page.locator(".said")).to_have_text("Your dog is called Biscuit.", timeout=30_000)
    expect(page.locator(".word")).to_have_count(6)


def test_inspector_memories(browser: Browser, server: Running, keep: Path) -> None:
    with visiting(browser, server.url, **DESK) as page:
        expect(page.locator(".sparkline").first).to_be_visible()
        expect(page.locator(".tier.cold").first).to_be_visible()
        take(page, keep)


def test_inspector_memory(browser: Browser, server: Running, keep: Path) -> None:
    with visiting(browser, server.url, color_scheme="dark", **DESK) as page:
        page.get_by_role("button", name=TOLD[0], exact=True).click()
        expect(page.locator(".reads li").first).to_be_visible()
        take(page, keep)


def test_inspector_chat(browser: Browser, server: Running, keep: Path) -> None:
    with visiting(browser, server.url, view="chat", **DESK) as page:
        ask_about_the_dog(page)
        page.locator(".word", has_text="Biscuit").hover()
        expect(page.locator(".top-read")).to_be_visible()
        take(page, keep)


def test_inspector_overview(browser: Browser, server: Running, keep: Path) -> None:
    with visiting(browser, server.url, view="overview", color_scheme="dark", **TALL) as page:
        expect(page.locator("canvas")).to_have_count(2)
        take(page, keep)


def test_inspector_phone(browser: Browser, server: Running, keep: Path) -> None:
    with visiting(browser, server.url, view="chat", **PHONE) as page:
        ask_about_the_dog(page)
        page.locator(".word", has_text="Biscuit").tap()
        expect(page.locator(".top-read")).to_be_visible()
        page.evaluate("scrollTo(0, 0)")
        take(page, keep)


def test_the_documentation_shows_them() -> None:
    named = set(re.findall(r"!\[[^\]]+\]\(images/([\w-]+\.png)\)", (DOCS / "inspector.md").read_text(encoding="utf-8")))
    kept = {path.name for path in (DOCS / "images").iterdir()}
    assert named == kept == {f"inspector-{name}.png" for name in ("memories", "memory", "chat", "overview", "phone")}
    assert all((DOCS / "images" / name).stat().st_size < 200_000 for name in kept)
