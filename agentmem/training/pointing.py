"""Where heads have to look when a tool is called: at what is copied.

A call is copied from the offer and from the request. That a head copies what it looks at is learned in a few steps;
where to look was not learned from the words alone (measured, see MODEL_CARD.md). So some heads are told, as ``far``
tells which block holds a key.
"""

from __future__ import annotations

from enum import IntEnum
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from agentmem.training.batches import Batch


class Look(IntEnum):
    """What a pointer is for."""

    NAME = 0
    """From before a call's name to that name in the offer."""
    PART = 1
    """From before a key or a value to where it stands in the offer or the request."""
    BEYOND = 2
    """From a number to what stands behind the point that follows it: digits, or the end of a sentence."""


Pointer = tuple[int, int, int, int]
"""A row, the column of the token that looks, the column that it looks at, and what for."""


class Pointing:
    """Keeps what the last layer's attention reads while a batch runs through the model."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._attention = model.model.layers[-1].self_attn
        self._handle: Any = None
        self._read: dict[str, Any] = {}

    def __enter__(self) -> Pointing:
        self._handle = self._attention.register_forward_pre_hook(self._keep, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _keep(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._read = kwargs

    def loss(self, batch: Batch, pointers: list[Pointer]) -> Tensor:
        """Mean cross-entropy of where heads look, over the pointers: a scalar, in nats.

        For names, of all heads: one head for each tool would be no choice. Else of the one that looks best. Each kind
        counts as much as the others, however many there are of it.
        """
        each = []
        for what in Look:
            some = [pointer[:3] for pointer in pointers if pointer[3] == what]
            if some:
                looks = self._looks(batch, some)
                each.append((looks.mean(1) if what is Look.NAME else looks.amin(1)).mean())
        return torch.stack(each).mean()

    def _looks(self, batch: Batch, pointers: list[tuple[int, int, int]]) -> Tensor:
        """(pointers, heads): minus the logarithm of each head's attention."""
        read, attention = self._read, self._attention
        with torch.autocast("cpu", torch.bfloat16):
            queries, keys = (
                project(read["hidden_states"]).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj)
            )
        queries, keys = apply_rotary_pos_emb(queries.float(), keys.float(), *read["position_embeddings"])
        rows, asking, wanted = torch.tensor(pointers).unbind(1)
        heads = queries[rows, :, asking].unflatten(1, (keys.shape[1], -1))  # (pointers, kv heads, groups, width)
        scores = torch.einsum("phgw,phkw->phgk", heads, keys[rows]).flatten(1, 2) * attention.head_dim**-0.5
        visible = batch.mask()[rows, 0, asking][:, None]
        chances = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).log_softmax(-1)
        looks: Tensor = -chances[torch.arange(len(rows)), :, wanted]
        return looks
