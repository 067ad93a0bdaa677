"""Explicit memory inside a training step: references encoded on the fly, gradients flowing through what is kept.

The tensors are laid out as the ``memory3`` recipe lays them out at inference (a test compares the logits of both), but
the references' forward is part of the graph. The choice of the kept tokens has no gradient of its own; it gets one in
two ways. A straight-through term: ``log w - stop_gradient(log w)``, which is zero, is added to the logits of a token,
so one that deserves more attention raises its score as well. And where all tokens are kept, ``choice_loss`` teaches
the score what answers really attended to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentmem.model.attention import Call, Hook
from agentmem.model.reading import capture_up_to
from agentmem.model.rotary import Rotary
from agentmem.model.selection import attention_received, top_tokens
from agentmem.model.softmax import Mixed, Segment

INTERVAL = 128
"""Positions that all references share, right before the context."""


@dataclass(frozen=True)
class LayerMemory:
    """What one layer reads: ``keys`` and ``values`` (sets, kv_heads, S, dim), ``bias`` (sets, kv_heads, S), float32.

    The first keys are the shared prefix; ``reference`` (S,) numbers the reference that each of the others is of, -1 for
    the prefix. ``bias`` is 0 for a token that is there and -inf for padding; gradients of the choice flow through it.
    ``log_share`` (sets, kv_heads, S), float32, is the log of each token's part of its reference's score, 0 elsewhere.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor
    log_share: Tensor
    reference: Tensor


def encode_references(
    model: PreTrainedModel,
    rotary: Rotary,
    prefix: Sequence[int],
    references: Sequence[Sequence[Sequence[int]]],
    layers: Sequence[int],
    keep: int | None,
) -> dict[int, LayerMemory]:
    """Memory of sets of references (as many in each), by layer; layers that read none hold the prefix only.

    Each reference runs alone behind the prefix, at the positions at which it is read, up to the last memory layer.
    ``keep`` tokens per KV head are kept; None for all.
    """
    sets, per_set, start, n_layers = len(references), len(references[0]), len(prefix), len(rotary.layers)
    flat = [list(ids) for one in references for ids in one]
    longest = max(map(len, flat))
    device = model.device
    ids = torch.tensor([[*prefix, *one, *[0] * (longest - len(one))] for one in flat], device=device)
    lengths = torch.tensor([len(one) for one in flat], device=device)
    valid = torch.arange(longest, device=device) < lengths[:, None]
    at = torch.arange(-INTERVAL - start, longest - INTERVAL, device=device)
    seen = capture_up_to(model, max(layers), input_ids=ids, position_ids=at.expand(len(flat), -1))
    shared = capture_up_to(model, n_layers - 1, input_ids=ids[:1, :start], position_ids=at[None, :start])
    out = {}
    for layer in range(n_layers):
        keys, values = shared.keys[layer].expand(sets, -1, -1, -1), shared.values[layer].expand(sets, -1, -1, -1)
        bias = log_share = torch.zeros(keys.shape[:3], device=device)
        number = torch.full((start,), -1, device=device)
        if layer in layers:
            own_keys, own_values = seen.keys[layer][:, :, start:], seen.values[layer][:, :, start:]
            received = _received(
                rotary, layer, seen.queries[layer][:, :, start:], own_keys, at[start:], valid, seen.scaling[layer]
            )
            index = top_tokens(received.detach(), longest if keep is None else keep)
            own_keys, own_values = (
                t.gather(2, index[..., None].expand(-1, -1, -1, t.shape[-1])) for t in (own_keys, own_values)
            )
            chosen = received.gather(2, index)
            log = chosen.masked_fill(chosen.isinf(), 1.0).clamp_min(1e-9).log()
            own_bias = (log - log.detach()).masked_fill(chosen.isinf(), float("-inf"))
            all_of_it = received.masked_fill(received.isinf(), 0.0).sum(-1, keepdim=True)
            own_share = (log - all_of_it.log()).masked_fill(chosen.isinf(), 0.0)
            keys = torch.cat([keys, _beside(own_keys, sets)], 2)
            values = torch.cat([values, _beside(own_values, sets)], 2)
            bias = torch.cat([bias, _beside(own_bias[..., None], sets)[..., 0]], 2)
            log_share = torch.cat([log_share, _beside(own_share[..., None], sets)[..., 0]], 2)
            number = torch.cat([number, torch.arange(per_set, device=device).repeat_interleave(index.shape[-1])])
        out[layer] = LayerMemory(keys, values, bias, log_share, number)
    return out


