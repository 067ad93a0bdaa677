"""AgentMemMemoryStore: which model and which store, in words that a pipeline can be saved with."""

from __future__ import annotations

import atexit
import json
import threading
from typing import Any

from haystack import default_from_dict, default_to_dict

from agentmem import InvalidInput, MemoryLLM

from haystack_integrations.memory_stores.agentmem_kv.telemetry import switch_off

switch_off()

_LOCK = threading.RLock()
_OPEN: dict[str, MemoryLLM] = {}
_HOLDERS: dict[str, int] = {}


class AgentMemMemoryStore:
    """A model with its memory. It is opened when it is first used, once per process, however many hold it.

    Args:
        path: Path of the store's file, or the address of a PostgreSQL database.
        model: Hub id or folder of the model; None for the small one that comes with agentmem.
        options: Other arguments of ``MemoryLLM``, such as ``{"window_tokens": 2000}``.
    """

    def __init__(
        self, path: str = "memory.db", *, model: str | None = None, options: dict[str, Any] | None = None
    ) -> None:
        self.path, self.model, self.options = path, model, options or {}
        self._key = json.dumps([path, model, self.options], sort_keys=True)
        self._llm: MemoryLLM | None = None
        self._lent = False

    @classmethod
    def of(cls, llm: MemoryLLM) -> AgentMemMemoryStore:
        """A store that uses an open ``MemoryLLM``, which you close yourself. A pipeline with it cannot be saved."""
        store = cls()
        store._llm, store._lent = llm, True
        return store

    @property
    def llm(self) -> MemoryLLM:
        """The model, opened if it is not. Raises what ``MemoryLLM`` raises."""
        with _LOCK:
            if self._llm is None:
                if self._key not in _OPEN:
                    _OPEN[self._key] = MemoryLLM(self.model, store=self.path, **self.options)
                self._llm = _OPEN[self._key]
                _HOLDERS[self._key] = _HOLDERS.get(self._key, 0) + 1
            return self._llm

    def close(self) -> None:
        """Let go of the model; the last one that holds it closes it. It is opened again when it is used again."""
        with _LOCK:
            if self._llm is not None and not self._lent:
                self._llm = None
                _HOLDERS[self._key] -= 1
                if not _HOLDERS[self._key] and (llm := _OPEN.pop(self._key, None)):
                    llm.close()

    def to_dict(self) -> dict[str, Any]:
        """What it is opened with. Raises InvalidInput for one that was made of an open ``MemoryLLM``."""
        if self._lent:
            raise InvalidInput("this memory store uses an open MemoryLLM, which cannot be saved; make it of a path")
        return default_to_dict(self, path=self.path, model=self.model, options=dict(self.options))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AgentMemMemoryStore:
        """The memory store that ``to_dict`` described."""
        return default_from_dict(cls, data)


@atexit.register
def _close_all() -> None:
    with _LOCK:
        while _OPEN:
            _OPEN.popitem()[1].close()
