"""The slow, obvious way to read memory: every logit in float64, one softmax, nothing merged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from agentmem.model.attention import Placed


class Reference:
    """Set ``placed``, run the model, look at ``weights``: per forward, per layer, the softmax weights."""

    def __init__(self, placed: Placed | None) -> None:
        self.placed = placed
        self.weights: list[dict[int, dict[str, Tensor]]] = []

    def share(self, step: int) -> Tensor:
        """Share per memory at the last query: mean over rows and heads, then over the layers that read memory."""
        assert self.placed is not None
        layers = [weights["memory"] for weights in self.weights[step].values() if "memory" in weights]
        return torch.stack(
            [torch.stack([layer[:, :, -1, a:b].sum(-1).mean() for a, b in self.placed.spans]) for layer in layers]
        ).mean(0)

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        layer, placed = module.layer_idx, self.placed
        if layer == 0:
            self.weights.append({})
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        group = query.shape[1] // key.shape[1]

        def logits(keys: Tensor) -> Tensor:
            z = query.double() @ keys.double().repeat_interleave(group, 1).transpose(2, 3) * scaling
            return z if softcap is None else softcap * torch.tanh(z / softcap)

        def visible() -> Tensor:
            if attention_mask is not None:
                return attention_mask
            n, s = query.shape[2], key.shape[2]
            return torch.arange(s)[None] <= torch.arange(n)[:, None] + s - n

        context = logits(key).exp() * visible()
        total = context.sum(-1, keepdim=True)
        sink = torch.zeros(())
        if s_aux is not None:
            sink = s_aux.double().exp().view(1, -1, 1, 1)
            total = total + sink
        parts = {"context": context}
        if placed is not None and placed.keys[layer] is not None:
            memory = (logits(placed.keys[layer][None]) / placed.temperature).exp()
            window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None)
            if placed.windowed and window:
                memory = memory * (kwargs["position_ids"][:, None, :, None] - placed.positions < window)
            mass = memory.sum(-1, keepdim=True)
            memory = memory * mass.clamp(min=1e-300) ** (placed.scale - 1)
            parts["memory"] = memory
            total = total + memory.sum(-1, keepdim=True)
        parts = {name: part / total for name, part in parts.items()}
        if s_aux is not None:
            parts["sink"] = (sink / total).expand_as(total)
        self.weights[-1][layer] = parts
        output = parts["context"] @ value.double().repeat_interleave(group, 1)
        if "memory" in parts:
            values = placed.values[layer][None].double()
            output = output + parts["memory"] @ values.repeat_interleave(group, 1)
        return output.to(query.dtype).transpose(1, 2).contiguous(), None


@contextmanager
def reference(model: Any, placed: Placed | None) -> Iterator[Reference]:
    """Run ``model`` with the reference attention."""
    state = Reference(placed)
    AttentionInterface.register("plain_reference", state.attend)
    AttentionMaskInterface.register("plain_reference", sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("plain_reference")
    try:
        with torch.no_grad():
            yield state
    finally:
        model.set_attn_implementation(before)
