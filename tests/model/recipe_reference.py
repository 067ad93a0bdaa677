"""Every recipe worked out by hand, from the papers' formulas, on a plain transformers model.

Nothing here comes from agentmem but the container ``Placed``. Keys are never un-rotated or moved: they are computed
where they are read, by the model's own attention modules, from the hidden states of a plain forward over the memory's
text. The reading itself is ``plain_reference``: every logit in float64, one softmax.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from plain_reference import reference
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from agentmem.model.attention import Placed

PLAIN = "eager"
"""Of transformers' own functions the one that leaves nothing out in any version (sdpa: Gemma 2's cap, before 5.21)."""
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Projected:
    """What one attention module makes of its tokens: (heads, tokens, dim) each, rotated."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float


class ByHand:
    """A plain model whose attention modules can be called one by one."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._depth = 0
        model.set_attn_implementation(PLAIN)
        named = {
            m.layer_idx: m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "num_key_value_groups")
        }
        if not named:  # GPT-NeoX says less about its modules
            named = {m.layer_idx: m for m in model.modules() if "Attention" in type(m).__name__}
        self.modules: list[nn.Module] = [named[number] for number in range(model.config.num_hidden_layers)]

    def arguments(self, ids: Sequence[int], positions: Tensor) -> list[Arguments]:
        """What each attention module is called with in a plain forward: hidden states, rotary tables, mask."""
        calls: list[Arguments] = []

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in self.modules]
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(PLAIN)
        try:
            with torch.no_grad():
                self.model(input_ids=torch.tensor([list(ids)]), position_ids=positions[None], use_cache=False)
        finally:
            self.model.set_attn_implementation(before)
            for handle in handles:
                handle.remove()
        return calls

    def project(
        self, written: list[Arguments], drop: int, positions: Tensor, layer: int, read_by: int | None = None
    ) -> Projected:
        """Queries, keys and values that ``layer`` makes of the tokens of ``written`` behind the first ``drop``.

        They are rotated to ``positions`` the way that layer ``read_by`` rotates: its own module is called, with the
        weights of ``layer``.
        """
        read_by = layer if read_by is None else read_by
        reads = self.modules[read_by]
        module = copy.deepcopy(reads, {id(reads.config): reads.config})  # one config names the attention of all
        module.load_state_dict(self.modules[layer].state_dict())
        hidden = hidden_states(written[layer])[:, drop:]
        return self.call(module, hidden, self.arguments([5] * hidden.shape[1], positions)[read_by])

    def call(self, module: nn.Module, hidden: Tensor, arguments: Arguments) -> Projected:
        """What an attention module makes of ``hidden`` (1, tokens, hidden), with the other arguments as recorded."""
        args, kwargs = arguments
        seen: list[Projected] = []

        def attend(
            _module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            _mask: Any,
            scaling: float | None = None,
            **_: Any,
        ) -> tuple[Tensor, None]:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            seen.append(Projected(query[0], key[0], value[0], scale))
            return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2).contiguous(), None

        with self.attending(attend), torch.no_grad():
            if "hidden_states" in kwargs:
                module(*args, **{**kwargs, "hidden_states": hidden})
            else:
                module(hidden, *args[1:], **kwargs)
        (found,) = seen
        return found

    @contextmanager
    def attending(self, function: Any) -> Iterator[None]:
        """Every attention module calls ``function`` inside; the contexts may be nested."""
        name = f"by_hand_{self._depth}"
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(name)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self.model.set_attn_implementation(before)

    def plain(self, ids: Sequence[int]) -> Tensor:
        """Logits of the context alone."""
        with torch.no_grad():
            return self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]

    def read(self, ids: Sequence[int], placed: Placed) -> Tensor:
        """Logits of a context at positions 0, 1, 2, ... that reads ``placed``."""
        with reference(self.model, placed), torch.no_grad():
            return self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


def parallel(
    by_hand: ByHand, texts: Sequence[Sequence[int]], context: Sequence[int], *, temperature: float, scale: float
) -> Tensor:
    """Chunks written behind one BOS, read in one interval that ends at the context (seeds 3.6; APE)."""
    longest = max(len(text) for text in texts)
    keys: dict[int, list[Tensor]] = {}
    values: dict[int, list[Tensor]] = {}
    for text in texts:
        written = by_hand.arguments([1, *text], torch.arange(1 + len(text)))
        for layer in range(len(by_hand.modules)):
            at = torch.arange(len(text)) - longest
            found = by_hand.project(written, 1, at, layer)
            keys.setdefault(layer, []).append(found.keys)
            values.setdefault(layer, []).append(found.values)
    return by_hand.read(context, _placed(len(by_hand.modules), keys, values, temperature, scale))


def memlong(
    by_hand: ByHand,
    texts: Sequence[Sequence[int]],
    context: Sequence[int],
    *,
    memory_layer: int,
    read_by: Sequence[int],
    contiguous: bool,
) -> Tensor:
    """Chunks written alone, one layer kept, read by the layers above it (seeds 1.2, 1.4, 1.5).

    Every memory key at one position, one before the context; or all of them end to end up to the context.
    """
    keys: dict[int, list[Tensor]] = {}
    values: dict[int, list[Tensor]] = {}
    start = -sum(len(text) for text in texts)
    for text in texts:
        written = by_hand.arguments([1, *text], torch.arange(1 + len(text)))
        at = start + torch.arange(len(text)) if contiguous else torch.full((len(text),), -1)
        start += len(text)
        for reader in read_by:
            found = by_hand.project(written, 1, at, memory_layer, reader)
            keys.setdefault(reader, []).append(found.keys)
            values.setdefault(reader, []).append(found.values)
    return by_hand.read(context, _placed(len(by_hand.modules), keys, values))


def memory3(
    by_hand: ByHand,
    texts: Sequence[Sequence[int]],
    context: Sequence[int],
    *,
    prefix: Sequence[int],
    layers: Sequence[int],
    keep: int | None,
    softmax: bool,
    interval: int,
) -> Tensor:
    """References written behind a shared prefix, a few tokens per KV head kept, one interval (seeds 3.2, 3.5, 3.6).

    The prefix is read by every layer, just before the interval; kept tokens keep their places in it.
    """
    n_layers = len(by_hand.modules)
    alone = by_hand.arguments(prefix, torch.arange(len(prefix)))
    before = torch.arange(len(prefix)) - len(prefix) - interval
    sinks = [by_hand.project(alone, 0, before, layer) for layer in range(n_layers)]
    keys = {layer: [sinks[layer].keys] for layer in range(n_layers)}
    values = {layer: [sinks[layer].values] for layer in range(n_layers)}
    for text in texts:
        n = len(text)
        written = by_hand.arguments([*prefix, *text], torch.arange(len(prefix) + n))
        for layer in layers:
            placed = by_hand.project(written, len(prefix), torch.arange(n) - interval, layer)
            bare = by_hand.project(written, len(prefix), torch.zeros(n, dtype=torch.int64), layer)
            chosen = [list(range(n))] * len(bare.keys) if keep is None else _most_attended(by_hand, bare, keep, softmax)
            keys[layer].append(torch.stack([key[rows] for key, rows in zip(placed.keys, chosen, strict=True)]))
            values[layer].append(torch.stack([value[rows] for value, rows in zip(placed.values, chosen, strict=True)]))
    return by_hand.read(context, _placed(n_layers, keys, values))


def _most_attended(by_hand: ByHand, bare: Projected, keep: int, softmax: bool) -> list[list[int]]:
    """Per KV head the tokens with the largest w_j = sum_i a_ij, without mask and without positions (seeds 3.2).

    ``bare`` is rotated to position 0, which turns nothing, but some rotary tables (yarn) also stretch.
    """
    stretch = getattr(by_hand.model.base_model.rotary_emb, "attention_scaling", 1.0)
    group = len(bare.queries) // len(bare.keys)
    chosen = []
    for head, key in enumerate(bare.keys):
        received = torch.zeros(key.shape[0], dtype=torch.float64)
        for query in bare.queries[head * group : (head + 1) * group]:
            logits = query.double() @ key.double().T * bare.scaling / stretch**2
            received += (logits.softmax(-1) if softmax else logits.exp()).sum(0)
        chosen.append(sorted(received.argsort(descending=True)[:keep].tolist()))
    return chosen


def _placed(
    n_layers: int,
    keys: dict[int, list[Tensor]],
    values: dict[int, list[Tensor]],
    temperature: float = 1.0,
    scale: float = 1.0,
) -> Placed:
    lengths = [key.shape[1] for key in max(keys.values(), key=len)]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return Placed(
        tuple(torch.cat(keys[layer], 1) if layer in keys else None for layer in range(n_layers)),
        tuple(torch.cat(values[layer], 1) if layer in values else None for layer in range(n_layers)),
        tuple((end - length, end) for end, length in zip(ends, lengths, strict=True)),
        torch.zeros(ends[-1], dtype=torch.int64),
        temperature,
        scale,
    )


def hidden_states(call: Arguments) -> Tensor:
    """What an attention module was called on."""
    args, kwargs = call
    hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return hidden
