"""The inspector over a hundred thousand memories: a page of them at a time, and everything at once in numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from crowd import fill, text
from inspector_world import chromium, visiting
from playwright.sync_api import Page, expect
from server_world import running

from agentmem import MemoryLLM

N = 100_000
SECONDS = 10.0
"""Far above what anything here takes (``python -m benchmarks.inspector``), for machines that do much else."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    store = tmp_path_factory.mktemp("many") / "memory.db"
    with MemoryLLM(store=store) as llm:
        fill(llm, "me", N)
        with running(llm) as server, chromium() as browser, visiting(browser, server.url) as page:
            yield page


def within(seconds: float, work: Callable[[], None]) -> None:
    begun = time.monotonic()
    work()
    assert time.monotonic() - begun < seconds


def texts(page: Page) -> list[str]:
    expect(page.locator("table.memories[aria-busy=false]")).to_be_visible()
    return page.locator("td.c-text .memory-link").all_inner_texts()


def elements(page: Page) -> int:
    return int(page.evaluate("document.querySelectorAll('*').length"))


def test_pages_go_forth_and_back(page: Page) -> None:
    expect(page.get_by_text("1–50 of 100,000")).to_be_visible()
    assert texts(page) == [text(n) for n in range(N, N - 50, -1)]
    few = elements(page)
    for first in (51, 101):
        page.get_by_role("button", name="Next").click()
        expect(page.get_by_text(f"{first}–{first + 49} of 100,000")).to_be_visible()
    assert texts(page) == [text(n) for n in range(N - 100, N - 150, -1)]
    assert elements(page) < few + 1500  # rows do not pile up
    page.get_by_role("button", name="Previous").click()
    assert texts(page) == [text(n) for n in range(N - 50, N - 100, -1)]
    page.get_by_role("button", name="Previous").click()
    expect(page.get_by_text("1–50 of 100,000")).to_be_visible()
    expect(page.get_by_role("button", name="Previous")).to_be_disabled()


@pytest.mark.parametrize("order", ["oldest first", "most uses", "lowest frequency (goes first)", "most KV", "longest"])
def test_every_order_comes_soon(page: Page, order: str) -> None:
    def look() -> None:
        page.get_by_label("Order").select_option(order)
        assert len(texts(page)) == 50

    within(SECONDS, look)
    if order == "oldest first":
        assert texts(page)[0] == text(1)
    if order == "most uses":
        assert set(page.locator("td.c-uses").all_inner_texts()) == {"9"}


def test_filters_count_what_they_leave(page: Page) -> None:
    page.get_by_role("button", name="Filters", exact=True).click()
    page.get_by_label("Uses, at least", exact=True).fill("5")
    page.keyboard.press("Tab")
    expect(page.get_by_text("5,000 memories match")).to_be_visible()
    page.get_by_role("button", name="Remove the filter Uses").click()
    expect(page.get_by_text("100,000 memories", exact=True)).to_be_visible()
    page.get_by_role("button", name="Filters", exact=True).click()


def test_one_among_all_is_found(page: Page) -> None:
    def search() -> None:
        page.get_by_label("Search by meaning and words").fill("parcel 31415")
        page.keyboard.press("Enter")
        expect(page.get_by_role("columnheader", name="Score")).to_be_visible()
        assert "parcel 31415 of" in texts(page)[0]

    within(SECONDS, search)
    page.get_by_label("Search by meaning and words").fill("")
    expect(page.get_by_role("columnheader", name="Score")).to_have_count(0)


def test_the_numbers_come_soon(page: Page) -> None:
    def look() -> None:
        page.get_by_role("link", name="Overview").click()
        expect(page.locator(".tile").first).to_contain_text("100,000")
        expect(page.locator("canvas")).to_have_count(1)

    within(SECONDS, look)
    spread = page.locator(".spread tbody")
    expect(spread.locator("th")).to_have_text(["0", "1", "2–3", "4–7", "8–15"])
    expect(spread.locator("td:last-child")).to_have_text(["91,000", "1,000", "2,000", "4,000", "2,000"])
    page.get_by_role("link", name="Memories").click()


def test_a_preview_of_much_names_little_of_it(page: Page) -> None:
    page.get_by_role("button", name="Prune…").click()
    page.get_by_label("Keep at most so many memories").fill("1000")
    page.get_by_role("button", name="Preview").click()
    dialog = page.get_by_role("dialog", name="Prune")
    expect(dialog.locator(".prune-sum")).to_contain_text("Of 99,000 memories", timeout=60_000)
    expect(dialog.locator(".pruned-text")).to_have_count(10)
    expect(dialog).to_contain_text("and 98,990 more.")
    page.keyboard.press("Escape")
    expect(page.get_by_text("100,000 memories", exact=True)).to_be_visible()


def test_a_last_page_that_empties_gives_way_to_the_one_before(page: Page) -> None:
    page.get_by_role("button", name="Filters", exact=True).click()
    tagged = page.get_by_label("Tag", exact=True)
    page.evaluate(
        """async () => {
            for (let n = 1; n <= 51; n += 1) {
                const body = JSON.stringify({tags: ["few"]});
                const headers = {"Content-Type": "application/json"};
                await fetch(`v1/memories/m${n}`, {method: "PATCH", headers, body});
            }
        }"""
    )
    tagged.fill("few")
    page.keyboard.press("Tab")
    expect(page.get_by_text("1–50 of 51")).to_be_visible()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text("51–51 of 51")).to_be_visible()
    page.get_by_role("button", name=f"Forget: {texts(page)[0]}"[:60]).click()
    page.get_by_role("dialog").get_by_role("button", name="Forget it").click()
    expect(page.get_by_text("1–50 of 50")).to_be_visible()
    assert len(texts(page)) == 50
