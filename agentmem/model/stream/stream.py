"""A stream: tokens without end go through a model that attends to sinks, a window and retrieved blocks.

InfLLM (arXiv 2402.04617 section 3): what leaves the window is kept in blocks; at every step each layer retrieves the
blocks that its queries look for, and reads them, the sinks and the window in one softmax. Nothing is trained, and no
position beyond the window is ever used: what is far stands at one distance.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from agentmem.errors import InvalidInput
from agentmem.model.attention import Call, Hook, attached
from agentmem.model.generation import Generation, Request
from agentmem.model.local import LocalModel
from agentmem.model.sampling import Sampling
from agentmem.model.softmax import Mixed, Segment
from agentmem.model.stream.bank import Bank, Blocks, BlocksInRam
from agentmem.model.stream.layer import LayerState
from agentmem.model.stream.layout import Layout, check_plan
from agentmem.model.stream.plan import StreamPlan
from agentmem.model.stream.tail import read_tail, write_tail

RAM_BYTES = 256 * 2**20
"""Bound of the blocks that a stream keeps in RAM, besides its hot cache."""


@dataclass(frozen=True)
class _Step:
    """The tokens of one forward: ``first`` .. ``first + n - 1`` of the stream, and the masks that its layers share.

    ``positions`` (n,) are the model's. A mask is additive, (n, keys), or None where everything is visible.
    """

    first: int
    n: int
    positions: Tensor
    sinks: int
    sink_mask: Tensor | None
    rest: tuple[int, int]
    """Places in the window of the tokens that are beyond it for some query, and in no block yet."""
    rest_mask: Tensor | None


class Stream(Hook):
    """One context without end, of one model.

    Args:
        model: the model; its lock is held while the stream runs.
        plan: what is attended to.
        blocks: where blocks are kept; in RAM if None.
        layout: what ``check_plan`` gave for the model and plan, where it is known.
        ram_bytes: bound of the blocks kept in RAM in front of ``blocks``.

    Raises:
        InvalidInput: as ``check_plan``.
    """

    def __init__(
        self,
        model: LocalModel,
        plan: StreamPlan,
        blocks: Blocks | None = None,
        *,
        layout: Layout | None = None,
        ram_bytes: int = RAM_BYTES,
    ) -> None:
        self.model, self.plan = model, plan
        self.layout = check_plan(model, plan) if layout is None else layout
        room = (plan.n_local or 0) + plan.n_init + 2 * plan.block_size + plan.step
        self._layers = [
            LayerState(shape, plan.n_init, room, far, model.device)
            for shape, far in zip(self.layout.shapes, self.layout.far, strict=True)
        ]
        self.bank = Bank(
            self.layout.kept,
            BlocksInRam() if blocks is None else blocks,
            cached_blocks=plan.cached_blocks if plan.keeps_blocks else 0,
            decay=plan.decay if plan.cache_policy == "decayed" else None,
            ram_bytes=ram_bytes,
            device=model.device,
        )
        self.n_tokens = 0
        """Tokens fed so far."""
        self.n_blocks = 0
        """Blocks that have left the window."""
        self._start = 0  # number of the window's first token
        self._origin = 0  # number of the token that stands at position 0
        self._step: _Step | None = None
        self._local: dict[int | None, tuple[int, Tensor | None]] = {}
        self._chosen: dict[int, list[list[int]]] = {}
        self._open = False
        self.retrieved: dict[int, list[list[int]]] = {}
        """Per layer, the blocks that each KV head read in the last step."""
        self._shares: dict[int, float] = {}
        self._counted = 0

    # ---------------------------------------------------------------------------------------------------- feeding

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold the model for several ``feed`` calls: cheaper than attaching for each of them."""
        with self.model.lock, attached(self.model.model, self):
            self._open = True
            try:
                yield
            finally:
                self._open = False

    @torch.no_grad()
    def feed(self, ids: Sequence[int], *, last_alone: bool = False, all_logits: bool = False) -> Tensor:
        """Read more tokens, ``plan.step`` at a time.

        ``last_alone`` makes the last token a step of its own, as at decoding, so that blocks are retrieved for it
        alone. Returns the logits of the last token (vocab,), or of all (n, vocab), in the model's dtype.

        Raises:
            InvalidInput: no ids, or unknown ones; nothing was read then.
        """
        row = [int(token) for token in ids]
        vocabulary = self.model.config.vocab_size
        if not row or min(row) < 0 or max(row) >= vocabulary:
            raise InvalidInput(f"feed needs ids from 0 to {vocabulary - 1}, and at least one; got {row[:8]} ...")
        if not self._open:
            with self.attached():
                return self.feed(row, last_alone=last_alone, all_logits=all_logits)
        body = row[:-1] if last_alone and len(row) > 1 else row
        pieces = [body[at : at + self.plan.step] for at in range(0, len(body), self.plan.step)]
        if len(body) < len(row):
            pieces.append(row[-1:])
        logits = [self._forward(piece, all_logits or piece is pieces[-1], all_logits) for piece in pieces]
        return torch.cat(logits) if all_logits else logits[-1][-1]

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        cancel: threading.Event | None = None,
        grammar: str | None = None,
    ) -> Generation:
        """Read a prompt and begin to generate, as ``LocalModel.generate`` does. Feed nothing else until it has ended.

        Every generated token but the last becomes part of the stream. The prompt may be of any length.

        Raises:
            InvalidInput: no prompt, or a number out of range.
        """
        if max_new_tokens < 1 or not prompt_ids:
            raise InvalidInput(f"max_new_tokens ({max_new_tokens}) must be 1 or more, and the prompt not empty")
        model = self.model
        request = Request(
            prompt_ids=list(prompt_ids),
            reads=((0, None),),
            on_stride=None,
            stride=1,
            max_new_tokens=max_new_tokens,
            sampling=sampling or Sampling(),
            stop_ids=model.chat.stop_ids,
            stop_strings=(*stop, *model.chat.stop_strings),
            context=self,
            constraint=model.constraint(grammar),
            cancel=cancel or threading.Event(),
        )
        return Generation(model.decoder, request)

    def _forward(self, ids: list[int], head: bool, all_logits: bool) -> Tensor:
        self._begin(len(ids))
        assert self._step is not None
        device = self.model.device
        inputs = {
            "input_ids": torch.tensor([ids], device=device),
            "position_ids": self._step.positions[None],
            "use_cache": False,
        }
        if head:
            logits: Tensor = self.model.model(**inputs, logits_to_keep=0 if all_logits else 1).logits[0]
        else:  # nobody looks at these: the decoder without its head
            self.model.model.base_model(**inputs)
            logits = torch.empty(0, device=device)
        self.n_tokens += len(ids)
        self._step = None
        self.retrieved, self._chosen = self._chosen, {}
        self._evict()
        return logits

    def _begin(self, n: int) -> None:
        """Positions and masks of the next ``n`` tokens."""
        plan, device, dtype = self.plan, self.model.device, self.model.dtype
        first = self.n_tokens
        if plan.n_local is not None and first + n - self._origin > self.model.max_positions:
            origin = max(self._start, first - plan.n_local)
            self._turn(origin, origin)
        positions = torch.arange(first - self._origin, first - self._origin + n, device=device)
        self._local = {}
        newest = first + n - 1
        beyond = 0 if plan.n_local is None else max(0, newest - plan.n_local + 1)  # tokens that someone is far from
        sinks = min(plan.n_init, beyond)
        queries = torch.arange(first, first + n, device=device)[:, None]

        def hidden(numbers: Tensor) -> Tensor | None:
            near = queries - numbers < (plan.n_local or 0)
            return _additive(near, dtype) if bool(near.any()) else None

        sink_mask = hidden(torch.arange(sinks, device=device)) if sinks else None
        rest_from = max(self._start, plan.n_init)
        rest = (rest_from - self._start, max(rest_from, beyond) - self._start)
        if not plan.keeps_blocks:
            rest = (0, 0)
        rest_mask = None
        if rest[1] > rest[0]:
            rest_mask = hidden(torch.arange(self._start + rest[0], self._start + rest[1], device=device))
        self._step = _Step(first, n, positions, sinks, sink_mask, rest, rest_mask)

    def _turn(self, first: int, origin: int) -> None:
        """Let position 0 be token ``origin``; the window's keys from ``first`` on are turned anew, from ``raw``."""
        self._origin = origin
        places = slice(first - self._start, self.n_tokens - self._start)
        positions = torch.arange(first - origin, self.n_tokens - origin, device=self.model.device)
        for number, state in enumerate(self._layers):
            state.rotated[:, places] = self.model.rotary.rotate(number, state.raw[:, places], positions)

    # ---------------------------------------------------------------------------------------------------- attention

    def context(self, call: Call, context: Segment) -> Segment:
        """Keep the new tokens; the window and they are one segment, in which the newest ``n_local`` are visible."""
        step, plan = self._step, self.plan
        assert step is not None
        state = self._layers[call.layer]
        rotary, at = self.model.rotary, step.first - self._start
        raw = rotary.unrotate(call.layer, call.keys[0], step.positions)
        # Turned again from what is kept, so that a stream that was closed and opened again sees the very same keys.
        state.write(at, raw, rotary.rotate(call.layer, raw, step.positions), call.values[0])
        if step.first < plan.n_init:
            end = min(step.first + step.n, plan.n_init)
            state.sink_keys[:, step.first : end] = raw[:, : end - step.first]
            state.sink_values[:, step.first : end] = call.values[0][:, : end - step.first]
        if plan.n_local is None and call.window is None:
            return context
        lo, mask = self._visible(call.window)
        keys, values = state.rotated[None, :, lo : at + step.n], state.values[None, :, lo : at + step.n]
        wanted = state.far and plan.keeps_blocks and plan.representatives == "mass"
        return Segment(keys, values, mask=None if mask is None else mask[None, None], mass=wanted)

    def _visible(self, window: int | None) -> tuple[int, Tensor | None]:
        """First visible place of the window for any query of this step, and the mask from there on."""
        step = self._step
        assert step is not None
        if window not in self._local:
            limits = [limit for limit in (window, self.plan.n_local) if limit is not None]
            near = min(limits)
            lo = max(0, step.first - near + 1 - self._start)
            mask = None
            if step.n > 1:
                numbers = torch.arange(self._start + lo, step.first + step.n, device=self.model.device)
                queries = torch.arange(step.first, step.first + step.n, device=self.model.device)[:, None]
                mask = _additive((numbers > queries) | (queries - numbers >= near), self.model.dtype)
            self._local[window] = (lo, mask)
        return self._local[window]

    def segments(self, call: Call) -> Sequence[Segment]:
        """What is beyond the window: sinks, retrieved blocks, and tokens that are in no block yet."""
        step, plan, state = self._step, self.plan, self._layers[call.layer]
        assert step is not None
        at = step.first - self._start
        if plan.n_local is None:
            past = Segment(state.rotated[None, :, :at], state.values[None, :, :at])
            return (past,) if at and call.window is None else ()
        if not state.far or not (step.sinks or step.rest[1] > step.rest[0] or self.n_blocks):
            return ()
        rotary = self.model.rotary
        edge = plan.n_local - 1 + (plan.n_init if plan.far == "before_window" else 0)
        still = rotary.unrotate(call.layer, call.query[0], step.positions)
        query = rotary.rotate(call.layer, still, torch.tensor([edge], device=still.device))
        keys, values = [state.sink_keys[:, : step.sinks]], [state.sink_values[:, : step.sinks]]
        if plan.far == "before_window":
            keys[0] = rotary.rotate(call.layer, keys[0], torch.arange(step.sinks, device=still.device))
        n_blocks = 0
        if self.n_blocks and plan.keeps_blocks:
            chosen = self._choose(state, query)
            self._chosen[call.layer] = chosen
            block_keys, block_values = self.bank.gather(call.layer, chosen)
            n_blocks = block_keys.shape[1]
            keys.append(block_keys)
            values.append(block_values)
        if not sum(part.shape[1] for part in keys) + step.rest[1] - step.rest[0]:
            return ()
        keys.append(state.raw[:, slice(*step.rest)])
        far_keys = torch.cat(keys, 1)
        if plan.far == "window_edge":
            far_keys = rotary.at_zero(call.layer, far_keys)
        values.append(state.values[:, slice(*step.rest)])
        mask = None
        if step.sink_mask is not None or step.rest_mask is not None:
            n_rest = step.rest[1] - step.rest[0]
            mask = query.new_zeros(step.n, step.sinks + n_blocks + n_rest)
            if step.sink_mask is not None:
                mask[:, : step.sinks] = step.sink_mask
            if step.rest_mask is not None:
                mask[:, step.sinks + n_blocks :] = step.rest_mask
            mask = mask[None, None]
        wanted = n_blocks > 0 and plan.cache_policy == "decayed"
        return (Segment(far_keys[None], torch.cat(values, 1)[None], mask, query=query[None], mass=wanted),)

    def _choose(self, state: LayerState, query: Tensor) -> list[list[int]]:
        """Blocks per KV head, in the stream's order (InfLLM section 3.2; per GQA group as InfLLM-v2 does)."""
        asking = query.float().mean(1).view(state.kv_heads, -1, query.shape[-1]).sum(1)
        scores = torch.einsum("hd,hnd->hn", asking, state.representatives[:, : self.n_blocks])
        if self.plan.selection == "all_heads":
            scores = scores.sum(0, keepdim=True).expand(state.kv_heads, -1)
        best = scores.topk(min(self.plan.top_k, self.n_blocks), -1).indices.sort(-1).values
        return [[int(number) for number in row] for row in best.tolist()]

    def mixed(self, call: Call, segments: Sequence[Segment], result: Mixed) -> None:
        """Add up what the window's tokens and the retrieved blocks received."""
        step, plan, state = self._step, self.plan, self._layers[call.layer]
        assert step is not None
        if not plan.keeps_blocks or not state.far:
            return
        at = step.first - self._start
        if plan.representatives == "product":
            state.mass[:, : at + step.n] += self._products(call, state, at)
        elif (received := result.masses[0]) is not None:
            lo, _ = self._visible(call.window)
            state.mass[:, lo : at + step.n] += received[0].float().view(state.kv_heads, -1, received.shape[-1]).sum(1)
        if (chosen := self._chosen.get(call.layer)) is not None:
            masses = None
            if (received := result.masses[1]) is not None:
                blocks = received[0, :, step.sinks : step.sinks + len(chosen[0]) * plan.block_size].float()
                masses = blocks.view(state.kv_heads, -1, len(chosen[0]), plan.block_size).sum((1, 3))
            self.bank.used(call.layer, chosen, masses)

            if masses is not None and step.n == 1:
                self._count(call.layer, chosen, masses / call.query.shape[1] / len(self.layout.kept))

    def count_reads(self) -> None:
        """Begin to count what decoded tokens read."""
        self._shares, self._counted = {}, 0

    def counted_reads(self) -> dict[int, float]:
        """Per block, the share of attention that decoded tokens gave it: mean over tokens, heads and far layers.

        Measured where the cache policy is ``decayed``; empty otherwise.
        """
        return {block: share / max(1, self._counted) for block, share in self._shares.items()}

    def _count(self, layer: int, chosen: list[list[int]], masses: Tensor) -> None:
        self._counted += layer == min(self.layout.kept)
        for blocks, shares in zip(chosen, masses.tolist(), strict=True):
            for block, share in zip(blocks, shares, strict=True):
                self._shares[block] = self._shares.get(block, 0.0) + share

    def _products(self, call: Call, state: LayerState, at: int) -> Tensor:
        """(kv_heads, tokens): sum of q . k over this step's queries behind a token, as long as it is in their window.

        The paper's r_m (section 3.2) without its constant 1 / l_L.
        """
        step = self._step
        assert step is not None
        assert self.plan.n_local is not None
        keys = state.rotated[:, : at + step.n].float()
        grouped = call.query[0].float().view(state.kv_heads, -1, step.n, keys.shape[-1]).sum(1)
        summed = torch.nn.functional.pad(grouped.cumsum(1), (0, 0, 1, 0))
        numbers = torch.arange(self._start, step.first + step.n, device=keys.device)
        until = (numbers + self.plan.n_local - step.first).clamp(0, step.n)
        since = (numbers + 1 - step.first).clamp(0, step.n)
        return (keys * (summed[:, until] - summed[:, torch.minimum(since, until)])).sum(-1) * call.scaling

    # ---------------------------------------------------------------------------------------------------- eviction

    def _evict(self) -> None:
        """Let whole blocks leave the window once every token of them is beyond it."""
        plan = self.plan
        if plan.n_local is None:
            return
        before = self._start
        while self._block_start + plan.block_size + plan.n_local <= self.n_tokens:
            if plan.keeps_blocks:
                self._keep_block(self._block_start - before)
            self._start = self._block_start + plan.block_size
            self.n_blocks += 1
        if self._start > before:
            for state in self._layers:
                state.shift(self._start - before, self.n_tokens - self._start)

    def _keep_block(self, place: int) -> None:
        """Hand the block at this place of the window to the bank."""
        size, kept, index = self.plan.block_size, {}, []
        for number in self.layout.kept:
            keys, values, representative = self._layers[number].block(place, size, self.plan.n_repr)
            representative = self.model.rotary.at_zero(number, representative[:, None])[:, 0]
            self._layers[number].add_representative(self.n_blocks, representative)
            kept[number] = (keys, values)
            index.append(representative.cpu().flatten())
        self.bank.append(kept, torch.cat(index).view(torch.uint8).numpy().tobytes() if index else b"")

    @property
    def _block_start(self) -> int:
        """Number of the first token of the next block."""
        return self.plan.n_init + self.n_blocks * self.plan.block_size

    # ---------------------------------------------------------------------------------------------------- keeping

    def tail(self) -> bytes:
        """All that is in no block: window, sinks and counters, as one safetensors buffer.

        With the blocks and their index it continues the stream, with the same logits: see ``restore``.
        """
        about = {"n_tokens": self.n_tokens, "n_blocks": self.n_blocks, "start": self._start, "origin": self._origin}
        about["kept"] = self.n_blocks if self.plan.keeps_blocks else 0
        return write_tail(self._layers, self.n_tokens - self._start, about)

    def restore(self, tail: bytes | bytearray, index: bytes | bytearray) -> None:
        """Go on from a ``tail`` and the index entries of its blocks. The stream must be new, and of the same plan.

        Raises:
            PayloadDamaged: these bytes are not the tail and index of such a stream; it stays empty then.
        """
        about, parts, representatives = read_tail(tail, index, self._layers, self.layout)
        self.n_tokens, self.n_blocks = about["n_tokens"], about["n_blocks"]
        self._start, self._origin = about["start"], about["origin"]
        n = self.n_tokens - self._start
        for state, layer in zip(self._layers, parts, strict=True):
            state.write(0, layer["raw"], layer["raw"], layer["values"])
            state.mass[:, :n] = layer["mass"]
            state.sink_keys[:], state.sink_values[:] = layer["sink_keys"], layer["sink_values"]
        offset = 0
        for number, shape in self.layout.kept.items():
            width = shape.kv_heads * shape.key_dim
            self._layers[number].set_representatives(representatives[:, offset : offset + width])
            offset += width
        self._turn(max(self._start, self._origin), self._origin)


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """True -> the lowest number, False -> 0: a finite floor, so that a row that sees nothing does not become NaN."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)
