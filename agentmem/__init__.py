"""agentmem: a memory that lasts, for local language models."""

from agentmem.conversation import Conversation, ReplyStream
from agentmem.errors import (
    AgentMemError,
    Closed,
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
    UnsupportedModel,
)
from agentmem.llm import MemoryLLM
from agentmem.memories import Memories
from agentmem.recipes import Parallel
from agentmem.records import (
    Event,
    Hit,
    Memory,
    MemoryRead,
    Message,
    PruneReport,
    Reply,
    Role,
    Scope,
    Stats,
    Tier,
    Usage,
)
from agentmem.store import EvictionPolicy

__all__ = [
    "AgentMemError",
    "Closed",
    "Conversation",
    "Event",
    "EvictionPolicy",
    "Hit",
    "InvalidInput",
    "Memories",
    "Memory",
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
    "Tier",
    "UnsupportedModel",
    "Usage",
]
