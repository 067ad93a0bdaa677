"""LocalModel: one Hugging Face decoder on this machine, with everything a memory needs of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agentmem.errors import InvalidInput, UnsupportedModel
from agentmem.model.attention import Placed, set_implementation
from agentmem.model.chat import ChatFormat
from agentmem.model.constraint import Constraint, Grammars
from agentmem.model.decoder import Decoder
from agentmem.model.fingerprint import kv_fingerprint, model_fingerprint
from agentmem.model.generation import Generation, OnStride, Request
from agentmem.model.kv import KV
from agentmem.model.load import load
from agentmem.model.lock import FairLock
from agentmem.model.positions import max_positions
from agentmem.model.prefix import Prefix
from agentmem.model.reading import Capture, Reader, capture_up_to, capturing, hidden_before, reading
from agentmem.model.rotary import Rotary
from agentmem.model.sampling import Sampling

_BATCH_TOKENS = 2048
"""Padded tokens per forward when several texts are run at once."""
_EMBED_TOKENS = 512
"""Tokens of a text that its embedding is made of."""

Pick = Callable[[Tensor, Tensor, float], Tensor]
"""Chooses the tokens of a chunk that are kept: see ``LocalModel.encode_batch``."""


class LocalModel:
    """A decoder-only language model whose keys can be moved, its tokenizer, and its chat format.

    One lock guards the model: calls from several threads run one after another. Answers of several threads are decoded
    together, and between two of their steps whoever waits for the model gets it.

    Attributes:
        model: the transformers model, in eval mode.
        tokenizer: its tokenizer.
        config: the config of its text decoder.
        chat: how it writes a dialogue.
        rotary: how its keys carry their position.
        max_positions: how many positions a context may have.
        lock: held while the model runs.
        decoder: generates answers.

    Raises:
        UnsupportedModel: memory cannot be attached to this architecture, or its keys cannot be moved.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = model.config.get_text_config(decoder=True)
        if getattr(self.config, "attn_logit_softcapping", None):
            # transformers before 5.21 leaves Gemma 2's soft cap out under sdpa, and says nothing.
            set_implementation(model, "eager")
        self.rotary = Rotary(model)
        if not self.rotary.movable:
            stuck = [number for number, layer in enumerate(self.rotary.layers) if layer.kind == "absolute"]
            raise UnsupportedModel(
                f"{model.config.model_type!r} has learned absolute positions inside its keys (layers {stuck}), so "
                "stored memory cannot be moved to where it is read; use a model with rotary positions or none (Llama, "
                "Qwen2/3, Mistral, Gemma, Phi, OLMo, SmolLM)"
            )
        eos = model.generation_config.eos_token_id
        self.chat = ChatFormat(tokenizer, [] if eos is None else [eos] if isinstance(eos, int) else eos)
        self.max_positions = max_positions(self.config)
        self.lock = FairLock()
        self.decoder = Decoder(model, tokenizer, self.lock)
        self._prefixes: dict[tuple[int, ...], KV] = {}

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> LocalModel:
        """Open a hub id or a local folder; see ``agentmem.model.load.load`` for defaults.

        Raises:
            ModelLoadError: nothing usable there.
            UnsupportedModel: memory cannot be attached to this architecture.
        """
        return cls(*load(name_or_path, device, dtype))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Data type that it computes in."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def n_layers(self) -> int:
        """Number of decoder layers, all of which attend."""
        return len(self.rotary.layers)

    @property
    def hidden_size(self) -> int:
        """Length of an embedding of ``embed``."""
        return int(self.config.hidden_size)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of weights, tokenizer, template, config and dtype; computed at first use, then remembered.

        Do not change the weights of a loaded model: its fingerprint would not follow.
        """
        with self.lock:
            return model_fingerprint(self.model, self.tokenizer)

    def kv_fingerprint(self, recipe_identity: str) -> str:
        """Identity of the KV that this model writes in the way that ``recipe_identity`` names."""
        return kv_fingerprint(self.fingerprint, recipe_identity)

    def encode(self, ids: Sequence[int], prefix: Sequence[int] = (), layers: Sequence[int] | None = None) -> KV:
        """KV of ``ids`` after ``prefix``, whose own KV is dropped: a pure function of both and the weights.

        No memory is read while encoding, whatever is being read elsewhere. Keys are un-rotated; dtype and device are
        the model's. ``layers`` are the ones that are kept (ascending; None: all); those above the last one do not run.

        Raises:
            InvalidInput: no ids, unknown ids, more than ``max_positions``, or layers that the model does not have.
        """
        return self.encode_batch([ids], prefix, layers)[0]

    def encode_batch(
        self,
        chunks: Sequence[Sequence[int]],
        prefix: Sequence[int] = (),
        layers: Sequence[int] | None = None,
        pick: Pick | None = None,
    ) -> list[KV]:
        """``encode`` of several chunks, in few forwards. Equal to single calls up to rounding.

        ``pick(queries, keys, scaling)`` may choose which tokens are kept, in each layer and KV head: it gets the
        chunk's un-rotated queries (heads, tokens, head_dim) and keys (kv_heads, tokens, head_dim) of one layer and the
        factor of its logits, and returns token numbers (kv_heads, kept), as many in every layer.

        Raises:
            InvalidInput: as ``encode``, before any chunk is encoded.
        """
        wanted = self._checked_layers(layers)
        rows = [self._checked([*prefix, *ids]) if ids else self._checked([]) for ids in chunks]
        out: dict[int, KV] = {}
        for batch in _batches([len(row) for row in rows]):
            with self.lock, torch.no_grad():
                hook = capture_up_to(self.model, wanted[-1], input_ids=self._padded([rows[i] for i in batch]))
            for at, i in enumerate(batch):
                out[i] = self._unrotated(hook, at, len(prefix), len(rows[i]), wanted, pick)
        return [out[i] for i in range(len(rows))]

    def prefix_kv(self, ids: Sequence[int]) -> KV:
        """KV of a text that many memories share in front of them; encoded once, then remembered.

        Raises:
            InvalidInput: as ``encode``.
        """
        key = tuple(ids)
        if key not in self._prefixes:
            self._prefixes[key] = self.encode(key)
        return self._prefixes[key]

    def embed(self, texts: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Embeddings (n, hidden_size), float32, each of length 1: mean hidden state of the text's tokens.

        Taken after two thirds of the layers, where meaning is richest; later ones turn to the next token. The first
        position is left out: it is an attention sink, the same for every text. Texts are cut at 512 tokens.

        Raises:
            InvalidInput: an empty text, a NUL or a lone surrogate.
        """
        prefix = self.chat.prefix_ids
        rows = []
        for text in texts:
            ids = self.chat.encode(text)[: min(_EMBED_TOKENS, self.max_positions - len(prefix))]
            if not ids:
                raise InvalidInput(f"cannot embed a text without tokens: {text!r}")
            rows.append([*prefix, *ids])
        out = np.zeros((len(rows), self.hidden_size), dtype=np.float32)
        layer = min(round(self.n_layers * 2 / 3), self.n_layers - 1)
        for batch in _batches([len(row) for row in rows]):
            with self.lock, torch.no_grad():
                hidden = hidden_before(self.model, layer, input_ids=self._padded([rows[i] for i in batch]))
            for at, i in enumerate(batch):
                states = hidden[at, len(prefix) : len(rows[i])].float()
                out[i] = nn.functional.normalize(states.mean(0), dim=0).cpu().numpy()
        return out

    def place(
        self,
        kvs: Sequence[KV],
        starts: Sequence[int],
        *,
        temperature: float = 1.0,
        scale: float = 1.0,
        windowed: bool = False,
        read_by: Sequence[int] | None = None,
        spaced: bool = True,
    ) -> Placed:
        """Rotate each KV to positions ``start .. start + n - 1`` and lay them side by side for reading.

        Starts may be negative, and ranges may overlap. The context's own positions begin at 0, so memory at -L .. -1
        comes before it. The stored tensors are not changed. See ``Placed`` for the arguments not named here.

        Args:
            kvs: what to read.
            starts: the first position of each.
            temperature: see ``Placed``.
            scale: see ``Placed``.
            windowed: see ``Placed``.
            read_by: layers that all read the KVs' one layer, each with its own way of rotating. None: every layer
                reads its own.
            spaced: False puts all tokens of a KV at its start.

        Raises:
            InvalidInput: not one start per KV, KVs of different layers, or a KV that does not fit this model.
        """
        if len(kvs) != len(starts):
            raise InvalidInput(f"place needs one start per KV, got {len(kvs)} KVs and {len(starts)} starts")
        if any(kv.layers != kvs[0].layers for kv in kvs):
            raise InvalidInput("KVs of different layers cannot be placed together")
        if kvs and kvs[0].layers[-1] >= self.n_layers:
            raise InvalidInput(f"the KV has layer {kvs[0].layers[-1]}, but the model has only {self.n_layers} layers")
        if windowed and any(kv.offsets is not None for kv in kvs):
            raise InvalidInput("KV of picked tokens has no one position per token; use windowed=False")
        if read_by is not None and kvs and (kvs[0].n_layers != 1 or not set(read_by) <= set(range(self.n_layers))):
            raise InvalidInput(
                f"layers {list(read_by)} of {self.n_layers} cannot read KV of layers {kvs[0].layers}: it must be one"
            )
        keys: list[Tensor | None] = [None] * self.n_layers
        values: list[Tensor | None] = [None] * self.n_layers
        spans, positions, end = [], [torch.zeros(0, dtype=torch.int64)], 0
        for kv, start in zip(kvs, starts, strict=True):
            spans.append((end, end + kv.n_tokens))
            end += kv.n_tokens
            positions.append(start + torch.arange(kv.n_tokens) * spaced)
        with torch.no_grad():
            for column, layer in enumerate(kvs[0].layers if kvs else ()):
                joined = torch.cat([kv.keys[column].to(self.device) for kv in kvs], 1)
                heads = 1 if all(kv.offsets is None for kv in kvs) else joined.shape[0]
                pairs = zip(kvs, starts, strict=True)
                at = torch.cat([_places(kv, column, start, heads, spaced) for kv, start in pairs], 1).to(self.device)
                shared = torch.cat([kv.values[column].to(self.device, self.dtype) for kv in kvs], 1)
                for reader in (layer,) if read_by is None else read_by:
                    keys[reader] = self.rotary.rotate(reader, joined, at, self.dtype)
                    values[reader] = shared
        where = torch.cat(positions).to(self.device)
        return Placed(tuple(keys), tuple(values), tuple(spans), where, temperature, scale, windowed)

    def precede(self, placed: Placed, kv: KV, start: int) -> Placed:
        """``placed`` with a text before it that is read in every layer of its KV, and counts as no memory.

        Raises:
            InvalidInput: a KV that does not fit this model.
        """
        before = self.place([kv], [start])
        shift = kv.n_tokens
        return replace(
            placed,
            keys=tuple(map(_joined, before.keys, placed.keys)),
            values=tuple(map(_joined, before.values, placed.values)),
            spans=tuple((first + shift, end + shift) for first, end in placed.spans),
            positions=torch.cat([before.positions, placed.positions]),
        )

    def logits(self, ids: Sequence[int], placed: Placed | None = None) -> Tensor:
        """Logits (n, vocab) of a context at positions 0 .. n - 1 that reads ``placed``, in the model's dtype.

        Raises:
            InvalidInput: no ids, unknown ids, or more than ``max_positions``.
        """
        row = torch.tensor([self._checked(ids)], device=self.device)
        with self.reading(placed), torch.no_grad():
            logits: Tensor = self.model(input_ids=row, use_cache=False).logits[0]
            return logits

    @contextmanager
    def reading(self, placed: Placed | None) -> Iterator[Reader]:
        """The model reads ``placed`` inside; no other thread uses it meanwhile."""
        with self.lock, reading(self.model, placed) as reader:
            yield reader

    @contextmanager
    def capturing(self) -> Iterator[Capture]:
        """Sees the queries, keys and values of one forward inside; no other thread uses the model meanwhile."""
        with self.lock, capturing(self.model) as capture:
            yield capture

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        placed: Placed | None = None,
        reads: Sequence[tuple[int, Placed | None]] = (),
        on_stride: OnStride | None = None,
        stride: int = 64,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        cancel: threading.Event | None = None,
        grammar: str | None = None,
        begun: Prefix | None = None,
    ) -> Generation:
        """Begin to generate while reading ``placed``, beside whatever else is being generated.

        ``reads`` lets stretches of the prompt read different memories: pairs of a stretch's first token and what is
        read from there on, the first one at token 0. The last one is read by the answer, too. It stands in for
        ``placed``.

        ``on_stride`` is called, in a thread of its own, after every ``stride`` generated tokens and says what to read
        from there on: a Placed, None (nothing), or UNCHANGED. It may run this model. Setting ``cancel`` stops at the
        next token.
        With a ``grammar`` (``model.constraint``) the answer follows it.
        What ``begun`` (``Generation.prefix`` of an earlier prompt) has in common with a first stretch that reads
        nothing is not computed again.

        Raises:
            InvalidInput: prompt and answer do not fit into ``max_positions``, unknown ids, or a number out of range.
        """
        if max_new_tokens < 1 or stride < 1:
            raise InvalidInput(f"max_new_tokens ({max_new_tokens}) and stride ({stride}) must be 1 or more")
        ids = self._checked(prompt_ids)
        if len(ids) + max_new_tokens > self.max_positions:
            raise InvalidInput(
                f"a prompt of {len(ids)} tokens and {max_new_tokens} new ones need {len(ids) + max_new_tokens} "
                f"positions, the model has {self.max_positions}; shorten the prompt or lower max_new_tokens"
            )
        starts = [start for start, _ in reads]
        if reads and (starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= len(ids) or placed is not None):
            raise InvalidInput(
                f"reads must begin at token 0, ascend and stay within the prompt of {len(ids)} tokens, and take the "
                f"place of placed; they begin at {starts}"
            )
        request = Request(
            prompt_ids=ids,
            reads=tuple(reads) or ((0, placed),),
            on_stride=on_stride,
            stride=stride,
            max_new_tokens=max_new_tokens,
            sampling=sampling or Sampling(),
            stop_ids=self.chat.stop_ids,
            stop_strings=(*stop, *self.chat.stop_strings),
            constraint=self.constraint(grammar),
            cancel=cancel or threading.Event(),
            begun=begun,
        )
        return Generation(self.decoder, request)

    @cached_property
    def grammars(self) -> Grammars:
        """Grammars over this model's tokens. Raises InvalidInput when the extra ``structured`` is not installed."""
        return Grammars(self.tokenizer, self.config.vocab_size)

    def constraint(self, grammar: str | None) -> Constraint | None:
        """A new answer's way through a grammar. Raises InvalidInput for one that cannot be followed."""
        if grammar is None:
            return None
        self.grammars.check(grammar)
        return Constraint(self.grammars, grammar, self.chat.stop_ids)

    def _padded(self, rows: Sequence[list[int]]) -> Tensor:
        """Ids padded on the right: causality alone keeps the padding from being seen."""
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)

    @torch.no_grad()
    def _unrotated(
        self, hook: Capture, row: int, start: int, stop: int, layers: Sequence[int], pick: Pick | None
    ) -> KV:
        positions = torch.arange(start, stop, device=self.device)
        keys, values, picked = [], [], []
        for layer in layers:
            keys.append(self.rotary.unrotate(layer, hook.keys[layer][row, :, start:stop], positions))
            values.append(hook.values[layer][row, :, start:stop].clone(memory_format=torch.contiguous_format))
            if pick is not None:
                queries = self.rotary.unrotate(layer, hook.queries[layer][row, :, start:stop], positions)
                picked.append(pick(queries, keys[-1], hook.scaling[layer]))
        kv = KV(tuple(keys), tuple(values), tuple(layers))
        return kv if pick is None else kv.pick(picked)

    def _checked_layers(self, layers: Sequence[int] | None) -> tuple[int, ...]:
        wanted = tuple(range(self.n_layers)) if layers is None else tuple(layers)
        if not wanted or list(wanted) != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= self.n_layers:
            raise InvalidInput(f"layers must be ascending numbers from 0 to {self.n_layers - 1}, not {list(wanted)}")
        return wanted

    def _checked(self, ids: Sequence[int]) -> list[int]:
        row = [int(token) for token in ids]
        if not row:
            raise InvalidInput("there are no token ids; give at least one")
        if min(row) < 0 or max(row) >= self.config.vocab_size:
            bad = next(token for token in row if not 0 <= token < self.config.vocab_size)
            raise InvalidInput(f"token id {bad} is not in the vocabulary of {self.config.vocab_size}")
        if len(row) > self.max_positions:
            raise InvalidInput(f"{len(row)} tokens do not fit into the model's {self.max_positions} positions")
        return row


def _places(kv: KV, column: int, start: int, heads: int, spaced: bool) -> Tensor:
    """Positions (heads, tokens) of a KV that is served from ``start`` on, or all of it at ``start``."""
    offsets = torch.arange(kv.n_tokens).expand(heads, -1) if kv.offsets is None else kv.offsets[column].cpu()
    return start + offsets * spaced


def _joined(before: Tensor | None, after: Tensor | None) -> Tensor | None:
    """Tokens (heads, tokens, dim) of both, where a layer has both."""
    return after if before is None else before if after is None else torch.cat([before, after], 1)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in groups of similar length, each group at most ``_BATCH_TOKENS`` when padded."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[index] > _BATCH_TOKENS:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
