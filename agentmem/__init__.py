"""agentmem: a memory that lasts, for local language models."""

from importlib import import_module
from typing import TYPE_CHECKING

from agentmem.dialogue import session_of
from agentmem.errors import (
    AgentMemError,
    Closed,
    Conflict,
    InvalidInput,
    ModelError,
    ModelLoadError,
    NotFound,
    PayloadDamaged,
    SchemaTooNew,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreOpenError,
    StoreUnavailable,
    StreamChanged,
    UnsupportedModel,
)
from agentmem.records import (
    Event,
    Hit,
    LogEntry,
    Memory,
    MemoryRead,
    Message,
    PruneReport,
    Reply,
    Role,
    Scope,
    Stats,
    Tier,
    TokenRead,
    ToolCall,
    Usage,
)

if TYPE_CHECKING:
    from agentmem.asynchronous import AsyncReplyStream
    from agentmem.conversation import Conversation
    from agentmem.llm import MemoryLLM
    from agentmem.memories import Memories
    from agentmem.recipes import MemLong, Memory3, Parallel
    from agentmem.store import EvictionPolicy
    from agentmem.turns import ReplyStream

__all__ = [
    "AgentMemError",
    "AsyncReplyStream",
    "Closed",
    "Conflict",
    "Conversation",
    "Event",
    "EvictionPolicy",
    "Hit",
    "InvalidInput",
    "LogEntry",
    "MemLong",
    "Memories",
    "Memory",
    "Memory3",
    "MemoryLLM",
    "MemoryRead",
    "Message",
    "ModelError",
    "ModelLoadError",
    "NotFound",
    "Parallel",
    "PayloadDamaged",
    "PruneReport",
    "Reply",
    "ReplyStream",
    "Role",
    "SchemaTooNew",
    "Scope",
    "Stats",
    "StoreBusy",
    "StoreError",
    "StoreFull",
    "StoreOpenError",
    "StoreUnavailable",
    "StreamChanged",
    "Tier",
    "TokenRead",
    "ToolCall",
    "UnsupportedModel",
    "Usage",
    "session_of",
]

_LATE = {
    "AsyncReplyStream": "agentmem.asynchronous",
    "Conversation": "agentmem.conversation",
    "EvictionPolicy": "agentmem.store",
    "Memories": "agentmem.memories",
    "MemLong": "agentmem.recipes",
    "Memory3": "agentmem.recipes",
    "MemoryLLM": "agentmem.llm",
    "Parallel": "agentmem.recipes",
    "ReplyStream": "agentmem.turns",
}


def __getattr__(name: str) -> object:
    """Import what needs PyTorch at its first use: a command that needs no model starts in half a second, not four."""
    if name not in _LATE:
        raise AttributeError(f"module 'agentmem' has no attribute {name!r}")
    value = getattr(import_module(_LATE[name]), name)
    globals()[name] = value
    return value
