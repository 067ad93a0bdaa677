"""``infllm``: one session as a stream without end; each step reads sinks, a window, and the blocks it looks for.

InfLLM (arXiv 2402.04617): training-free. Sections 3.1 (window and sinks), 3.2 (blocks, representative tokens, lookup),
appendix A (hot cache), appendix B (order). Where paper and published code differ, the fields below say which is which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentmem.model.local import LocalModel
from agentmem.model.stream import StreamPlan, check_plan


@dataclass(frozen=True)
class InfLLM:
    """The paper's defaults (section 4.2, appendix C.1); ``None`` is the paper's number, or less on a short model.

    Attributes:
        n_init: sinks; None: 128, at most a sixteenth of the model's positions.
        n_local: window; None: 4,096, at most half of the model's positions.
        block_size: tokens of a block.
        top_k: blocks read per layer and KV head; None: 16, at most what fits into half of the model's positions.
        n_repr: representative tokens of a block.
        step: tokens of a prefill step; None: 512, at most an eighth of the model's positions.
        representatives: ``mass``, the softmax mass received in the window (the published code, and the paper's
            numbers), or ``product``, the mean product with the queries that follow (the paper's formula for r_m).
        selection: blocks per KV head (``group``, as InfLLM-v2 does), or one choice by the sum of all heads
            (``all_heads``, the paper).
        cached_blocks: slots of the hot cache per layer and KV head; None: twice ``top_k`` (appendix A: 32 for 16).
        cache_policy: ``decayed`` (appendix A: s = d * s + attention mass) or ``lru`` (the published code's default).
        decay: d.
    """

    n_init: int | None = None
    n_local: int | None = None
    block_size: int = 128
    top_k: int | None = None
    n_repr: int = 4
    step: int | None = None
    representatives: Literal["mass", "product"] = "mass"
    selection: Literal["group", "all_heads"] = "group"
    cached_blocks: int | None = None
    cache_policy: Literal["decayed", "lru"] = "decayed"
    decay: float = 0.1

    name = "infllm"

    @property
    def identity(self) -> str:
        """The cache decides how fast blocks are found, not which: it is no part of it."""
        sizes = (self.n_init, self.n_local, self.block_size, self.top_k, self.n_repr, self.step)
        return f"infllm/1 {sizes} {self.representatives} {self.selection}"

    def check(self, model: LocalModel) -> None:
        """Raise InvalidInput when the window leaves the positions that the model was trained on, or sizes clash."""
        check_plan(model, self.plan(model))

    def plan(self, model: LocalModel) -> StreamPlan:
        """The sizes for this model."""
        room = model.max_positions
        top_k = min(16, max(1, room // 2 // self.block_size)) if self.top_k is None else self.top_k
        return StreamPlan(
            n_init=min(128, room // 16) if self.n_init is None else self.n_init,
            n_local=min(4096, room // 2) if self.n_local is None else self.n_local,
            block_size=self.block_size,
            top_k=top_k,
            n_repr=self.n_repr,
            step=min(512, room // 8, self.n_local or 512) if self.step is None else self.step,
            representatives=self.representatives,
            selection=self.selection,
            cached_blocks=2 * top_k if self.cached_blocks is None else self.cached_blocks,
            cache_policy=self.cache_policy,
            decay=self.decay,
        )
