"""AgentMemMemoryWriter: remembers what was said in a dialogue."""

from __future__ import annotations

import hashlib
from typing import Any

from haystack import component, default_from_dict, default_to_dict
from haystack.dataclasses import ChatMessage

from agentmem import Role

from haystack_integrations.memory_stores.agentmem_kv import AgentMemMemoryStore


@component
class AgentMemMemoryWriter:
    """Remembers the words of users and assistants, for generators whose model is another.

    Neither system messages nor what tools say is written. A dialogue that is written again, and has grown, is written
    from where it has.

    Args:
        memory_store: The model, which only embeds, and its memory; None for the file ``memory.db``.
    """

    def __init__(self, memory_store: AgentMemMemoryStore | None = None) -> None:
        self.memory_store = memory_store or AgentMemMemoryStore()

    def warm_up(self) -> None:
        """Open the model."""
        _ = self.memory_store.llm

    def close(self) -> None:
        """Let go of the model."""
        self.memory_store.close()

    def to_dict(self) -> dict[str, Any]:
        """The component without the open model."""
        return default_to_dict(self, memory_store=self.memory_store)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AgentMemMemoryWriter:
        """The component that ``to_dict`` described."""
        return default_from_dict(cls, data)

    @component.output_types(memories_written=int)
    def run(
        self, messages: list[ChatMessage], *, user_id: str, agent_id: str = "", session_id: str | None = None
    ) -> dict[str, int]:
        """Remember what of a dialogue is not remembered yet; how many messages that were."""
        memories = self.memory_store.llm.memories(user=user_id, agent=agent_id)
        said, written = f"{session_id}", 0
        for message in messages:
            text = (message.text or "").strip()
            if text and (message.is_from("user") or message.is_from("assistant")):
                said = hashlib.sha256(f"{said}\x00{message.role.value}\x00{text}".encode()).hexdigest()[:32]
                if not memories.list(turns=[said], limit=1):
                    memories.add(text, id=said, role=Role(message.role.value), session=session_id)
                    written += 1
        return {"memories_written": written}
