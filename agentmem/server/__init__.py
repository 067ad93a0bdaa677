"""The server: OpenAI-compatible endpoints, the memory API and MCP over one ``MemoryLLM``. No logic of memory is here.

Needs the extra ``server`` (``pip install "agentmem-kv[server]"``). ``agentmem serve`` runs it; ``app.make_app`` gives
the application to those who run it otherwise.
"""
