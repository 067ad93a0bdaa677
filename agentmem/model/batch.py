"""One decode step for several answers at once: each row has its own context and its own memory, read by attention.

Continuous batching as transformers has it (``generate_batch``) decodes rows that share one paged cache and nothing
else: an attention call sees packed tokens of all requests, without a way to give one of them further keys under the
same softmax, nor to change them in the middle of an answer. So rows are batched here plainly: the linear layers run
once for all rows, and attention runs over padded keys with a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from agentmem.model.attention import Call, Hook, Placed, attached, attention_layers
from agentmem.model.slab import Slab
from agentmem.model.softmax import Mixed, Segment


@dataclass(frozen=True, eq=False)
class _Reading:
    """What the rows' memories have in common for one step, made anew when a row's memory changes.

    ``tokens[layer][row]``, memory tokens there; ``members`` (B, M, n), 1 where a token belongs to a row's memory;
    ``layers`` (B, layers), what each layer counts in the mean of a row's shares; ``positions`` (B, M) and ``windowed``
    (B, 1, 1, 1) for rows whose memory a window hides; ``temperature`` (B, 1, 1, 1) and ``scale`` (B, 1, 1), or 1 where
    all rows have 1.
    """

    tokens: list[tuple[int, ...]]
    members: Tensor
    layers: Tensor
    positions: Tensor
    windowed: Tensor | None
    temperature: float | Tensor
    scale: float | Tensor


class Batch(Hook):
    """Rows that are decoded together. They come and go between two steps.

    A row's number is its place: ``leave`` moves the last row into the place that becomes free.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._lengths: list[int] = []
        self._memories: list[Placed | None] = []
        self._contexts: list[Slab] = []
        self._read: dict[int, Slab] = {}
        self._reading: _Reading | None = None
        self._at = torch.zeros(0, dtype=torch.int64)
        self._masks: dict[tuple[tuple[int, ...] | None, int | None], Tensor | None] = {}
        """By the memory tokens of each row (None: the context) and the layer's window."""
        self._received: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._lengths)

    def join(self, cache: DynamicCache, length: int, placed: Placed | None) -> int:
        """A new row: a context of ``length`` tokens, whose KV ``cache`` holds, and what it reads. Returns its place.

        A layer with a sliding window keeps no more than that of the context; the mask hides the rest.
        """
        row = len(self)
        if not row:  # nothing is kept of a batch that has ended
            self._contexts = [Slab(layer.keys[0], layer.values[0]) for layer in cache.layers]
            self._read = {}
        for slab, layer in zip(self._contexts, cache.layers, strict=True):
            slab.put(row, length - layer.keys.shape[2], layer.keys[0], layer.values[0])
        self._lengths.append(length)
        self._memories.append(None)
        self.read(row, placed)
        return row

    def leave(self, row: int) -> int:
        """Remove a row. Returns the place whose row has moved into it (``row`` itself: none has)."""
        last = len(self) - 1
        if row != last:
            for slab in (*self._contexts, *self._read.values()):
                slab.move(last, row)
            self._lengths[row], self._memories[row] = self._lengths[last], self._memories[last]
        del self._lengths[last], self._memories[last]
        self._reading = None
        if not self._lengths:
            self._contexts, self._read = [], {}
        return last

    def read(self, row: int, placed: Placed | None) -> None:
        """Let a row read something else from the next step on."""
        self._memories[row], self._reading = placed, None
        for layer in range(len(self._contexts)):
            keys = None if placed is None else placed.keys[layer]
            if placed is None or keys is None:
                if layer in self._read:
                    self._read[layer].clear(row)
                continue
            values = placed.values[layer]
            assert values is not None
            if layer not in self._read:
                self._read[layer] = Slab(keys, values)
                self._read[layer].reserve(len(self), 0)
            self._read[layer].put(row, 0, keys, values)

    @torch.no_grad()
    def step(self, tokens: Sequence[int], keeps: Sequence[bool]) -> tuple[Tensor, list[Tensor | None]]:
        """Feed every row its next token.

        A row whose ``keeps`` is False stands still: it is computed with the others, and nothing of it is kept.

        Returns:
            Logits (rows, vocab) in the model's dtype; and per row the attention share of each memory that it reads,
            float32, on the CPU (None for one that reads nothing).
        """
        device = self._model.device
        self._at = torch.tensor(self._lengths, device=device)
        self._masks, self._received = {}, {}
        longest = max(self._lengths) + 1
        for slab in self._contexts:
            slab.reserve(len(self), longest)
        with attached(self._model, self):
            logits: Tensor = self._model(
                input_ids=torch.tensor(tokens, device=device)[:, None],
                position_ids=self._at[:, None],
                use_cache=False,
                logits_to_keep=1,
            ).logits[:, -1]
        for row, keep in enumerate(keeps):
            self._lengths[row] += keep
        return logits, self._shares()

    # ---------------------------------------------------------------------------------------------------- attention

    def context(self, call: Call, context: Segment) -> Segment:
        """Each row's own tokens, the new one included."""
        slab, n = self._contexts[call.layer], len(self)
        slab.append(self._at, call.keys, call.values)
        longest = max(self._lengths) + 1
        mask = self._mask(None, call.window)
        return Segment(slab.keys[:n, :, :longest], slab.values[:n, :, :longest], mask=mask)

    def segments(self, call: Call) -> Sequence[Segment]:
        """Each row's own memory."""
        reading = self._now()
        if reading is None or call.layer not in self._read:
            return ()
        tokens = reading.tokens[call.layer]
        if not (most := max(tokens)):
            return ()
        slab, n = self._read[call.layer], len(self)
        return (
            Segment(
                slab.keys[:n, :, :most],
                slab.values[:n, :, :most],
                mask=self._mask(tokens, call.window),
                temperature=reading.temperature,
                scale=reading.scale,
                mass=True,
            ),
        )

    def mixed(self, call: Call, segments: Sequence[Segment], result: Mixed) -> None:
        """Keep what each memory token received: (B, M), mean over heads."""
        if segments:
            received = result.masses[1]
            assert received is not None
            self._received[call.layer] = received.mean(1)

    def _mask(self, tokens: tuple[int, ...] | None, window: int | None) -> Tensor | None:
        """What a layer with this window sees; computed once per step."""
        if (tokens, window) not in self._masks:
            mask = self._context_mask(window) if tokens is None else self._memory_mask(tokens, window)
            self._masks[tokens, window] = mask
        return self._masks[tokens, window]

    def _context_mask(self, window: int | None) -> Tensor | None:
        shortest, longest = min(self._lengths), max(self._lengths)
        if shortest == longest and (window is None or longest < window):
            return None
        places, at = torch.arange(longest + 1, device=self._at.device), self._at[:, None]
        visible = places <= at
        if window is not None:
            visible &= at - places < window
        return _additive(visible[:, None, None], self._model.dtype)

    def _memory_mask(self, tokens: tuple[int, ...], window: int | None) -> Tensor | None:
        reading, most = self._reading, max(tokens)
        assert reading is not None
        windowed = None if window is None else reading.windowed
        if min(tokens) == most and windowed is None:
            return None
        places = torch.arange(most, device=self._at.device)
        visible = (places < torch.tensor(tokens, device=self._at.device)[:, None])[:, None, None]
        if window is not None and windowed is not None:
            near = (self._at[:, None] - reading.positions[:, :most] < window)[:, None, None]
            visible = visible & (near | ~windowed)
        return _additive(visible, self._model.dtype)

    def _now(self) -> _Reading | None:
        """What is read now; None where no row reads anything."""
        if self._reading is None and any(self._memories):
            self._reading = _together(self._memories, len(self._contexts), self._model.device)
        return self._reading

    def _shares(self) -> list[Tensor | None]:
        """As ``Reader``: what the memories of each row received, mean over the layers that read them."""
        if (reading := self._reading) is None or not self._received:
            return [None] * len(self)
        most = reading.members.shape[1]
        numbers = [number for number, received in self._received.items() if received.shape[1] == most]
        received = torch.stack([self._received[number] for number in numbers], 1).float()
        tokens = (received * reading.layers[:, numbers, None]).sum(1)
        shares = (tokens[:, None] @ reading.members)[:, 0].cpu()
        return [
            None if placed is None else share[: len(placed.spans)]
            for placed, share in zip(self._memories, shares, strict=True)
        ]


