"""The inspector in a browser: memories can be looked at, searched, corrected, pinned, pruned and forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from inspector_world import accessibility, chromium, overflow, visiting
from playwright.sync_api import Browser, Page, expect
from server_world import Running

from agentmem import Memories, MemoryLLM

TEXTS = ["My dog is called Biscuit.", "I live in Oslo.", "I had soup today.", "My train left at nine."]
PHONE = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    """A user of its own for each test."""
    return str(request.node.name)[:60]


@pytest.fixture
def mine(llm: MemoryLLM, user: str) -> Memories:
    memories = llm.memories(user=user)
    for text in TEXTS:
        memories.add(text)
    assert llm.flush(60)
    return memories


@pytest.fixture
def page(browser: Browser, server: Running, mine: Memories, user: str) -> Iterator[Page]:
    with visiting(browser, server.url) as page:
        look_at(page, user)
        yield page


def look_at(page: Page, user: str) -> None:
    page.get_by_role("button", name="Whose memories").click()
    page.get_by_label("User").fill(user)
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("button", name=f"Whose memories: {user}")).to_be_visible()


def shown(page: Page) -> list[str]:
    """Texts of the table, in order, once it is still."""
    expect(page.locator("table.memories[aria-busy=false]")).to_be_visible()
    return page.locator("td.c-text .memory-link").all_inner_texts()


def test_memories_are_listed_newest_first(page: Page) -> None:
    expect(page.get_by_text("4 memories", exact=True)).to_be_visible()
    assert shown(page) == TEXTS[::-1]
    first = page.get_by_role("row").nth(1)
    for text in ("user", "just now", "warm", "KiB"):
        expect(first).to_contain_text(text)


def test_a_column_sorts_both_ways(page: Page, mine: Memories) -> None:
    expect(page.locator("th[aria-sort=descending]")).to_have_text("Written↓")
    page.get_by_role("button", name="Written").click()
    expect(page.locator("th[aria-sort=ascending]")).to_have_text("Written↑")
    assert shown(page) == TEXTS
    page.get_by_label("Order").select_option("most KV")
    expect(page.locator("th[aria-sort=descending]")).to_have_text("KV↓")
    assert shown(page) == [memory.text for memory in mine.list(sort="-kv_bytes")]


def test_search_shows_why_it_was_found(page: Page) -> None:
    page.get_by_label("Search by meaning and words").fill("what is my dog called?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("columnheader", name="Score")).to_be_visible()
    expect(page.get_by_label("Order")).to_have_value("")
    assert shown(page)[0] == TEXTS[0]
    page.get_by_role("button", name=TEXTS[0], exact=True).click()
    dialog = page.get_by_role("dialog", name="Memory")
    expect(dialog.get_by_role("heading", name="Why it was found")).to_be_visible()
    expect(dialog).to_contain_text("By words (BM25)")
    page.keyboard.press("Escape")
    page.get_by_label("Search by meaning and words").fill("")
    expect(page.get_by_role("columnheader", name="Score")).to_have_count(0)
    expect(page.get_by_label("Order")).to_have_value("-created_at")
    assert shown(page) == TEXTS[::-1]


def test_filters_narrow_and_are_taken_back(page: Page, mine: Memories) -> None:
    mine.add("Okay.", role="assistant", tags=["short"], session="monday")
    mine.pin(mine.list(sort="created_at", limit=1)[0].id)
    tomorrow = (datetime.now(UTC) + timedelta(days=2)).date().isoformat()
    page.get_by_role("button", name="Filters", exact=True).click()
    for label, value, texts in (
        ("Role", "assistant", ["Okay."]),
        ("Pinned", "pinned", TEXTS[:1]),
        ("Tag", "short", ["Okay."]),
        ("Dialogue", "monday", ["Okay."]),
        ("Written from", tomorrow, []),
        ("Uses, at least", "1", []),
    ):
        if label in ("Role", "Pinned"):
            page.get_by_role("combobox", name=label, exact=True).select_option(value)
        else:
            page.get_by_label(label, exact=True).fill(value)
            page.keyboard.press("Tab")
        chip = page.get_by_role("button", name=f"Remove the filter {label}")
        expect(chip).to_be_visible()
        if texts:
            expect(page.locator("td.c-text .memory-link")).to_have_text(texts)
            expect(page.get_by_text("1 memory matches")).to_be_visible()
        else:
            expect(page.get_by_text("No memory passes the filters")).to_be_visible()
        chip.click()
        expect(page.locator("td.c-text .memory-link")).to_have_count(5)
    page.get_by_label("Written until", exact=True).fill("2020-01-31")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Remove them").click()
    expect(page.locator("td.c-text .memory-link")).to_have_count(5)


def test_a_pin_holds(page: Page, mine: Memories) -> None:
    pin = page.get_by_role("button", name=f"Pin: {TEXTS[1]}")
    pin.click()
    expect(pin).to_have_attribute("aria-pressed", "true")
    assert [memory.text for memory in mine.list(pinned=True)] == TEXTS[1:2]
    pin.click()
    expect(pin).to_have_attribute("aria-pressed", "false")
    assert mine.list(pinned=True) == []


def test_a_text_is_corrected_and_its_history_tells(page: Page, mine: Memories) -> None:
    page.get_by_role("button", name=TEXTS[0], exact=True).click()
    dialog = page.get_by_role("dialog", name="Memory")
    dialog.get_by_label("Text").fill("My dog is called Rex.")
    dialog.get_by_label("Tags").fill("pet, home")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.locator(".history")).to_contain_text("changed: text, tags")
    dialog.get_by_role("button", name="Close").click()
    expect(page.get_by_role("button", name="My dog is called Rex.", exact=True)).to_be_visible()
    memory = mine.list(sort="created_at", limit=1)[0]
    assert (memory.text, memory.tags) == ("My dog is called Rex.", ("home", "pet"))


def test_a_text_that_cannot_be_is_refused_and_says_why(
    browser: Browser, server: Running, mine: Memories, user: str
) -> None:
    with visiting(browser, server.url, expected=("400",)) as page:
        look_at(page, user)
        page.get_by_role("button", name=TEXTS[0], exact=True).click()
        dialog = page.get_by_role("dialog", name="Memory")
        dialog.get_by_label("Text").fill("A long story. " * 300)
        dialog.get_by_role("button", name="Save").click()
        expect(dialog.get_by_role("alert")).to_contain_text("a memory is one")
    assert mine.list(sort="created_at", limit=1)[0].text == TEXTS[0]


def test_forgetting_asks_first(page: Page, mine: Memories) -> None:
    forget = page.get_by_role("button", name=f"Forget: {TEXTS[2]}")
    forget.click()
    question = page.get_by_role("dialog", name="Forget this memory?")
    expect(question).to_contain_text(TEXTS[2])
    expect(question.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(question).to_have_count(0)
    expect(forget).to_be_focused()
    assert len(mine) == 4
    forget.click()
    question.get_by_role("button", name="Forget it").click()
    expect(page.locator("td.c-text .memory-link")).to_have_text([TEXTS[3], TEXTS[1], TEXTS[0]])
    expect(page.get_by_text("3 memories", exact=True)).to_be_visible()
    assert len(mine) == 3


def test_pruning_shows_what_would_go_and_then_does_it(page: Page, mine: Memories) -> None:
    page.get_by_role("button", name="Prune…").click()
    dialog = page.get_by_role("dialog", name="Prune")
    dialog.get_by_role("button", name="Preview").click()
    expect(dialog.get_by_role("alert")).to_have_text("Give at least one limit.")
    dialog.get_by_label("Keep at most so many memories").fill("1")
    dialog.get_by_role("button", name="Preview").click()
    expect(dialog).to_contain_text("Of 3 memories, text or KV would go")
    expect(dialog.locator(".pruned-text")).to_have_text(TEXTS[:3])
    assert len(mine) == 4
    dialog.get_by_role("button", name="Prune 3").click()
    expect(page.locator("td.c-text .memory-link")).to_have_text(TEXTS[3:])
    expect(page.get_by_role("status").filter(has_text="Pruned 3.")).to_be_visible()
    assert len(mine) == 1
    page.get_by_role("button", name="Prune…").click()
    dialog.get_by_label("Keep at most so many memories").fill("1")
    dialog.get_by_role("button", name="Preview").click()
    expect(dialog).to_contain_text("nothing would go")


def test_the_overview_counts_what_is_there_and_what_went(page: Page, mine: Memories) -> None:
    mine.pin(mine.list(sort="created_at", limit=1)[0].id)
    mine.delete(mine.list(limit=1)[0].id)
    mine.prune(max_bytes=0)
    page.get_by_role("link", name="Overview").click()
    tiles = page.locator(".tile")
    expect(tiles.nth(0)).to_have_text("Memories31 pinned")
    kept = mine.list(pinned=True)[0].kv_bytes
    assert kept == mine.stats().kv_bytes > 0  # the pinned one keeps its KV
    expect(tiles.nth(1)).to_contain_text(f"{round(kept / 1024)}\u2009KiB")
    expect(page.locator("canvas")).to_have_count(2)
    assert page.locator("canvas").first.evaluate("c => c.width > 100 && c.height > 100")
    gone = page.locator("section.chart", has=page.get_by_role("heading", name="What went"))
    gone.get_by_text("Numbers").click()
    cells = [[int(cell) for cell in line.split("\t")[1:]] for line in gone.locator("tbody tr").all_inner_texts()]
    evicted, deleted, cold = (sum(column) for column in zip(*cells, strict=True))
    assert (evicted, deleted) == (0, 1)
    assert cold == 2
    expect(page.locator("dl.key")).to_contain_text("1 (33\u2009%)")
    expect(page.locator(".spread tbody th")).to_have_text(["0"])
    expect(page.locator(".spread tbody td:last-child")).to_have_text(["3"])


def test_nothing_yet(browser: Browser, server: Running, user: str) -> None:
    with visiting(browser, server.url) as page:
        look_at(page, user)
        expect(page.get_by_text("Nothing is remembered yet")).to_be_visible()
        page.get_by_role("link", name="Overview").click()
        expect(page.get_by_text("Numbers and charts follow")).to_be_visible()
        page.get_by_role("link", name="Memories").click()
        page.get_by_role("link", name="Begin one").click()
        expect(page.get_by_role("heading", name="Chat")).to_be_visible()


def test_who_is_looked_at_is_kept_in_this_tab(page: Page, user: str) -> None:
    page.reload()
    expect(page.get_by_role("button", name=f"Whose memories: {user}")).to_be_visible()
    assert shown(page) == TEXTS[::-1]
    look_at(page, "Zoë 火 of nowhere")
    expect(page.get_by_text("Nothing is remembered yet")).to_be_visible()


HOSTILE = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>${1+1} {{7*7}}'


def test_a_memory_is_text_and_never_html(page: Page, mine: Memories) -> None:
    mine.add(HOSTILE, tags=["<b>tag</b>"], session="<i>session</i>")
    page.reload()
    expect(page.get_by_role("button", name=HOSTILE, exact=True)).to_be_visible()
    expect(page.locator(".tag")).to_have_text("<b>tag</b>")
    page.get_by_role("button", name=HOSTILE, exact=True).click()
    dialog = page.get_by_role("dialog", name="Memory")
    expect(dialog.get_by_label("Text")).to_have_value(HOSTILE)
    expect(dialog).to_contain_text("<i>session</i>")
    dialog.get_by_role("button", name="Forget…").click()
    expect(page.get_by_role("dialog", name="Forget this memory?")).to_contain_text(HOSTILE)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert page.locator("main img, main script, main b, main i, dialog img").count() == 0
    assert page.title() == "Memories · agentmem"


def test_light_and_dark(browser: Browser, server: Running) -> None:
    with visiting(browser, server.url, color_scheme="dark") as page:
        ground = "getComputedStyle(document.body).backgroundColor"
        button = page.get_by_role("button", name="Use light colours")
        expect(button).to_be_visible()
        dark = page.evaluate(ground)
        button.click()
        light = page.evaluate(ground)
        assert sum(map(int, dark[4:-1].split(","))) < 150 < 600 < sum(map(int, light[4:-1].split(",")))
        page.reload()
        expect(page.get_by_role("button", name="Use dark colours")).to_be_visible()
        assert page.evaluate(ground) == light


def test_the_keyboard_reaches_everything(page: Page) -> None:
    shown(page)
    page.reload()
    shown(page)
    names = []
    while f"Forget: {TEXTS[3]}" not in names:
        assert len(names) < 30, names
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                "(document.activeElement.ariaLabel || document.activeElement.labels?.[0]?.textContent"
                " || document.activeElement.textContent).trim()"
            )
        )
        outlined = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        assert page.evaluate(f"document.activeElement.matches(':focus-visible') && {outlined}"), names
    assert names[:4] == ["Skip to the content", "Memories", "Chat", "Overview"]
    for name in ("Prune…", "Search by meaning and words", "Written↓", TEXTS[3], f"Pin: {TEXTS[3]}"):
        assert name in names
    page.get_by_role("button", name=TEXTS[3], exact=True).press("Enter")
    dialog = page.get_by_role("dialog", name="Memory")
    expect(dialog.get_by_label("Text")).to_be_visible()
    for _ in range(12):  # the focus stays inside
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("button", name=TEXTS[3], exact=True)).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong(browser: Browser, server: Running, mine: Memories, user: str, scheme: str) -> None:
    mine.add("Okay.", role="assistant", tags=["short"])
    mine.prune(max_bytes=0)
    with visiting(browser, server.url, color_scheme=scheme, reduced_motion="reduce") as page:
        look_at(page, user)
        shown(page)
        page.get_by_role("button", name="Filters", exact=True).click()
        page.get_by_role("combobox", name="Role", exact=True).select_option("user")
        expect(page.get_by_text("4 memories match")).to_be_visible()
        assert accessibility(page) == []
        page.get_by_role("button", name=TEXTS[3], exact=True).click()
        expect(page.locator(".history")).to_be_visible()
        assert accessibility(page) == []
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Prune…").click()
        page.get_by_label("Keep at most so many memories").fill("1")
        page.get_by_role("button", name="Preview").click()
        expect(page.locator(".prune-sum")).to_be_visible()
        assert accessibility(page) == []
        page.keyboard.press("Escape")
        page.get_by_role("link", name="Overview").click()
        expect(page.locator("canvas")).to_have_count(2)
        assert accessibility(page) == []


def test_a_phone_needs_no_sideways_scrolling(browser: Browser, server: Running, mine: Memories, user: str) -> None:
    mine.add("averylongwordwithoutanyplacetobreak" * 8, tags=["t" * 60])
    mine.prune(max_bytes=0)
    with visiting(browser, server.url, **PHONE) as page:
        look_at(page, user)
        shown(page)
        assert overflow(page) <= 0
        page.get_by_role("button", name="Filters", exact=True).click()
        assert overflow(page) <= 0
        page.get_by_role("button", name=TEXTS[3], exact=True).click()
        expect(page.locator(".history")).to_be_visible()
        assert page.locator("dialog").evaluate("d => d.scrollWidth - d.clientWidth") <= 0
        page.keyboard.press("Escape")
        for view in ("Chat", "Overview"):
            page.get_by_role("link", name=view).click()
            expect(page.get_by_role("heading", name=view)).to_be_visible()
            assert overflow(page) <= 0
