"""Tokens per second: the model alone, with the references' text in its prompt, and with memory. Recall included.

As in Memory3's table 21: 128 tokens in and 128 out, a batch of requests with different memories, nothing in the RAM
cache. Text in the prompt retrieves once; memory retrieves for each 64 tokens of the prompt and again after 64
generated ones. All contenders run the same loop, one after the other in every round, so that a slow moment of the
machine hits all of them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache

from agentmem.errors import InvalidInput
from agentmem.evaluation.figures import spread
from agentmem.evaluation.progress import Advance, silent
from agentmem.evaluation.recall import CODEC, USER, place_of, write_base
from agentmem.evaluation.result import Plot, Result, Row
from agentmem.llm import MemoryLLM
from agentmem.model.attention import Call, Hook, Placed, attached
from agentmem.model.local import LocalModel
from agentmem.model.softmax import Segment
from agentmem.recipes import Recipe, memory_recipe
from agentmem.records import Scope
from agentmem.retrieval import ModelEmbedder
from agentmem.store import ScopedMemories
from agentmem.training.references import knowledge_base

TOKENS_IN = TOKENS_OUT = 128
NAMES = ("no memory", "text in the prompt", "memory")


def throughput(
    model: str | Path | None = None,
    *,
    recipe: str | Recipe = "memory3",
    embedder: str | Path | None = None,
    facts: int = 10_000,
    batch: int = 8,
    rounds: int = 5,
    seed: int = 0,
    folder: Path | None = None,
    advance: Advance = silent,
) -> Result:
    """Generated tokens per second of a batch of requests, from the first recall to the last token.

    Args:
        model: folder or hub id; None is the bundled model. Speed does not depend on what it has learned.
        recipe: how memory is written and read; every reference must take as much room as the others.
        embedder: folder or hub id of the model whose hidden states search the base; None for the model itself.
        facts: size of the knowledge base.
        batch: requests at once.
        rounds: how often each contender runs; one more before, unmeasured.
        seed: of the knowledge base and the requests.
        folder: where the store is kept, to be used again; None for a temporary one.
        advance: hears how far it is.

    Raises:
        InvalidInput: a number out of range, or a recipe or model that cannot be measured so.
    """
    chosen = memory_recipe(recipe)
    if min(facts, batch, rounds) < 1:
        raise InvalidInput(f"facts ({facts}), batch ({batch}) and rounds ({rounds}) must be 1 or more")
    searching = None if embedder is None else ModelEmbedder(LocalModel.load(embedder))
    with place_of(folder) as place:
        llm = MemoryLLM(
            model,
            store=place / "memory.db",
            recipe=chosen,
            embedder=searching,
            threshold=None,
            hot_bytes=0,
            codec=CODEC,
        )
        with llm:
            llm.ingest(write_base(llm, place, facts, seed), user=USER, warm=False, advance=advance)
            requests = [_request(llm, facts, seed, number) for number in range(batch)]
            race = Race(llm, chosen, llm.store.scope(Scope(user=USER)), requests)
            race.warm_up()
            seconds: dict[str, list[float]] = {name: [] for name in NAMES}
            turns = 0
            for number in range(rounds + 1):
                for name in NAMES[number % 3 :] + NAMES[: number % 3]:
                    began = time.perf_counter()
                    race.run(name)
                    if number:
                        seconds[name].append(time.perf_counter() - began)
                    turns += 1
                    advance("throughput", turns, (rounds + 1) * 3)
    settings = {
        "model": "bundled" if model is None else Path(model).name,
        "parameters": llm.model.model.num_parameters(),
        "recipe": chosen.name,
        "facts": facts,
        "batch": batch,
        "tokens in": TOKENS_IN,
        "tokens out": TOKENS_OUT,
        "rounds": rounds,
        "tokens of references in the prompt": race.reference_tokens,
    }
    plot = Plot("contender", "tokens_per_second", title="Generated tokens per second, recall included")
    return Result("throughput", settings, _rows(seconds, batch), plot)


def _rows(seconds: dict[str, list[float]], batch: int) -> list[Row]:
    """Median and quartiles over the rounds; ratios are of each round's own pair."""
    rows: list[Row] = []
    for name in NAMES:
        speed = spread([batch * TOKENS_OUT / s for s in seconds[name]])
        row: Row = {"contender": name, "tokens_per_second": round(speed["median"], 2)}
        row |= {"tokens_per_second_q1": round(speed["q1"], 2), "tokens_per_second_q3": round(speed["q3"], 2)}
        for other in NAMES[:2]:
            ratio = spread([theirs / own for theirs, own in zip(seconds[other], seconds[name], strict=True)])
            row[f"times_{other.replace(' ', '_')}"] = round(ratio["median"], 3)
        rows.append(row)
    return rows


@dataclass(frozen=True)
class _Request:
    """A prompt of 128 tokens, and its text in stretches of 64."""

    ids: list[int]
    texts: tuple[str, str]


def _request(llm: MemoryLLM, facts: int, seed: int, number: int) -> _Request:
    """Questions about the base until there are enough tokens."""
    rng = random.Random(seed * 1000 + number)
    every = knowledge_base(facts, seed)
    ids: list[int] = list(llm.model.chat.prefix_ids)
    while len(ids) < TOKENS_IN:
        ids += llm.model.chat.encode(f" {rng.choice(every).asked(rng)}")
    ids = ids[:TOKENS_IN]
    first, second = (llm.model.tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:64], ids[64:]))
    return _Request(ids, (first, second))


