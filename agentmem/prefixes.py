"""KV of the windows of sessions, in RAM: the next prompt of a session goes on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from agentmem.model.prefix import Prefix
from agentmem.records import Scope
from agentmem.store import HotTier

_ANY = b""


class Prefixes(HotTier[Prefix]):
    """The beginning of each session's last prompt, within a budget of bytes.

    When something of a space is erased, all that is held of that space goes.
    """

    def of(self, space: Scope, session: str) -> Prefix | None:
        """What a session's last prompt began with."""
        return self.get(space, _key(session), _ANY)

    def note(self, space: Scope, session: str, prefix: Prefix | None) -> None:
        """Keep what a session's prompt begins with now."""
        if prefix is not None:
            self.put(space, _key(session), _ANY, prefix)

    def discard(self, space: Scope, memory_ids: Collection[str]) -> None:
        """Free what is held of a space, some of whose memories are gone."""
        super().discard(space, self.ids(space))


def _key(session: str) -> str:
    return hashlib.sha256(session.encode()).hexdigest()