@torch.no_grad()
def can_batch(model: PreTrainedModel) -> bool:
    """Whether a batched step gives what the model computes for each row by itself; tried with two short rows.

    It does not where a layer keeps something else than its own keys and values (shared, compressed).
    """
    batch, wanted = Batch(model), []
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    for row in ([3, 5, 7, 11, 13], [17, 19]):
        ids = torch.tensor([row], device=model.device) % vocabulary
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        layers = [layer for layer in cache.layers if layer.is_initialized]
        if len(layers) != len(attention_layers(model)) or any(layer.keys.shape[2] != len(row) for layer in layers):
            return False
        batch.join(cache, len(row), None)
        last = ids[:, -1:]
        wanted.append(model(input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1])
    try:
        got, _ = batch.step([13 % vocabulary, 19 % vocabulary], [True, True])
    except (RuntimeError, ValueError, TypeError):  # keys of another shape than the layer's cache holds
        return False
    both = torch.stack(wanted).float()
    return bool((got.float() - both).abs().max() <= 1e-2 * both.abs().max())


def _together(memories: Sequence[Placed | None], n_layers: int, device: torch.device) -> _Reading:
    """The memories of all rows, padded to the longest."""
    rows = len(memories)
    most = max(0 if placed is None else len(placed.positions) for placed in memories)
    spans = max(0 if placed is None else len(placed.spans) for placed in memories)
    members = torch.zeros(rows, most, spans)
    layers = torch.zeros(rows, n_layers)
    positions = torch.zeros(rows, most, dtype=torch.int64, device=device)
    for row, placed in enumerate(memories):
        if placed is None:
            continue
        n = len(placed.positions)
        positions[row, :n] = placed.positions
        for column, (start, stop) in enumerate(placed.spans):
            members[row, start:stop, column] = 1.0
        # A layer that is shorter reads no memory, only what stands before it.
        whole = [number for number, keys in enumerate(placed.keys) if keys is not None and keys.shape[1] == n]
        layers[row, whole] = 1.0 / len(whole)
    some = [placed for placed in memories if placed is not None]
    temperature: float | Tensor = 1.0
    scale: float | Tensor = 1.0
    if any((placed.temperature, placed.scale) != (1.0, 1.0) for placed in some):
        both = [(1.0, 1.0) if placed is None else (placed.temperature, placed.scale) for placed in memories]
        temperature, scale = torch.tensor(both, device=device).unbind(1)
        temperature, scale = temperature.view(-1, 1, 1, 1), scale.view(-1, 1, 1)
    windowed = None
    if any(placed.windowed for placed in some):
        flags = [placed is not None and placed.windowed for placed in memories]
        windowed = torch.tensor(flags, device=device).view(-1, 1, 1, 1)
    tokens = [
        tuple(0 if placed is None or (keys := placed.keys[layer]) is None else keys.shape[1] for placed in memories)
        for layer in range(n_layers)
    ]
    return _Reading(tokens, members.to(device), layers.to(device), positions, windowed, temperature, scale)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers that are added to logits. A finite floor: a row that sees nothing must not become NaN."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)