class Rows(Hook):
    """Every row of a batch reads its own memories, of which all have as many tokens."""

    def __init__(self) -> None:
        self._layers: list[tuple[Tensor, Tensor] | None] = []
        self._scales = (1.0, 1.0)

    def swap(self, placed: Sequence[Placed]) -> None:
        """Read these from the next forward on, one per row.

        Raises:
            InvalidInput: one holds more tokens than another.
        """
        if len({one.positions.shape[0] for one in placed}) != 1:
            raise InvalidInput("the memories of the rows differ in length; choose a recipe that keeps as many of each")
        self._scales = placed[0].temperature, placed[0].scale
        self._layers = [
            None
            if placed[0].keys[layer] is None
            else (_stack([one.keys[layer] for one in placed]), _stack([one.values[layer] for one in placed]))
            for layer in range(len(placed[0].keys))
        ]

    def segments(self, call: Call) -> Sequence[Segment]:
        """This layer's memories."""
        found = self._layers[call.layer]
        if found is None:
            return ()
        temperature, scale = self._scales
        return (Segment(*found, temperature=temperature, scale=scale),)


def _stack(tensors: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([tensor for tensor in tensors if tensor is not None])


class Race:
    """The three ways to answer the same requests."""

    def __init__(self, llm: MemoryLLM, recipe: Recipe, handle: ScopedMemories, requests: Sequence[_Request]) -> None:
        self._llm, self._recipe, self._handle, self._requests = llm, recipe, handle, requests
        self._ids = torch.tensor([request.ids for request in requests], device=llm.model.device)
        self.reference_tokens = 0

    def warm_up(self) -> None:
        """Encode, and store, whatever the requests will recall: the base counts as written ahead."""
        self.run("memory")
        self._llm.flush()

    def run(self, name: str) -> Tensor:
        """Answer all requests; ids (batch, 128) of what was generated."""
        runs: dict[str, Callable[[], Tensor]] = {
            "no memory": lambda: self._generate([(self._ids, None)], None),
            "text in the prompt": self._with_text,
            "memory": self._with_memory,
        }
        with torch.no_grad():
            return runs[name]()

    def _with_text(self) -> Tensor:
        """One recall, its references' text in front of the prompt, cut to the shortest row: nobody pays for padding."""
        found = []
        for request in self._requests:
            query = " ".join(request.texts)
            vector = self._llm.writer.embedder.embed([query])[0]
            hits = self._handle.search(query, vector, top_k=self._recipe.top_k, threshold=None)
            text = "".join(f"Reference: {hit.memory.text}\n" for hit in hits)
            found.append(self._llm.model.chat.encode(text))
        shortest = min(map(len, found))
        self.reference_tokens = shortest
        if shortest + TOKENS_IN + TOKENS_OUT > self._llm.model.max_positions:
            raise InvalidInput(f"{shortest} tokens of references do not fit into the model's context")
        ids = torch.tensor([row[:shortest] for row in found], device=self._ids.device)
        return self._generate([(torch.cat([ids, self._ids], 1), None)], None)

    def _with_memory(self) -> Tensor:
        """Recall for each stretch of the prompt, and again after 64 generated tokens."""
        pieces: list[tuple[Tensor, list[Placed] | None]] = [
            (self._ids[:, :64], self._recall([request.texts[0] for request in self._requests])),
            (self._ids[:, 64:], self._recall([request.texts[1] for request in self._requests])),
        ]
        return self._generate(pieces, self._recall)

    def _recall(self, queries: Sequence[str]) -> list[Placed]:
        placed = [self._llm.reader.recall(self._handle, query, ()).placed for query in queries]
        if any(one is None for one in placed):
            raise InvalidInput("a request recalled nothing; use a larger knowledge base")
        return [one for one in placed if one is not None]

    def _generate(
        self,
        pieces: Sequence[tuple[Tensor, list[Placed] | None]],
        recall: Callable[[Sequence[str]], list[Placed]] | None,
    ) -> Tensor:
        """Prefill piece by piece, then greedily."""
        model, tokenizer, reader = self._llm.model.model, self._llm.model.tokenizer, Rows()
        cache = DynamicCache(config=model.config)

        def forward(ids: Tensor) -> Tensor:
            logits: Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            return logits[:, -1].argmax(-1, keepdim=True)

        def answer() -> Tensor:
            for ids, placed in pieces:
                if placed is not None:
                    reader.swap(placed)
                token = forward(ids)
            out = [token]
            while len(out) < TOKENS_OUT:
                if recall is not None and len(out) == 64:
                    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in torch.cat(out, 1)]
                    reader.swap(recall([_words(t) or r.texts[1] for t, r in zip(texts, self._requests, strict=True)]))
                out.append(forward(out[-1]))
            return torch.cat(out, 1)

        if recall is None:
            return answer()
        with attached(model, reader):
            return answer()


def _words(text: str) -> str:
    """What can be looked up of a generated text; a model that has learned nothing may say nothing."""
    return "".join(char if char.isprintable() else " " for char in text).strip()
