"""Tune a language model to read its past by the ``memlong`` recipe: ``agentmem train memlong``.

MemLong's second stage (arXiv 2408.16967): the layers up to the memory layer are frozen, so that what is stored is the
same before, during and after tuning; LoRA on the attention of the layers above teaches them to read it. Several
histories are read side by side, each with a bank of its own that is emptied where a document ends. A chunk is predicted
from a local window and from what the chunk before it recalls: never from what it recalls itself, as in the published
code, which lets a text choose its memories by the words that are to be predicted. Gradients flow through the local
attention and the reading; what is stored is constant.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agentmem.errors import InvalidInput
from agentmem.model.attention import Placed, attached
from agentmem.model.local import LocalModel
from agentmem.model.rows import RowsReader
from agentmem.recipes.memlong import MemLong
from agentmem.retrieval import Embedder
from agentmem.training.bank import Bank
from agentmem.training.checkpoint import named, optimizer_tensors, restore_optimizer, under
from agentmem.training.histories import History, Window

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The matrices that LoRA is put on."""
IGNORE = -100


@dataclass(frozen=True)
class Tuning:
    """How to tune. Defaults are the paper's second stage where it can be said (rank, alpha, dropout, rate, weights).

    ``streams`` histories are read side by side, one chunk of each per step; ``window`` tokens are in context, the
    predicted chunk included. ``capacity`` is the number of chunks that a history keeps (32,768 tokens in the paper).
    ``memory`` False is the control: the same steps on the same windows, with nothing to recall.
    """

    steps: int = 1000
    streams: int = 8
    window: int = 1024
    rate: float = 5e-5
    warm_up: float = 0.1
    """First part of the run over which the learning rate rises; it falls to zero along a cosine after that."""
    weight_decay: float = 1e-4
    rank: int = 64
    alpha: int = 8
    dropout: float = 0.05
    capacity: int = 256
    statements: int = 0
    """Made-up statements that are strewn into each document (see ``statements.strewn``)."""
    memory: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("streams", 1), ("window", 32), ("rank", 1), ("alpha", 1), ("capacity", 2)):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} must be {least} or more, not {getattr(self, name)}")
        if not 0 < self.rate < 1 or not 0 <= self.dropout < 1 or not 0 <= self.warm_up < 1:
            raise InvalidInput(
                f"rate ({self.rate}), dropout ({self.dropout}) and warm_up ({self.warm_up}) must be shares of 1"
            )

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        rising = max(1.0, self.steps * self.warm_up)
        if step < rising:
            return self.rate * (step + 1) / rising
        done = (step - rising) / max(1.0, self.steps - rising)
        return float(self.rate * 0.5 * (1 + np.cos(np.pi * done)))


@dataclass
class Stream:
    """One history that is being read: which document, which chunk is next, and what can be recalled of it."""

    bank: Bank
    document: int = 0
    number: int = 0
    query: NDArray[np.float32] | None = None
    """Embedding of the chunk before the next one."""


