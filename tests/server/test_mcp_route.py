"""MCP on the server's own port: each request reaches the memories of its key's scope, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from server_world import Running

from agentmem import MemoryLLM

Keys = tuple[Path, dict[str, str]]
ASK = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list", "arguments": {}}}
ACCEPT = {"Accept": "application/json, text/event-stream"}


async def as_user(url: str, key: str | None, use: Callable[[Client], Awaitable[Any]], **headers: str) -> Any:
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
    ):
        return await use(client)


async def remember(client: Client, text: str) -> str:
    result = await client.call_tool("remember", {"text": text})
    assert not result.is_error, result
    return str(result.structured_content["result"][0]["id"])


async def listed(client: Client) -> list[str]:
    result = await client.call_tool("list", {"limit": 100})
    return [memory["text"] for memory in result.structured_content["memories"]]


def test_keys_reach_their_own_memories_at_the_same_time(locked: Running, keys: Keys) -> None:
    async def live(name: str) -> list[str]:
        async def use(client: Client) -> list[str]:
            for number in range(5):
                await remember(client, f"{name} says {number}.")
                found = await client.call_tool("recall", {"query": "says"})
                assert {hit["text"].split()[0] for hit in found.structured_content["result"]} == {name}
            assert {str(one.title).split()[0] for one in (await client.list_resources()).resources} == {name}
            return await listed(client)

        user = {"X-Agentmem-User": f"mcp {name}"}
        return list(await as_user(locked.url, keys[1]["all"], use, **user))

    async def all_of_them() -> list[list[str]]:
        return await asyncio.gather(*(live(name) for name in ("ada", "bob", "zoe")))

    for name, texts in zip(("ada", "bob", "zoe"), asyncio.run(all_of_them()), strict=True):
        assert {text.split()[0] for text in texts} == {name}
        assert len(texts) == 5


def test_a_memory_of_another_scope_is_not_there(locked: Running, keys: Keys, llm: MemoryLLM) -> None:
    (secret,) = llm.memories(user="ada").add("A secret of ada.")

    async def use(client: Client) -> None:
        assert "A secret of ada." not in await listed(client)
        assert (await client.call_tool("forget", {"ids": [secret.id]})).is_error
        with pytest.raises(MCPError):
            await client.read_resource(f"memory:///{secret.id}")

    asyncio.run(as_user(locked.url, keys[1]["bob"], use))
    assert llm.memories(user="ada").get(secret.id).text == "A secret of ada."


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "invalid_api_key"),
        ({"Authorization": "Bearer am-wrong"}, 401, "invalid_api_key"),
        ({"Authorization": "Basic {bob}"}, 401, "invalid_api_key"),
        ({"Authorization": "Bearer {bob}", "X-Agentmem-User": "ada"}, 403, "scope_denied"),
        ({"Authorization": "Bearer {bob}", "X-Agentmem-Agent": "other"}, 403, "scope_denied"),
        ({"Authorization": "Bearer {app}"}, 400, "user_missing"),
    ],
)
def test_who_has_no_key_for_it_is_refused(
    locked: Running, keys: Keys, headers: dict[str, str], status: int, code: str
) -> None:
    sent = {name: value.format(**keys[1]) for name, value in headers.items()}
    for method in ("POST", "GET", "DELETE"):
        answer = httpx2.request(method, f"{locked.url}/mcp", json=ASK, headers={**ACCEPT, **sent})
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == code


def test_without_keys_it_is_for_this_machine_only(server: Running) -> None:
    async def use(client: Client) -> list[str]:
        await remember(client, "The kettle is blue.")
        return await listed(client)

    assert asyncio.run(as_user(server.url, None, use, **{"X-Agentmem-User": "kettle"})) == ["The kettle is blue."]
    for headers in ({"Host": "attacker.example"}, {"Origin": "https://attacker.example"}):
        answer = httpx2.post(f"{server.url}/mcp", json=ASK, headers={**ACCEPT, **headers})
        assert answer.status_code in (400, 403, 421)
    for content in (b"", b"{", b"[]", b'{"jsonrpc": "2.0"}', b'{"jsonrpc": "2.0", "id": 1, "method": "none"}'):
        answer = httpx2.post(
            f"{server.url}/mcp", content=content, headers={**ACCEPT, "Content-Type": "application/json"}
        )
        assert answer.status_code < 500
