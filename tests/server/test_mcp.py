"""The MCP server through the SDK's own client: in this process, as a process over stdio, and over HTTP."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError, StdioServerParameters, stdio_client

from agentmem import InvalidInput, MemoryLLM
from agentmem.server.mcp_server import http_app, make_mcp
from agentmem.server.run import make_server

TEXTS = ["My dog is called Biscuit.", "I live in Oslo.", "I had soup today."]


def with_client(server: Any, use: Callable[[Client], Awaitable[None]]) -> None:
    async def go() -> None:
        async with Client(server) as client:
            await use(client)

    asyncio.run(go())


async def remember_all(client: Client) -> list[str]:
    ids = []
    for text in TEXTS:
        result = await client.call_tool("remember", {"text": text, "tags": ["told"]})
        assert not result.is_error, result
        ids.append(result.structured_content["result"][0]["id"])
    return ids


def test_every_tool(llm: MemoryLLM) -> None:
    async def use(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"remember", "recall", "list", "forget", "prune"}
        assert all(tool.description and tool.output_schema for tool in tools.values())
        assert tools["recall"].annotations.read_only_hint
        assert tools["forget"].annotations.destructive_hint
        ids = await remember_all(client)
        found = await client.call_tool("recall", {"query": "What is my dog called?", "limit": 1})
        assert [hit["text"] for hit in found.structured_content["result"]] == TEXTS[:1]
        first = (await client.call_tool("list", {"limit": 2})).structured_content
        assert [memory["id"] for memory in first["memories"]] == ids[:0:-1]
        rest = (await client.call_tool("list", {"cursor": first["next_cursor"]})).structured_content
        assert [memory["id"] for memory in rest["memories"]] == ids[:1]
        would = (await client.call_tool("prune", {"max_memories": 1})).structured_content
        assert would["dry_run"] is True
        assert len(would["pruned"]) == 2
        gone = await client.call_tool("forget", {"ids": ids[:1]})
        assert gone.structured_content == {"ids": ids[:1], "complete": True}
        left = (await client.call_tool("list", {"tags": ["told"]})).structured_content["memories"]
        assert {memory["id"] for memory in left} == set(ids[1:])
        done = (await client.call_tool("prune", {"max_memories": 1, "dry_run": False})).structured_content
        assert len(done["pruned"]) == 1

    with_client(make_mcp(llm, user="mcp-tools"), use)


def test_resources_and_the_prompt(llm: MemoryLLM) -> None:
    async def use(client: Client) -> None:
        ids = await remember_all(client)
        listed = (await client.list_resources()).resources
        assert [str(resource.uri) for resource in listed] == [f"memory:///{id}" for id in reversed(ids)]
        templates = (await client.list_resource_templates()).resource_templates
        assert [template.uri_template for template in templates] == ["memory:///{id}"]
        assert (await client.read_resource(listed[-1].uri)).contents[0].text == TEXTS[0]
        with pytest.raises(MCPError, match="no memory"):
            await client.read_resource("memory:///none")
        prompt = await client.get_prompt("recall", {"topic": "dogs"})
        assert "dogs" in prompt.messages[0].content.text

    with_client(make_mcp(llm, user="mcp-resources"), use)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("remember", {"text": " "}),
        ("remember", {"text": "a\x00b"}),
        ("remember", {}),
        ("recall", {"query": "x", "limit": 0}),
        ("list", {"cursor": "x"}),
        ("list", {"role": "wizard"}),
        ("forget", {"ids": ["none"]}),
        ("forget", {"ids": []}),
        ("prune", {"unused_for": "soon"}),
    ],
)
def test_bad_arguments_are_told_to_the_model(llm: MemoryLLM, tool: str, arguments: dict[str, Any]) -> None:
    async def use(client: Client) -> None:
        result = await client.call_tool(tool, arguments)
        assert result.is_error
        assert result.content[0].text
        assert "Traceback" not in result.content[0].text

    with_client(make_mcp(llm, user="mcp-bad"), use)


def test_one_user_only(llm: MemoryLLM) -> None:
    llm.memories(user="mcp-other").add("A secret of somebody else.")
    (other,) = llm.memories(user="mcp-other").list()

    async def use(client: Client) -> None:
        assert (await client.call_tool("list", {})).structured_content["memories"] == []
        assert (await client.call_tool("recall", {"query": "secret"})).structured_content == {"result": []}
        assert (await client.call_tool("forget", {"ids": [other.id]})).is_error
        with pytest.raises(MCPError):
            await client.read_resource(f"memory:///{other.id}")

    with_client(make_mcp(llm, user="mcp-one"), use)
    assert len(llm.memories(user="mcp-other")) == 1
    with pytest.raises(InvalidInput):
        make_mcp(llm, user="")


def test_over_stdio_what_one_process_is_told_the_next_one_knows(tmp_path: Path) -> None:
    command = ["-m", "agentmem", "mcp", "--store", str(tmp_path / "memory.db"), "--user", "ada"]
    parameters = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))

    async def tell(client: Client) -> None:
        await remember_all(client)

    async def ask(client: Client) -> None:
        found = await client.call_tool("recall", {"query": "What is my dog called?"})
        assert found.structured_content["result"][0]["text"] == TEXTS[0]

    with_client(stdio_client(parameters), tell)
    with_client(stdio_client(parameters), ask)


@contextmanager
def over_http(llm: MemoryLLM) -> Iterator[str]:
    server = make_server(http_app(make_mcp(llm, user="mcp-http")), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mcp"
    finally:
        server.should_exit = True
        thread.join(30)


def test_over_http_for_this_machine_only(llm: MemoryLLM) -> None:
    async def use(client: Client) -> None:
        ids = await remember_all(client)
        assert len(ids) == 3

    with over_http(llm) as url:
        with_client(url, use)
        hello = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        accept = {"Accept": "application/json, text/event-stream"}
        for headers in ({"Host": "attacker.example"}, {"Origin": "https://attacker.example"}):
            assert httpx2.post(url, json=hello, headers={**accept, **headers}).status_code in (403, 421)
