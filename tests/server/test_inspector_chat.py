"""The inspector's chat: answers stream, show what they attended to, and each word shows which memory it looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from inspector_world import accessibility, chromium, overflow, visiting
from playwright.sync_api import Browser, Page, expect
from server_world import Running, running

from agentmem import MemoryLLM

FACTS = ("My dog is called Biscuit.", "I live in Oslo.", "My sister is called Vera.")
HOSTILE = "<img src=x onerror=\"document.title='owned'\"> my dog is called Biscuit"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module", autouse=True)
def remembered(llm: MemoryLLM) -> None:
    """Of the user that is meant where nobody is named."""
    for fact in FACTS:
        llm.conversation(user="me", session="before").chat(fact)
    assert llm.flush(60)


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    with visiting(browser, server.url, view="chat") as page:
        yield page


def say(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=30_000)


def shares(page: Page) -> dict[str, float]:
    """Memories beside the last answer, by text, with their shares in percent."""
    read = page.locator(".answer").last.locator(".read li")
    return {
        item.locator(".memory-link").inner_text(): float(item.locator(".share-number").inner_text().rstrip("\u2009%"))
        for item in read.all()
    }


def test_an_answer_shows_what_it_read_and_a_word_where_it_looked(page: Page) -> None:
    say(page, "What is my dog called?")
    expect(page.locator(".said")).to_have_text("Your dog is called Biscuit.")
    mean = shares(page)
    assert FACTS[0] in mean
    assert list(mean.values()) == sorted(mean.values(), reverse=True)
    assert 0 < sum(mean.values()) < 100
    word = page.locator(".word", has_text="Biscuit")
    word.hover()
    expect(page.locator(".read-title")).to_have_text("“Biscuit” looked at")
    expect(page.locator(".top-read .memory-link")).to_contain_text("Biscuit")
    over_word = shares(page)
    assert over_word[FACTS[0]] > 2 * max(share for text, share in over_word.items() if "dog" not in text)
    assert over_word != mean
    page.get_by_label("Message").hover()
    expect(page.locator(".read-title")).to_contain_text("Read ")
    assert shares(page) == mean


def test_the_shares_are_those_that_the_server_measured(page: Page, server: Running) -> None:
    with page.expect_response(lambda answer: answer.url.endswith("/v1/responses")) as told:
        say(page, "Where do I live?")
    done = re.findall(r"^data: (.*)$", told.value.text(), re.MULTILINE)[-1]
    read = page.evaluate("text => JSON.parse(text).response", done)
    text, extension = read["output"][0]["content"][0]["text"], read["agentmem"]
    at = text.index("Oslo")
    tokens = [token for token in extension["tokens"] if token["start"] < at + 4 and token["end"] > at]
    page.locator(".word", has_text="Oslo").hover()
    expect(page.locator(".read-title")).to_have_text("“Oslo” looked at")
    over_word = shares(page)
    for place, memory in enumerate(extension["memories"]):
        mean = 100 * sum(token["attention"][str(place)] for token in tokens) / len(tokens)
        assert over_word[memory["text"]] == pytest.approx(mean, abs=0.51)


def test_the_arrow_keys_go_from_word_to_word(page: Page) -> None:
    say(page, "What is my dog called?")
    words = page.locator(".word")
    count = words.count()
    words.first.focus()
    expect(words.first).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowRight")
    expect(words.nth(1)).to_be_focused()
    expect(page.locator(".read-title")).to_contain_text(f"“{words.nth(1).inner_text()}” looked at")
    page.keyboard.press("End")
    expect(words.nth(count - 1)).to_be_focused()
    page.keyboard.press("ArrowRight")  # there is none
    expect(words.nth(count - 1)).to_be_focused()
    page.keyboard.press("Home")
    expect(words.first).to_be_focused()
    assert page.locator(".word[tabindex='0']").count() == 1
    page.keyboard.press("Tab")
    expect(page.locator(".read .memory-link").first).to_be_focused()


def test_the_answer_comes_piece_by_piece(page: Page) -> None:
    page.evaluate(
        """() => {
            window.seen = [];
            const look = () => {
                const said = document.querySelector(".said")?.textContent;
                if (said && said !== window.seen.at(-1)) window.seen.push(said);
            };
            new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
        }"""
    )
    say(page, "What is my dog called?")
    seen = page.evaluate("window.seen")
    assert len(seen) > 3
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))


def test_the_dialogue_goes_on_and_begins_anew(page: Page, server: Running) -> None:
    bodies = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
    say(page, "Hello.")
    say(page, "What is my dog called?")
    expect(page.locator(".answer")).to_have_count(2)
    page.get_by_role("button", name="New dialogue").click()
    expect(page.get_by_text("Tell it something, then ask about it")).to_be_visible()
    expect(page.get_by_label("Message")).to_be_focused()
    say(page, "Where do I live?")
    previous = [body["previous_response_id"] for body in bodies]
    assert previous[0] is None
    assert previous[1].startswith("resp_")
    assert previous[2] is None


def test_an_answer_that_read_nothing_says_so(browser: Browser, server: Running) -> None:
    with visiting(browser, server.url, view="chat") as page:
        page.get_by_role("button", name="Whose memories").click()
        page.get_by_label("User").fill("newcomer")
        page.get_by_role("button", name="Show").click()
        say(page, "Hello.")
        expect(page.locator(".read")).to_contain_text("No memory was read")
        expect(page.locator(".word")).to_have_count(0)


def test_a_memory_beside_an_answer_opens(page: Page) -> None:
    say(page, "What is my sister called?")
    page.locator(".read .memory-link", has_text=FACTS[2]).first.click()
    dialog = page.get_by_role("dialog", name="Memory")
    expect(dialog.get_by_label("Text")).to_have_value(FACTS[2])
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Memories").click()
    expect(page.get_by_role("cell").filter(has=page.locator(".sparkline")).first).to_be_visible()
    expect(page.locator(".sparkline").first).to_have_accessible_name(re.compile("Attention share of the last"))
    page.get_by_role("link", name="Chat").click()
    expect(page.locator(".answer")).to_have_count(1)  # it is still there


def test_what_was_said_is_text_and_never_html(page: Page, llm: MemoryLLM) -> None:
    llm.memories(user="me").add(HOSTILE)
    say(page, HOSTILE)
    expect(page.locator(".turn.user")).to_have_text(f"You: {HOSTILE}")
    expect(page.locator(".read")).to_contain_text("<img src=x")
    assert page.locator("main img").count() == 0
    assert page.title() == "Chat · agentmem"


def test_stop_stops(browser: Browser, babbler: Path, tmp_path: Path) -> None:
    with (
        MemoryLLM(str(babbler), store=tmp_path / "memory.db", max_new_tokens=30_000) as llm,
        running(llm) as server,
        visiting(browser, server.url, view="chat") as page,
    ):
        page.get_by_label("Message").fill("Talk.")
        page.keyboard.press("Enter")
        expect(page.locator(".said")).to_contain_text("the the the", timeout=30_000)
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        expect(page.get_by_text("The answer was cut here.")).to_be_visible()
        assert llm.flush(60)


def test_a_server_that_went_away_is_told(browser: Browser, llm: MemoryLLM) -> None:
    with ExitStack() as serving:
        server = serving.enter_context(running(llm))
        with visiting(browser, server.url, view="chat", expected=("ERR_CONNECTION_REFUSED",)) as page:
            expect(page.get_by_label("Message")).to_be_visible()
            serving.close()
            say(page, "Are you there?")
            expect(page.get_by_role("alert")).to_have_text("The server does not answer. Is it still running?")
            page.get_by_role("link", name="Memories").click()
            alert = page.get_by_role("region", name="Memories").get_by_role("alert")
            expect(alert).to_contain_text("The server does not answer")


def test_axe_and_a_phone(browser: Browser, server: Running) -> None:
    phone = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}
    with visiting(browser, server.url, view="chat", **phone) as page:
        assert accessibility(page) == []
        say(page, "What is my dog called?")
        page.locator(".word", has_text="Biscuit").tap()
        expect(page.locator(".read-title")).to_have_text("“Biscuit” looked at")
        assert accessibility(page) == []
        assert overflow(page) <= 0
