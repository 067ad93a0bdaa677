"""Read placed memory through a model's attention and measure the share each memory gets; look at keys while writing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agentmem.errors import UnsupportedModel
from agentmem.model.attention import (
    NAME,
    Call,
    Hook,
    Placed,
    attached,
    attention_layers,
    plain_implementation,
    set_implementation,
)
from agentmem.model.softmax import Mixed, Segment


class Reader(Hook):
    """Reads placed memory and measures each memory's attention share. Made by ``reading``.

    The share of a memory in one forward is its part of the softmax mass (context and sinks included) at the last query
    position, the one that predicts the next token; mean over heads, over the layers that read memory, and over the rows
    of a batch.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._plain = plain_implementation(model)
        self._placed: Placed | None = None
        self._members: Tensor | None = None
        self._first = -1
        self._history: list[tuple[Placed, list[list[Tensor]]]] = []

    @property
    def placed(self) -> Placed | None:
        """What is read now."""
        return self._placed

    @property
    def shares(self) -> tuple[tuple[Placed, Tensor], ...]:
        """Per stretch of forwards between swaps: what was read, and its shares (forwards, memories), float32, CPU."""
        out = []
        for placed, steps in self._history:
            rows = [torch.stack(step).mean(0) for step in steps]
            empty = torch.zeros(0, len(placed.spans))
            out.append((placed, torch.stack([row.float().cpu() for row in rows]) if rows else empty))
        return tuple(out)

    @property
    def latest(self) -> tuple[int, int] | None:
        """Where ``shares`` holds those of the last forward: stretch and row. None when it read nothing."""
        return None if self._placed is None else (len(self._history) - 1, len(self._history[-1][1]) - 1)

    def swap(self, placed: Placed | None) -> None:
        """``read``, while the reader is attached. With nothing to read, the plain model runs bit for bit."""
        self.read(placed)
        wanted = self._plain if self._placed is None else NAME
        if self._model.config._attn_implementation != wanted:
            set_implementation(self._model, wanted)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The reader is attached inside; with nothing to read the model is left as it is."""
        if self._placed is None:
            yield
            return
        with attached(self._model, self):
            yield

    def read(self, placed: Placed | None) -> None:
        """Read something else from the next forward on; an empty one is nothing."""
        if placed is not None and (placed.n_tokens == 0 or all(key is None for key in placed.keys)):
            placed = None
        if placed is not None and placed is not self._placed:
            device = placed.positions.device
            n = placed.positions.shape[0]
            self._members = torch.zeros(n, len(placed.spans), device=device)
            for column, (start, stop) in enumerate(placed.spans):
                self._members[start:stop, column] = 1.0
            self._first = next(i for i, key in enumerate(placed.keys) if key is not None and key.shape[1] == n)
            self._history.append((placed, []))
        self._placed = placed

    def add(self, shares: Tensor) -> None:
        """Shares (memories,) of what is read, in a forward that another hook did (``Batch``)."""
        self._history[-1][1].append([shares])

    def segments(self, call: Call) -> Sequence[Segment]:
        """The placed memory of this layer."""
        placed = self._placed
        if placed is None or (keys := placed.keys[call.layer]) is None:
            return ()
        values = placed.values[call.layer]
        assert values is not None
        mask = None
        if placed.windowed and call.window is not None:
            if call.positions is None:
                raise UnsupportedModel(
                    "this model does not tell its attention layers the positions; use windowed=False"
                )
            far = call.positions[:, None, :, None] - placed.positions.to(call.positions.device)
            mask = far < call.window
        return (
            Segment(
                keys[None],
                values[None],
                mask=mask,
                temperature=placed.temperature,
                scale=placed.scale,
            ),
        )

    @torch.no_grad()
    def mixed(self, call: Call, segments: Sequence[Segment], result: Mixed) -> None:
        """Add this layer's shares to the step of the running forward."""
        if not segments:
            return
        assert self._members is not None
        (segment,), (_, lse) = segments, result.parts
        if segment.keys.shape[2] < self._members.shape[0]:
            return  # this layer reads no memory, only what stands before it
        steps = self._history[-1][1]
        if call.layer == self._first:
            steps.append([])
        batch, heads, _, dim = call.query.shape
        keys = segment.keys[0].to(lse.dtype)
        query = call.query[:, :, -1].reshape(batch, keys.shape[0], -1, dim).to(lse.dtype)
        logits = torch.einsum("bkgd,kmd->bkgm", query, keys) * call.scaling
        if call.softcap is not None:
            logits = call.softcap * torch.tanh(logits / call.softcap)
        logits = logits / segment.temperature
        if segment.mask is not None:
            logits = logits.masked_fill(~segment.mask[:, :, -1:], torch.finfo(logits.dtype).min)
        within = (logits.softmax(-1) @ self._members.to(logits)).reshape(batch, heads, -1)
        steps[-1].append((within * (lse - result.total)[:, :, -1:].exp()).mean((0, 1)))


@contextmanager
def reading(model: PreTrainedModel, placed: Placed | None) -> Iterator[Reader]:
    """Let ``model`` read ``placed`` by attention. One reader per model at a time: LocalModel holds a lock around it."""
    reader = Reader(model)
    with attached(model, reader):
        reader.swap(placed)
        yield reader


class _Seen(Exception):
    """Ends a forward whose further layers nobody needs."""


class Capture(Hook):
    """The new keys and values of every layer of one forward, rotated as the model rotated them. Made by ``capturing``.

    ``keys[layer]`` (B, kv_heads, T, head_dim), ``values[layer]`` (B, kv_heads, T, value_dim) and
    ``queries[layer]`` (B, heads, T, head_dim); ``scaling[layer]`` is the factor of the layer's logits.
    ``last`` is the last layer that is seen: the forward ends there.
    """

    def __init__(self, last: int | None = None) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.queries: dict[int, Tensor] = {}
        self.scaling: dict[int, float] = {}
        self._last = last

    def segments(self, call: Call) -> Sequence[Segment]:
        """Keep references; nothing is copied."""
        self.keys[call.layer] = call.keys
        self.values[call.layer] = call.values
        self.queries[call.layer] = call.query
        self.scaling[call.layer] = call.scaling
        if call.layer == self._last:
            raise _Seen
        return ()


@contextmanager
def capturing(model: PreTrainedModel) -> Iterator[Capture]:
    """See the keys and values of the forward inside, which reads no memory whatever was attached around it."""
    capture = Capture()
    with attached(model, capture):
        yield capture


def capture_up_to(model: PreTrainedModel, last: int, **inputs: Tensor) -> Capture:
    """Run ``model.base_model(**inputs)`` as far as the keys of layer ``last``; what comes after is not computed.

    Gradients flow where they are enabled.
    """
    capture = Capture(last)
    with attached(model, capture), suppress(_Seen):
        model.base_model(**inputs, use_cache=False)
    return capture


def hidden_before(model: PreTrainedModel, layer: int, **inputs: Tensor) -> Tensor:
    """Hidden states (B, T, hidden) that go into decoder layer ``layer``; it and those above it are not computed.

    The forward reads no memory. The same as ``output_hidden_states`` gives at that index.
    """
    attention = attention_layers(model)[layer]
    block = next(module for module in model.modules() if any(child is attention for child in module.children()))
    found: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        raise _Seen

    handle = block.register_forward_pre_hook(see, with_kwargs=True)
    try:
        with attached(model, Hook()), suppress(_Seen):
            model.base_model(**inputs, use_cache=False)
    finally:
        handle.remove()
    return found[0]