@dataclass
class Tuner:
    """A model with LoRA on its upper layers, the histories, and where in them the run is.

    Raises:
        InvalidInput: the recipe cannot be served by the model, nothing is left to tune above the memory layer, or the
            model's attention does not consist of q, k, v and o matrices.
    """

    model: LocalModel
    recipe: MemLong
    embedder: Embedder
    histories: Sequence[History]
    tuning: Tuning
    step: int = 0
    streams: list[Stream] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recipe.check(self.model)
        self.layout = self.recipe.layout(self.model)
        prefix = len(self.model.chat.prefix_ids)
        if self.tuning.window + prefix > self.model.max_positions:
            raise InvalidInput(
                f"window is {self.tuning.window}, and {prefix} tokens come before it, but the model has "
                f"{self.model.max_positions} positions; use a shorter window"
            )
        longest = max(len(chunk) for history in self.histories for chunk in history.chunks)
        if longest > self.tuning.window:
            raise InvalidInput(f"a chunk of {longest} tokens does not fit into a window of {self.tuning.window}")
        self.base = self.model.fingerprint  # now: LoRA changes the weights that it is made of
        self.peft = with_lora(self.model, self.layout.memory_layer, self.tuning)
        self.parameters = {name: p for name, p in self.peft.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=self.tuning.rate, weight_decay=self.tuning.weight_decay
        )
        self._next = 0
        self.streams = [Stream(Bank(self.tuning.capacity), self._draw()) for _ in range(self.tuning.streams)]

    def run_step(self) -> float:
        """One step: predict the next chunk of every stream, learn from it, remember it. Returns the loss in nats."""
        torch.manual_seed(self.tuning.seed * 1_000_003 + self.step)  # of the dropout: a resumed run draws the same
        windows = [self._history(stream).window(stream.number, self.tuning.window) for stream in self.streams]
        memories = [self._recalled(stream, window) for stream, window in zip(self.streams, windows, strict=True)]
        loss = self._loss(windows, RowsReader(memories))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.tuning.rate_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._advance()
        self.step += 1
        return loss.item()

    def _loss(self, windows: Sequence[Window], reader: RowsReader) -> Tensor:
        ids, labels = batch(windows, self.model.chat.prefix_ids)
        device = self.model.device
        kind = torch.bfloat16 if self.model.dtype == torch.float32 else self.model.dtype
        self.peft.train()
        with attached(self.model.model, reader), torch.autocast(device.type, kind):
            logits = self.model.model(input_ids=ids.to(device), use_cache=False).logits
        self.peft.eval()
        return nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), labels[:, 1:].to(device).flatten(), ignore_index=IGNORE
        )

    def _recalled(self, stream: Stream, window: Window) -> Placed | None:
        """What the chunk before the predicted one recalls, of what the window does not show whole."""
        if stream.query is None:
            return None
        kvs = stream.bank.recall(stream.query, window.hidden, self.recipe.top_k)
        return self.recipe.place(self.model, kvs) if kvs else None

    def _advance(self) -> None:
        """Remember the chunks that were predicted, and go on; where a document ends, forget it and begin another."""
        if self.tuning.memory:
            histories = [self._history(stream) for stream in self.streams]
            chunks = [h.chunks[stream.number] for h, stream in zip(histories, self.streams, strict=True)]
            texts = [h.texts[stream.number] for h, stream in zip(histories, self.streams, strict=True)]
            kvs = self.model.encode_batch(chunks, self.model.chat.prefix_ids, (self.layout.memory_layer,))
            with plain(self.peft):
                vectors = self.embedder.embed(texts)
            for stream, kv, vector in zip(self.streams, kvs, vectors, strict=True):
                stream.bank.add(stream.number, kv, vector)
                stream.query = vector
        for stream in self.streams:
            stream.number += 1
            if stream.number == len(self._history(stream).chunks):
                stream.bank.clear()
                stream.document, stream.number, stream.query = self._draw(), 0, None

    def _history(self, stream: Stream) -> History:
        return self.histories[stream.document]

    def _draw(self) -> int:
        """The next document: all of them in random order, then all of them in another order."""
        round_, place = divmod(self._next, len(self.histories))
        self._next += 1
        order = list(range(len(self.histories)))
        random.Random(self.tuning.seed * 1_000_003 + round_).shuffle(order)
        return order[place]

    # ------------------------------------------------------------------------------------------------- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Adapter, optimizer and banks."""
        found = named({name: p.detach() for name, p in self.parameters.items()}, "adapter")
        found |= named(optimizer_tensors(self.optimizer), "optimizer")
        for at, stream in enumerate(self.streams):
            found |= named(stream.bank.tensors(), f"bank.{at}")
            if stream.query is not None:
                found[f"query.{at}"] = torch.from_numpy(stream.query)
        return found

    def state(self) -> dict[str, Any]:
        """Step and data position, and what a checkpoint must agree on with the run that takes it up."""
        return {
            "step": self.step,
            "next": self._next,
            "streams": [[stream.document, stream.number] for stream in self.streams],
            "agrees": self.agrees(),
        }

    def agrees(self) -> dict[str, Any]:
        """What must not change between the parts of one run."""
        return {
            "model": self.base,
            "embedder": self.embedder.name,
            "layout": [self.layout.memory_layer, list(self.layout.retrieval_layers), self.layout.positions],
            "top_k": self.recipe.top_k,
            "tuning": {name: value for name, value in vars(self.tuning).items() if name != "steps"},
            "documents": [[history.name, history.n_tokens] for history in self.histories],
        }

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go on where another run stopped.

        Raises:
            InvalidInput: it was a run with another model, embedder, recipe, data or other settings.
        """
        mine = self.agrees()
        if other := [key for key, value in state["agrees"].items() if mine[key] != value]:
            raise InvalidInput(
                f"the checkpoint is of a run with another {', '.join(other)} (then {state['agrees'][other[0]]!r}, now "
                f"{mine[other[0]]!r}); give the same, or another output folder"
            )
        with torch.no_grad():
            for name, value in under(tensors, "adapter").items():
                self.parameters[name].copy_(value)
        restore_optimizer(self.optimizer, under(tensors, "optimizer"))
        self.step, self._next = state["step"], state["next"]
        for at, (stream, (document, number)) in enumerate(zip(self.streams, state["streams"], strict=True)):
            stream.document, stream.number = document, number
            stream.bank.restore(under(tensors, f"bank.{at}"))
            stream.query = tensors[f"query.{at}"].numpy() if f"query.{at}" in tensors else None


def batch(windows: Sequence[Window], prefix: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Token ids and labels, both (rows, tokens), int64, padded on the right; only the scored chunks have labels."""
    rows = [[*prefix, *window.context, *window.scored] for window in windows]
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels = torch.full((len(rows), longest), IGNORE)
    for at, (row, window) in enumerate(zip(rows, windows, strict=True)):
        ids[at, : len(row)] = torch.tensor(row)
        labels[at, len(row) - len(window.scored) : len(row)] = torch.tensor(window.scored)
    return ids, labels


def with_lora(model: LocalModel, memory_layer: int, tuning: Tuning) -> Any:
    """Put LoRA on the attention of the layers above the memory layer and freeze everything else, in place.

    Raises:
        InvalidInput: there is no such layer or no such matrix.
    """
    from peft import LoraConfig, get_peft_model  # an extra, and slow to import

    above = list(range(memory_layer + 1, model.n_layers))
    if not above:
        raise InvalidInput(f"no layer lies above the memory layer {memory_layer}: there is nothing to tune")
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=list(ATTENTION),
        layers_to_transform=above,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(tuning.seed)
    try:
        with warnings.catch_warnings():  # peft asks transformers for something under its old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            return get_peft_model(model.model, config).eval()
    except ValueError as error:
        raise InvalidInput(
            f"LoRA needs attention with {', '.join(ATTENTION)}, as Llama, Qwen, Mistral and Gemma have: {error}"
        ) from error


@contextmanager
def plain(peft: Any) -> Iterator[None]:
    """The model as it was before tuning, inside."""
    with peft.disable_adapter():
        yield
