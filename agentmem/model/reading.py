"""Read placed memory through a model's attention and measure the share each memory gets; look at keys while writing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentmem.errors import UnsupportedModel
from agentmem.model.attention import NAME, Call, Hook, Placed, attached, plain_implementation, set_implementation
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
            out.append((placed, torch.stack(rows).float().cpu() if rows else empty))
        return tuple(out)

    def swap(self, placed: Placed | None) -> None:
        """Read something else from the next forward on. With None or an empty one, the plain model runs bit for bit."""
        if placed is not None and (placed.n_tokens == 0 or all(key is None for key in placed.keys)):
            placed = None
        if placed is not None and placed is not self._placed:
            device = placed.positions.device
            self._members = torch.zeros(placed.n_tokens, len(placed.spans), device=device)
            for column, (start, stop) in enumerate(placed.spans):
                self._members[start:stop, column] = 1.0
            self._first = next(layer for layer, key in enumerate(placed.keys) if key is not None)
            self._history.append((placed, []))
        self._placed = placed
        wanted = self._plain if placed is None else NAME
        if self._model.config._attn_implementation != wanted:
            set_implementation(self._model, wanted)

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


class Capture(Hook):
    """The new keys and values of every layer of one forward, rotated as the model rotated them. Made by ``capturing``.

    ``keys[layer]`` (B, kv_heads, T, head_dim), ``values[layer]`` (B, kv_heads, T, value_dim) and
    ``queries[layer]`` (B, heads, T, head_dim); ``scaling[layer]`` is the factor of the layer's logits.
    """

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.queries: dict[int, Tensor] = {}
        self.scaling: dict[int, float] = {}

    def mixed(self, call: Call, segments: Sequence[Segment], result: Mixed) -> None:
        """Keep references; nothing is copied."""
        self.keys[call.layer] = call.keys.detach()
        self.values[call.layer] = call.values.detach()
        self.queries[call.layer] = call.query.detach()
        self.scaling[call.layer] = call.scaling


@contextmanager
def capturing(model: PreTrainedModel) -> Iterator[Capture]:
    """See the keys and values of the forward inside, which reads no memory whatever was attached around it."""
    capture = Capture()
    with attached(model, capture):
        yield capture
