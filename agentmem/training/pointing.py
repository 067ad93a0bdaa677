"""Where a head has to look when a call is written: at what is copied.

A call's words are copied from the offer and from the request. That the last layer copies what it looks at is learned in
a few steps; where to look is not, from the words alone (measured, see MODEL_CARD.md). So the best head of the last
layer is told, as ``far`` tells which block holds a key.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from agentmem.training.batches import Batch

Pointer = tuple[int, int, int, int]
"""A row, the column of a token whose next one is copied, and the column from which; 0 for a name, 1 for the rest."""


class Pointing:
    """Keeps what the last layer's attention reads while a batch runs through the model."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._attention = model.model.layers[-1].self_attn
        self._handle: Any = None
        self._hidden: Tensor | None = None
        self._angles: tuple[Tensor, Tensor] | None = None

    def __enter__(self) -> Pointing:
        self._handle = self._attention.register_forward_pre_hook(self._keep, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _keep(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._hidden, self._angles = kwargs["hidden_states"], kwargs["position_embeddings"]

    def loss(self, batch: Batch, pointers: list[Pointer]) -> Tensor:
        """Mean cross-entropy of the attention of the head that looks best, over the pointers: a scalar, in nats.

        Names, which are few, count as much as all the rest.
        """
        assert self._hidden is not None
        assert self._angles is not None
        attention, width = self._attention, self._attention.head_dim
        with torch.autocast("cpu", torch.bfloat16):
            queries, keys = (
                project(self._hidden).unflatten(-1, (-1, width)).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj)
            )
        queries, keys = apply_rotary_pos_emb(queries.float(), keys.float(), *self._angles)
        rows, asking, wanted, kinds = torch.tensor(pointers).unbind(1)
        heads = queries[rows, :, asking].unflatten(1, (keys.shape[1], -1))  # (pointers, kv heads, groups, width)
        scores = torch.einsum("phgw,phkw->phgk", heads, keys[rows]).flatten(1, 2) * width**-0.5
        visible = batch.mask()[rows, 0, asking][:, None]
        chances = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).log_softmax(-1)
        each = -chances[torch.arange(len(rows)), :, wanted].amax(1)
        return torch.stack([each[kinds == kind].mean() for kind in kinds.unique()]).mean()
