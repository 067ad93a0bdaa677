"""The official MCP client against ``agentmem serve``: an agent's tools for remembering and recalling.

AGENTMEM_URL is the server's address, AGENTMEM_KEY a key of ``agentmem keys add`` (any text, if it has no keys).
"""

import asyncio
import os

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

URL = os.environ.get("AGENTMEM_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("AGENTMEM_KEY", "none")


async def main() -> None:
    """Remember something, find it again, forget it."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{URL}/mcp", http_client=http)) as client,
    ):
        print("tools:", ", ".join(tool.name for tool in (await client.list_tools()).tools))
        added = await client.call_tool("remember", {"text": "The kettle is on the second shelf.", "tags": ["kitchen"]})
        found = await client.call_tool("recall", {"query": "Where is the kettle?", "limit": 1})
        print("recalled:", found.structured_content["result"][0]["text"])
        ids = [memory["id"] for memory in added.structured_content["result"]]
        gone = await client.call_tool("forget", {"ids": ids})
        print("forgotten:", gone.structured_content["complete"])


asyncio.run(main())
