"""KV of the windows of sessions, in RAM: the next prompt of a session goes on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from agentmem.model.prefix import Prefix
from agentmem.records import Scope
from agentmem.store import HotTier

_ANY = b""


@dataclass(frozen=True)
class Kept:
    """What a session's last prompt began with, and the turn that its window began with."""

    prefix: Prefix
    begins: str

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.prefix.nbytes


class Prefixes(HotTier[Kept]):
    """The beginning of each session's last prompt, within a budget of bytes.

    When something of a space is erased, all that is held of that space goes.
    """

    def of(self, space: Scope, session: str) -> Kept | None:
        """What is held of a session."""
        return self.get(space, _key(session), _ANY)

    def note(self, space: Scope, session: str, prefix: Prefix | None, begins: str) -> None:
        """Keep what a session's prompt begins with now; where that is nothing, what is held stays."""
        if prefix is not None:
            self.put(space, _key(session), _ANY, Kept(prefix, begins))

    def discard(self, space: Scope, memory_ids: Collection[str]) -> None:
        """Free what is held of a space, some of whose memories are gone."""
        super().discard(space, self.ids(space))


def _key(session: str) -> str:
    return hashlib.sha256(session.encode()).hexdigest()
