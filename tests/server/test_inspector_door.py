"""Who may look: the page asks for a key, keeps it in its tab, and shows what the key reaches. How it is served."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from inspector_world import accessibility, chromium, visiting
from playwright.sync_api import Browser, expect
from server_world import Running, running

from agentmem import MemoryLLM
from agentmem.server.keys import Grant, KeyFile, add_key, remove_key

REFUSED = ("401",)
INSPECTOR = files("agentmem.server") / "inspector"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def test_a_key_opens_the_door(browser: Browser, locked: Running, keys: tuple[Path, dict[str, str]]) -> None:
    with visiting(browser, locked.url, expected=REFUSED) as page:
        expect(page.get_by_role("heading", name="This server asks for a key")).to_be_visible()
        expect(page.get_by_label("API key")).to_be_focused()
        assert accessibility(page) == []
        page.get_by_label("API key").fill("am-wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("The server does not accept this key.")
        page.get_by_label("API key").fill(keys[1]["ada"])
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Whose memories: ada")).to_be_visible()
        assert page.evaluate("Object.keys(localStorage)") == []
        assert keys[1]["ada"] not in page.url
        page.reload()
        expect(page.get_by_role("button", name="Whose memories: ada")).to_be_visible()
        page.get_by_role("button", name="Whose memories: ada").click()
        dialog = page.get_by_role("dialog", name="Whose memories")
        expect(dialog.get_by_role("option")).to_have_text(["ada"])
        expect(dialog).to_contain_text("You came in with the key ada.")
        dialog.get_by_role("button", name="Use another key").click()
        expect(page.get_by_role("heading", name="This server asks for a key")).to_be_visible()
        assert page.evaluate("Object.keys(sessionStorage)") == []


def test_a_key_for_everyone_names_somebody(
    browser: Browser, locked: Running, keys: tuple[Path, dict[str, str]], llm: MemoryLLM
) -> None:
    llm.memories(user="bob").add("My cat is called Luna.")
    llm.memories(user="bob", agent="helper").add("My cat is called Tom.")
    with visiting(browser, locked.url, expected=REFUSED) as page:
        page.get_by_label("API key").fill(keys[1]["all"])
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Whose memories?")).to_be_visible()
        page.get_by_role("button", name="Choose a user").click()
        page.get_by_label("User").fill("bob")
        page.keyboard.press("Enter")
        expect(page.get_by_text("My cat is called Luna.")).to_be_visible()
        page.get_by_role("button", name="Whose memories: bob").click()
        page.get_by_label("Agent").fill("helper")
        page.keyboard.press("Enter")
        expect(page.get_by_text("My cat is called Tom.")).to_be_visible()
        expect(page.get_by_text("My cat is called Luna.")).to_have_count(0)


def test_a_key_that_was_taken_back_is_told(browser: Browser, llm: MemoryLLM, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = add_key(path, "guest", [Grant(user="guest")])
    add_key(path, "other", [Grant(user="other")])
    with running(llm, keys=KeyFile(path)) as server, visiting(browser, server.url, expected=REFUSED) as page:
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        expect(page.get_by_text("Nothing is remembered yet")).to_be_visible()
        remove_key(path, "guest")
        page.get_by_role("link", name="Overview").click()
        expect(page.get_by_role("alert")).to_have_text("The server no longer accepts the key that this page used.")
        expect(page.get_by_label("API key")).to_be_focused()


def test_what_a_key_reaches(locked: Running, server: Running, keys: tuple[Path, dict[str, str]]) -> None:
    ada = {"key": "ada", "grants": [{"user": "ada", "agent": ""}], "user": "ada"}
    everyone = {"key": "all", "grants": [{"user": "*", "agent": "*"}], "user": None}
    for name, told in (("ada", ada), ("all", everyone)):
        with locked.http(keys[1][name]) as http:
            assert http.get("/v1/access").json() == told
    with locked.http() as http:
        assert http.get("/v1/access").status_code == 401
    with server.http() as http:
        assert http.get("/v1/access").json() == {"key": None, "grants": [{"user": "*", "agent": "*"}], "user": "me"}


@pytest.mark.parametrize("path", ["/", "/inspector/app.js", "/inspector/theme.css", "/inspector/icon.svg"])
def test_the_page_is_served_with_a_strict_policy(locked: Running, path: str) -> None:
    with locked.http() as http:  # the page itself needs no key: it holds nothing
        answer = http.get(path)
    assert answer.status_code == 200
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["etag"]


@pytest.mark.parametrize(
    "path",
    [
        "/inspector/",
        "/inspector/none.js",
        "/inspector/%2e%2e/app.py",
        "/inspector/..%2fapp.py",
        "/inspector//etc/passwd",
    ],
)
def test_nothing_else_is_served(server: Running, path: str) -> None:
    with server.http() as http:
        answer = http.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


class _Links(HTMLParser):
    """Addresses that a page names, and scripts or styles that stand in it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "style"
        assert tag != "script" or "src" in dict(attrs)
        assert all(name != "style" and not name.startswith("on") for name, _ in attrs)
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def test_the_package_carries_all_that_the_page_names() -> None:
    links = _Links()
    links.feed((INSPECTOR / "index.html").read_text(encoding="utf-8"))
    assert len(links.found) > 5
    wanted = [INSPECTOR / link.removeprefix("inspector/") for link in links.found]
    checked = 0
    while wanted:
        file = wanted.pop()
        assert file.is_file(), file
        if str(file).endswith(".js") and "vendor" not in str(file):
            checked += 1
            named = re.findall(r'^import .*?"(\.[^"]+)";$', file.read_text(encoding="utf-8"), re.MULTILINE)
            wanted += [Path(str(file)).parent / name for name in named]
    assert checked > 10
    for library in ("lit-html", "uplot"):
        assert "Copyright" in (INSPECTOR / "vendor" / library / "LICENSE").read_text(encoding="utf-8")


def test_the_page_names_no_other_host() -> None:
    own = [path for path in Path(str(INSPECTOR)).rglob("*") if path.is_file() and "vendor" not in path.parts]
    assert len(own) > 20
    for path in own:
        hosts = re.findall(
            r"(?:https?:)?//[\w.-]+\.[a-z]+", re.sub(r'xmlns="[^"]*"', "", path.read_text(encoding="utf-8"))
        )
        assert hosts == [], path
