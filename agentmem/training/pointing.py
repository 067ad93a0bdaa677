"""Where heads have to look when a tool is called: at what is copied, and at what says which tool is meant.

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
    """The last layer looks from before a call's name to that name in the offer."""
    PART = 1
    """The last layer looks from before a key or a value to where it stands."""
    SAME = 2
    """The second layer looks from an offer's word to the same word in the request."""
    NONE = 3
    """The second layer looks from a word that the request does not have to the beginning."""


Pointer = tuple[int, int, int, int]
"""A row, the column of the token that looks, the column that it looks at, and what for."""

MATCHING, COPYING = 1, -1
"""The layers that are told; one pair of heads of the matching one."""


class Pointing:
    """Keeps what two layers' attention reads while a batch runs through the model."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._layers = {layer: model.model.layers[layer].self_attn for layer in (MATCHING, COPYING)}
        self._handles: list[Any] = []
        self._read: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> Pointing:
        for layer, attention in self._layers.items():

            def keep(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], at: int = layer) -> None:
                self._read[at] = kwargs

            self._handles.append(attention.register_forward_pre_hook(keep, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def loss(self, batch: Batch, pointers: list[Pointer]) -> Tensor:
        """Mean cross-entropy of where heads look, over the pointers: a scalar, in nats.

        For names, of all heads: one head for each tool would be no choice. For keys and values, of the one that looks
        best. Each kind counts as much as the others, however many there are of it.
        """
        each = []
        for what in Look:
            some = [pointer[:3] for pointer in pointers if pointer[3] == what]
            if some:
                looks = self._looks(COPYING if what in (Look.NAME, Look.PART) else MATCHING, batch, some)
                heads = {Look.NAME: looks.mean(1), Look.PART: looks.amin(1)}.get(what, looks[:, :2].mean(1))
                each.append(heads.mean())
        return torch.stack(each).mean()

    def _looks(self, layer: int, batch: Batch, pointers: list[tuple[int, int, int]]) -> Tensor:
        """(pointers, heads): minus the logarithm of each head's attention."""
        read, attention = self._read[layer], self._layers[layer]
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
        return -chances[torch.arange(len(rows)), :, wanted]
