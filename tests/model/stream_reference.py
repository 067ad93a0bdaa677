"""InfLLM worked out by hand, in one forward over the whole text: every logit and every choice of blocks in float64.

After the paper's formulas and the published code (seeds 2.2 to 2.4). Within a layer, step after step: which tokens are
near, which blocks are complete, which of them the step's queries look for, and one softmax over all of it. As in
``recipe_reference``, keys and queries are never un-rotated: they are computed where they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from recipe_reference import Arguments, ByHand, Projected
from torch import Tensor, nn

from agentmem.model.stream import StreamPlan


class StreamByHand:
    """One forward of ``by_hand.model`` in which attention is that of ``plan``, read in steps that begin at ``firsts``.

    ``chosen[layer]`` are the blocks of every step, per KV head.
    """

    def __init__(self, by_hand: ByHand, plan: StreamPlan, firsts: Sequence[int]) -> None:
        self.by_hand, self.plan, self.firsts = by_hand, plan, firsts
        self.chosen: dict[int, list[list[list[int]]]] = {}
        self._tables: dict[tuple[int, ...], list[Arguments]] = {}

    def logits(self, ids: Sequence[int]) -> Tensor:
        """(n, vocab)."""
        inner: dict[int, Tensor] = {}

        def attend(
            module: nn.Module,
            query: Tensor,
            _key: Tensor,
            value: Tensor,
            _mask: Any,
            scaling: float | None = None,
            softcap: float | None = None,
            s_aux: Tensor | None = None,
            **kwargs: Any,
        ) -> tuple[Tensor, None]:
            layer: int = module.layer_idx
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None)
            out = self._layer(layer, inner[layer], value[0], scale, softcap, s_aux, window)
            return out.to(query.dtype).transpose(0, 1)[None].contiguous(), None

        def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inner[module.layer_idx] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

        handles = [module.register_forward_pre_hook(remember, with_kwargs=True) for module in self.by_hand.modules]
        try:
            with self.by_hand.attending(attend), torch.no_grad():
                logits: Tensor = self.by_hand.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
                return logits
        finally:
            for handle in handles:
                handle.remove()

    def _at(self, layer: int, hidden: Tensor, positions: Sequence[int]) -> Projected:
        """The layer's queries, keys and values of hidden states (1, n, hidden) at positions of our choice."""
        key = tuple(positions)
        if key not in self._tables:
            self._tables[key] = self.by_hand.arguments([5] * len(key), torch.tensor(key))
        return self.by_hand.call(self.by_hand.modules[layer], hidden, self._tables[key][layer])

    def _layer(
        self,
        layer: int,
        hidden: Tensor,
        values: Tensor,
        scale: float,
        softcap: float | None,
        s_aux: Tensor | None,
        window: int | None,
    ) -> Tensor:
        plan, n = self.plan, hidden.shape[1]
        assert plan.n_local is not None
        sees_far = window is None or window >= plan.n_local
        near_limit = plan.n_local if window is None else min(window, plan.n_local)
        in_front = plan.far == "before_window"  # StreamingLLM's sinks: at their own places, then the window
        edge = plan.n_local - 1 + (plan.n_init if in_front else 0)
        far_queries = self._at(layer, hidden, [edge] * n).queries.double()
        far_keys = self._at(layer, hidden, [min(i, plan.n_init) if in_front else 0 for i in range(n)]).keys.double()
        heads, kv_heads = far_queries.shape[0], far_keys.shape[0]
        group, wide = heads // kv_heads, values.double()
        received = torch.zeros(kv_heads, n, dtype=torch.float64)
        blocks: list[Tensor] = []
        out = torch.zeros(heads, n, values.shape[-1], dtype=torch.float64)
        self.chosen[layer] = []

        def capped(logits: Tensor) -> Tensor:
            return logits if softcap is None else softcap * torch.tanh(logits / softcap)

        for first, stop in zip(self.firsts, [*self.firsts[1:], n], strict=True):
            begin = max(0, first - plan.n_local + 1)
            local = self._at(layer, hidden[:, begin:stop], range(stop - begin))
            gone = plan.n_init + len(blocks) * plan.block_size if blocks else 0
            choice: list[list[int]] = []
            if blocks and sees_far:
                asking = far_queries[:, first:stop].mean(1).view(kv_heads, group, -1).sum(1)
                scores = torch.stack([(asking * block).sum(-1) for block in blocks], 1)
                if plan.selection == "all_heads":
                    scores = scores.sum(0, keepdim=True).expand(kv_heads, -1)
                choice = [row.topk(min(plan.top_k, len(blocks))).indices.sort().values.tolist() for row in scores]
            self.chosen[layer].append(choice)
            queries, tokens = torch.arange(first, stop)[:, None], torch.arange(stop)
            distance = queries - tokens
            near = (distance >= 0) & (distance < near_limit) & (tokens >= gone)
            beyond = (distance >= plan.n_local) & sees_far
            far = beyond & ((tokens < plan.n_init) | ((tokens >= max(gone, plan.n_init)) & (plan.top_k > 0)))
            far = far[None].repeat(heads, 1, 1)
            for head in range(heads if choice else 0):
                for block in choice[head // group]:
                    start = plan.n_init + block * plan.block_size
                    far[head, :, start : start + plan.block_size] = True
            z_near = _products(local.queries[:, first - begin :], local.keys, group) * scale
            z_far = _products(far_queries[:, first:stop], far_keys[:, :stop], group) * scale
            if plan.representatives == "product":  # r_m: the products with the queries behind a token
                behind = (distance[:, begin:] > 0) & (distance[:, begin:] < plan.n_local)
                received[:, begin:stop] += (z_near * behind).sum(1).view(kv_heads, group, -1).sum(1)
            z_near = capped(z_near).masked_fill(~near[:, begin:], -torch.inf)
            z_far = capped(z_far).masked_fill(~far, -torch.inf)
            logits = torch.cat((z_near, z_far), -1)
            if s_aux is not None:
                logits = torch.cat((logits, s_aux.double().view(-1, 1, 1).expand(-1, stop - first, 1)), -1)
            weights = logits.softmax(-1)
            near_weights, far_weights = weights[..., : stop - begin], weights[..., stop - begin : 2 * stop - begin]
            every = wide.repeat_interleave(group, 0)
            out[:, first:stop] = near_weights @ every[:, begin:stop] + far_weights @ every[:, :stop]
            if plan.representatives == "mass":
                received[:, begin:stop] += near_weights.sum(1).view(kv_heads, group, -1).sum(1)
            while plan.top_k and plan.n_init + (len(blocks) + 1) * plan.block_size + plan.n_local <= stop:
                start = plan.n_init + len(blocks) * plan.block_size
                mass = received[:, start : start + plan.block_size]
                top = mass.topk(plan.n_repr, -1).indices + start
                blocks.append(torch.stack([far_keys[kv, top[kv]].mean(0) for kv in range(kv_heads)]))
        return out


def _products(queries: Tensor, keys: Tensor, group: int) -> Tensor:
    """(heads, q, dim), (kv_heads, k, dim) -> (heads, q, k) in float64."""
    return queries.double() @ keys.double().repeat_interleave(group, 0).transpose(1, 2)