def _received(
    rotary: Rotary, layer: int, queries: Tensor, keys: Tensor, at: Tensor, valid: Tensor, scaling: float
) -> Tensor:
    """Score of each token (references, kv_heads, tokens), without positions."""
    plain_queries, plain_keys = (rotary.unrotate(layer, t.flatten(0, 1), at).view(t.shape) for t in (queries, keys))
    return attention_received(plain_queries, plain_keys, scaling, valid=valid)


def _beside(tensor: Tensor, sets: int) -> Tensor:
    """(sets * references, kv_heads, kept, dim) -> (sets, kv_heads, references * kept, dim)."""
    _, heads, kept, dim = tensor.shape
    return tensor.view(sets, -1, heads, kept, dim).transpose(1, 2).reshape(sets, heads, -1, dim)


class ReferenceReader(Hook):
    """Lets a context read references. ``visible`` is (rows, queries, references), bool; the prefix always is.

    Neighbouring rows share a set of references. ``asking`` (rows, queries), bool: tokens whose attention is added up
    for ``choice_loss``.
    """

    def __init__(self, memory: dict[int, LayerMemory], visible: Tensor, asking: Tensor | None = None):
        self._memory, self._visible, self._asking = memory, visible, asking
        self._demand: dict[int, Tensor] = {}

    def segments(self, call: Call) -> Sequence[Segment]:
        """This layer's memory, as far as each query may see it."""
        memory = self._memory[call.layer]
        shown = self._visible[:, :, memory.reference.clamp_min(0)] | (memory.reference < 0)
        shared = call.query.shape[0] // memory.keys.shape[0]
        keys, values, bias = (t.repeat_interleave(shared, 0) for t in (memory.keys, memory.values, memory.bias))
        bias = bias.repeat_interleave(call.query.shape[1] // bias.shape[1], 1)
        mask = bias[:, :, None].masked_fill(~shown[:, None], float("-inf"))
        return (Segment(keys, values, mask=mask),)

    @torch.no_grad()
    def mixed(self, call: Call, segments: Sequence[Segment], result: Mixed) -> None:
        """Add up what each memory token receives from the asking tokens: (sets, kv_heads, S)."""
        if self._asking is None:
            return
        (segment,) = segments
        assert segment.mask is not None
        batch, heads, n, dim = call.query.shape
        sets, kv_heads, size = self._memory[call.layer].bias.shape
        rows = call.query.reshape(batch, kv_heads, -1, dim).float() @ segment.keys.float().transpose(2, 3)
        logits = rows.view(batch, heads, n, size) * call.scaling + segment.mask
        weights = (logits - result.total[..., None]).exp() * self._asking[:, None, :, None]
        self._demand[call.layer] = weights.sum(2).view(sets, -1, kv_heads, heads // kv_heads, size).sum((1, 3))

    def choice_loss(self) -> Tensor:
        """Cross-entropy between what the asking tokens attended to and the references' own scores, over all layers.

        The prefix is left out: it is always there.
        """
        asked = {layer: demand * (self._memory[layer].reference >= 0) for layer, demand in self._demand.items()}
        total = torch.stack([demand.sum() for demand in asked.values()]).sum()
        return -sum((demand * self._memory[layer].log_share).sum() for layer, demand in asked.items()) / total
