"""The database: what is remembered, found, counted, evicted and forgotten. Knows SQL and bytes, no transformer."""

from agentmem.store.eviction import EvictionPolicy
from agentmem.store.hot import HotTier
from agentmem.store.inputs import EmbedderId, NewMemory, text_digest
from agentmem.store.kv import NewKV
from agentmem.store.log import Append, Change, Delete, Put, ScopedLog
from agentmem.store.payloads import LoadedKV, Payload
from agentmem.store.scoped import ScopedMemories
from agentmem.store.store import Store
from agentmem.store.streams import StoredStream

__all__ = [
    "Append",
    "Change",
    "Delete",
    "EmbedderId",
    "EvictionPolicy",
    "HotTier",
    "LoadedKV",
    "NewKV",
    "NewMemory",
    "Payload",
    "Put",
    "ScopedLog",
    "ScopedMemories",
    "Store",
    "StoredStream",
    "text_digest",
]
