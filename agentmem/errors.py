"""The one exception tree of agentmem.

    AgentMemError
    ├── InvalidInput (ValueError)       an argument cannot be used; nothing was changed
    ├── NotFound (LookupError)          no such memory in this scope
    ├── ModelError
    │   ├── ModelLoadError              no usable weights or tokenizer at that name or path
    │   └── UnsupportedModel            this architecture cannot do what was asked
    ├── StoreError
    │   ├── StoreOpenError              not a store, a directory, read-only, missing driver
    │   ├── SchemaTooNew                written by a newer agentmem
    │   ├── StoreBusy                   another process held the lock for too long
    │   ├── StoreUnavailable            the database server or the bucket cannot be reached
    │   ├── StoreFull                   the disk or a budget is full; the write was rolled back
    │   ├── Conflict                    an entry of the log has another revision than was expected
    │   ├── StreamChanged               another process continued or dropped a session's stream; open it again
    │   └── PayloadDamaged              a KV payload failed its checksum (rebuilt from text by callers)
    └── Closed                          the handle was used after close()

A message says what was wrong, with which value, and what to do.
"""

from __future__ import annotations


class AgentMemError(Exception):
    """Base of every error that agentmem raises on purpose."""


class InvalidInput(AgentMemError, ValueError):
    """An argument cannot be used. Nothing was changed."""


class NotFound(AgentMemError, LookupError):
    """No memory with this id in this scope (an id of another scope gets the same answer)."""


class ModelError(AgentMemError):
    """The language model cannot be used as asked."""


class ModelLoadError(ModelError):
    """No usable weights or tokenizer at that name or path."""


class UnsupportedModel(ModelError):
    """This architecture cannot do what was asked of it."""


class StoreError(AgentMemError):
    """The store cannot do what was asked."""


class StoreOpenError(StoreError):
    """The path is not a store that can be opened for reading and writing."""


class SchemaTooNew(StoreError):
    """The store was written by a newer agentmem."""


class StoreBusy(StoreError):
    """Another process held the write lock for longer than the timeout."""


class StoreUnavailable(StoreError):
    """The database server, or the bucket of a store's KV, cannot be reached; the message says what is known of the
    call: that nothing was changed, or, when the connection was lost during a commit, that nobody knows."""


class StoreFull(StoreError):
    """The disk is full, or a budget that evicting others cannot meet. The write was rolled back."""


class Conflict(StoreError):
    """An entry of the log has another revision than was expected: someone else set it. Nothing was changed."""


class StreamChanged(StoreError):
    """A session's stream was continued by another process, or dropped by forgetting. Nothing was written; reopen it."""


class PayloadDamaged(StoreError):
    """A KV payload failed its checksum. Its text is intact; re-encode it."""


class Closed(AgentMemError):
    """The handle was used after close()."""
