"""How a stream is read: sizes, what is retrieved, and where the far part stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentmem.errors import InvalidInput


@dataclass(frozen=True)
class StreamPlan:
    """What every token of a stream attends to: sinks, a window, and retrieved blocks.

    Attributes:
        n_init: sinks, the first tokens of the stream; visible for ever.
        n_local: window: the newest tokens (the query's own included), at their exact distance. None: all of them.
        block_size: tokens of a block, the unit that is retrieved.
        top_k: blocks retrieved per layer and KV head; 0 retrieves nothing.
        n_repr: representative tokens of a block; their mean key stands for it.
        step: tokens of one prefill step, which share one retrieval. A decoded token is a step of its own.
        representatives: chosen by the softmax ``mass`` that a token receives while it is in the window (the published
            code, and its numbers), or by the mean raw ``product`` with the queries after it (the paper's r_m).
        selection: blocks are chosen per KV head (``group``), or once for all heads by their sum (``all_heads``).
        cached_blocks: slots of the hot cache per layer and KV head.
        cache_policy: who leaves the hot cache: the lowest ``decayed`` attention mass, or the least recently used.
        decay: factor of a cached block's score at every step.
        far: where sinks and blocks stand: all at distance ``n_local - 1`` (``window_edge``), or sinks directly in
            front of the window, each at its own place (``before_window``, StreamingLLM).
    """

    n_init: int = 128
    n_local: int | None = 4096
    block_size: int = 128
    top_k: int = 16
    n_repr: int = 4
    step: int = 512
    representatives: Literal["mass", "product"] = "mass"
    selection: Literal["group", "all_heads"] = "group"
    cached_blocks: int = 32
    cache_policy: Literal["decayed", "lru"] = "decayed"
    decay: float = 0.1
    far: Literal["window_edge", "before_window"] = "window_edge"

    def __post_init__(self) -> None:
        for name, least in (("n_init", 0), ("block_size", 1), ("top_k", 0), ("n_repr", 1), ("step", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidInput(f"{name} must be a whole number from {least}, not {value!r}")
        if self.n_local is not None and (not isinstance(self.n_local, int) or self.n_local < self.step):
            raise InvalidInput(
                f"n_local ({self.n_local!r}) must be at least step ({self.step}): a step is read exactly"
            )
        if self.n_repr > self.block_size:
            raise InvalidInput(f"n_repr ({self.n_repr}) cannot exceed block_size ({self.block_size})")
        for name, allowed in (
            ("representatives", ("mass", "product")),
            ("selection", ("group", "all_heads")),
            ("cache_policy", ("decayed", "lru")),
            ("far", ("window_edge", "before_window")),
        ):
            if getattr(self, name) not in allowed:
                raise InvalidInput(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.top_k > self.cached_blocks:
            raise InvalidInput(
                f"top_k ({self.top_k}) exceeds cached_blocks ({self.cached_blocks}): the blocks of one step must all "
                "fit into the hot cache; raise cached_blocks"
            )
        if not 0.0 <= self.decay <= 1.0:
            raise InvalidInput(f"decay must be from 0 to 1, not {self.decay!r}")
        if self.top_k and self.far != "window_edge":
            raise InvalidInput("retrieved blocks have no place before the window; use far='window_edge' or top_k=0")

    @property
    def keeps_blocks(self) -> bool:
        """Whether what leaves the window is kept."""
        return self.n_local is not None and self.top_k > 0

    @property
    def positions(self) -> int | None:
        """Positions that the model must have been trained on; None: as many as the stream is long."""
        if self.n_local is None:
            return None
        return self.n_local + self.step + (self.n_init if self.far == "before_window" else 0)
