"""One answer being generated: what is asked for, and an iterator of text that the model's ``Decoder`` feeds."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, Protocol

from torch import Tensor

from agentmem.model.attention import Placed
from agentmem.model.constraint import Constraint
from agentmem.model.prefix import Prefix
from agentmem.model.sampling import Sampling
from agentmem.records import FinishReason

if TYPE_CHECKING:
    from agentmem.model.decoder import Decoder


class _Unchanged(Enum):
    UNCHANGED = "unchanged"


UNCHANGED: Final = _Unchanged.UNCHANGED
"""Returned by ``on_stride`` to go on with the memory that is being read."""

OnStride = Callable[[list[int]], Placed | Literal[_Unchanged.UNCHANGED] | None]
"""Called with the ids generated so far, every stride; returns what to read from there on."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer: what came of it, and where its attention shares are."""

    end: int
    """Characters of the answer up to and with it. Of a character that takes several tokens, the last one gives it."""
    read: tuple[int, int] | None
    """Stretch and row of ``Generation.shares``; None when nothing was read."""


class Feedable(Protocol):
    """A context that keeps itself: tokens are fed to it, and it gives the logits of the last one (``Stream``)."""

    def feed(self, ids: Sequence[int], *, last_alone: bool = False) -> Tensor:
        """Logits (vocab,) behind the last of these tokens."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate, checked by ``LocalModel.generate``."""

    prompt_ids: list[int]
    reads: tuple[tuple[int, Placed | None], ...]
    """What each stretch of the prompt reads, by its first token; the answer goes on with the last."""
    on_stride: OnStride | None
    stride: int
    max_new_tokens: int
    sampling: Sampling
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    context: Feedable | None = None
    """A context that keeps itself, in place of the model's own cache."""
    constraint: Constraint | None = None
    """What the answer has to follow."""
    begun: Prefix | None = None
    """What may be the beginning of the prompt, read before."""
    cancel: threading.Event = field(default_factory=threading.Event)
    """Set it, from any thread, to stop at the next token."""


@dataclass(eq=False)
class Run:
    """What the decoder and the consumer share. It knows no Generation, so one that is dropped ends its run."""

    cancel: threading.Event
    pieces: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue)
    token_ids: list[int] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    shares: tuple[tuple[Placed, Tensor], ...] = ()
    prefix: Prefix | None = None
    error: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class Generation:
    """Text pieces as they are generated. Iterate to the end, or ``close()`` to stop; dropping it stops it too.

    Special tokens and stop strings are not part of the text. An error of the model is raised by the iteration.
    """

    def __init__(self, decoder: Decoder, request: Request) -> None:
        self._run = Run(request.cancel)
        self._parts: list[str] = []
        self._finalizer = weakref.finalize(self, self._run.cancel.set)
        self._ended = False
        decoder.submit(self._run, request)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._ended:
            raise StopIteration
        piece = self._run.pieces.get()
        if piece is not None:
            self._parts.append(piece)
            return piece
        self._ended = True
        self._wait()
        raise StopIteration

    @property
    def text(self) -> str:
        """All text; waits until the end."""
        for _ in self:
            pass
        return "".join(self._parts)

    @property
    def token_ids(self) -> list[int]:
        """Ids generated so far, without the one that ended the turn."""
        return list(self._run.token_ids)

    @property
    def tokens(self) -> list[Token]:
        """One of each of ``token_ids``; waits until the end."""
        self._wait()
        return list(self._run.tokens)

    @property
    def finish_reason(self) -> FinishReason:
        """``stop`` (end of turn or a stop string), ``length`` or ``cancelled``; waits until the end."""
        self._wait()
        return self._run.finish_reason

    @property
    def shares(self) -> tuple[tuple[Placed, Tensor], ...]:
        """Per stretch between swaps: what was read, and its attention shares (tokens, memories); waits until the end.

        See ``Reader``. Tokens that were generated while nothing was read are in no stretch.
        """
        self._wait()
        return self._run.shares

    @property
    def prefix(self) -> Prefix | None:
        """The stretch of the prompt that read no memory, where it has one in front of others; waits until the end."""
        self._wait()
        return self._run.prefix

    def close(self) -> None:
        """Stop at the next token and wait until it has stopped. What was generated until then stays readable."""
        self._run.cancel.set()
        self._run.ended.wait()

    def _wait(self) -> None:
        self._run.ended.wait()
        if self._run.error is not None:
            raise self._run.error
