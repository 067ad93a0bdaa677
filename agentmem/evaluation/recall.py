"""Recall from a knowledge base: does an answer hold the fact, and how many bytes does the memory of it take?

The towns and values of the knowledge base are held out from training. Recall is real: hybrid search over the whole
base, top 5. Every contender gets the same references for the same question, and generates greedily.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from agentmem.errors import InvalidInput
from agentmem.evaluation.figures import wilson
from agentmem.evaluation.progress import Advance, silent
from agentmem.evaluation.result import Plot, Result, Row
from agentmem.ingest import reference_id
from agentmem.llm import MemoryLLM
from agentmem.model.attention import Placed
from agentmem.packing import Packing
from agentmem.recipes import Memory3, Recipe, memory_recipe
from agentmem.records import Hit, Message, Role, Scope
from agentmem.training.memory3_batches import Writer as Texts
from agentmem.training.references import TownFact, knowledge_base, reference

USER = "knowledge base"
MAX_NEW_TOKENS = 40
CODEC = "bf16"
"""As in the paper: 8 tokens per head, or product quantisation, are what is measured, not rounding."""
ENOUGH = 700
"""Encoded references from which on product quantisation can be trained (2 KV heads of 8 tokens each)."""


@dataclass(frozen=True)
class Asked:
    """One question, the reference that answers it, and what search found."""

    fact: TownFact
    question: str
    gold: str
    hits: list[Hit]


def recall(
    model: str | Path | None = None,
    *,
    recipe: str | Recipe = "memory3",
    facts: int = 10_000,
    questions: int = 300,
    seed: int = 0,
    folder: Path | None = None,
    advance: Advance = silent,
) -> Result:
    """Accuracy and bytes: without memory, with the references' text in the prompt (where it fits), and with memory.

    For ``memory3`` also with full KV of its layers (every token) and, where the questions recall 700 references or
    more, with product quantisation of the sparse KV.

    Args:
        model: folder or hub id; None is the bundled model.
        recipe: how memory is written and read.
        facts: size of the knowledge base; one reference each.
        questions: how many of the facts are asked about.
        seed: of the knowledge base and the questions.
        folder: where the store is kept, to be used again; None for a temporary one.
        advance: hears how far it is.

    Raises:
        InvalidInput: a number out of range.
    """
    chosen = memory_recipe(recipe)
    if not 1 <= questions <= facts:
        raise InvalidInput(f"questions ({questions}) must be from 1 to the number of facts ({facts})")
    with place_of(folder) as place:
        llm = MemoryLLM(model, store=place / "memory.db", recipe=chosen, threshold=None, codec=CODEC)
        with llm:
            base = write_base(llm, place, facts, seed)
            # A reference's KV is encoded, and stored, when it is first recalled: the others' would never be read.
            llm.ingest(base, user=USER, warm=False, advance=advance)
            asked = ask(llm, knowledge_base(facts, seed), questions, seed, base)
            rows = _rows(llm, chosen, asked, advance)
            rows += _compressed(llm, chosen, asked, advance)
        rows = [row | {"found": _found(asked)} for row in rows]
    settings = {
        "model": "bundled" if model is None else Path(model).name,
        "recipe": chosen.name,
        "facts": facts,
        "questions": questions,
        "seed": seed,
        "read at once": chosen.top_k,
    }
    return Result(
        "recall", settings, rows, Plot("contender", "accuracy", percent=True, title="Recall of held-out facts")
    )


@contextmanager
def place_of(folder: Path | None) -> Iterator[Path]:
    """The folder, made if need be, or a temporary one."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with TemporaryDirectory() as temporary:
        yield Path(temporary)


def write_base(llm: MemoryLLM, folder: Path, facts: int, seed: int) -> Path:
    """The knowledge base as JSON lines, one reference of at most 128 tokens of this model per fact, in order."""
    texts, rng = Texts(llm.model.tokenizer), random.Random(seed)
    path = folder / f"towns-{facts}-{seed}.jsonl"

    def count(text: str) -> int:
        # Without a space before it as chunking counts, and with one as a reference is encoded: no text is cut.
        return max(texts.count(text), len(texts.ids(text)))

    if not path.exists():
        lines = [json.dumps({"text": reference(rng, fact, count)}) for fact in knowledge_base(facts, seed)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def ask(llm: MemoryLLM, facts: Sequence[TownFact], questions: int, seed: int, base: Path) -> list[Asked]:
    """Questions about facts drawn at random, each with what hybrid search finds for it."""
    rng = random.Random(seed + 1)
    written = [json.loads(line)["text"] for line in base.read_text(encoding="utf-8").splitlines()]
    handle = llm.store.scope(Scope(user=USER))
    asked = []
    for number in rng.sample(range(len(facts)), questions):
        question = facts[number].asked(rng)
        hits = llm.reader.recall(handle, question, ()).hits
        asked.append(Asked(facts[number], question, reference_id(written[number]), hits))
    return asked


def _found(asked: Sequence[Asked]) -> float:
    """Share of questions whose reference is among those that were recalled."""
    return sum(any(hit.memory.id == one.gold for hit in one.hits) for one in asked) / len(asked)


def right(llm: MemoryLLM, one: Asked, placed: Placed | None, *, text: bool = False) -> bool:
    """Whether the greedy answer ends with the fact's value; with ``text`` the references stand in the prompt."""
    answer = llm.model.generate(_prompt(llm, one, text), placed=placed, max_new_tokens=MAX_NEW_TOKENS).text.strip()
    return answer.removesuffix(".").endswith(f" {one.fact.value}")


def _prompt(llm: MemoryLLM, one: Asked, text: bool) -> list[int]:
    told = "".join(f"Reference: {hit.memory.text}\n" for hit in one.hits) if text else ""
    return llm.model.chat.render([Message(role=Role.USER, content=told + one.question)])


def _rows(llm: MemoryLLM, recipe: Recipe, asked: Sequence[Asked], advance: Advance) -> list[Row]:
    """Without memory, with text, with memory; for memory3 also with full KV."""
    handle = llm.store.scope(Scope(user=USER))

    def stored(one: Asked) -> Placed | None:
        return llm.reader.recall(handle, one.question, ()).placed

    def full(one: Asked) -> Placed | None:
        assert isinstance(recipe, Memory3)
        everything = replace(recipe, keep=None)
        return everything.place(llm.model, everything.encode(llm.model, [hit.memory for hit in one.hits]))

    rows = [_row("no memory", [right(llm, one, None) for one in _watched(asked, "no memory", advance)])]
    if all(len(_prompt(llm, one, True)) + MAX_NEW_TOKENS <= llm.model.max_positions for one in asked):
        text = [right(llm, one, None, text=True) for one in _watched(asked, "text in the prompt", advance)]
        rows.append(_row("text in the prompt", text))
    if isinstance(recipe, Memory3):
        outcome = [right(llm, one, full(one)) for one in _watched(asked, "memory, full KV", advance)]
        rows.append(_row("memory, full KV", outcome) | _sizes(llm, asked, _full_bytes(llm, recipe, asked)))
    name = f"memory, {recipe.keep} tokens per head" if isinstance(recipe, Memory3) else f"memory, {recipe.name}"
    outcome = [right(llm, one, stored(one)) for one in _watched(asked, name, advance)]
    return [*rows, _row(name, outcome) | _sizes(llm, asked, _stored_bytes(llm))]


def _compressed(llm: MemoryLLM, recipe: Recipe, asked: Sequence[Asked], advance: Advance) -> list[Row]:
    """The same memories after product quantisation, where there are enough to train it."""
    if not isinstance(recipe, Memory3) or llm.store.scope(Scope(user=USER)).stats().warm < ENOUGH:
        return []
    reader = llm.reader
    done = llm.compress(user=USER, advance=advance)
    handle = llm.store.scope(Scope(user=USER))
    reader.clear()
    name = "memory, product quantisation"
    outcome = [
        right(llm, one, reader.recall(handle, one.question, ()).placed) for one in _watched(asked, name, advance)
    ]
    errors: Row = {"key_error": round(done.key_error, 4), "value_error": round(done.value_error, 4)}
    return [_row(name, outcome) | _sizes(llm, asked, _stored_bytes(llm)) | errors]


def _watched(asked: Sequence[Asked], what: str, advance: Advance) -> Iterator[Asked]:
    for number, one in enumerate(asked, 1):
        yield one
        advance(what, number, len(asked))


def _row(contender: str, outcome: Sequence[bool]) -> Row:
    low, high = wilson(sum(outcome), len(outcome))
    accuracy = sum(outcome) / len(outcome)
    return {"contender": contender, "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}


def _sizes(llm: MemoryLLM, asked: Sequence[Asked], nbytes: float) -> Row:
    """Bytes per reference, and how many times less that is than dense KV of a reference as long as these are.

    Dense is Memory3's own baseline (section 3.3): all layers, all query heads, all tokens, 2 bytes per number. Beside
    it, what a model with grouped-query attention keeps: its KV heads only.
    """
    config = llm.model.config
    tokens = sum(hit.memory.n_tokens for one in asked for hit in one.hits) / sum(len(one.hits) for one in asked)
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_head = llm.model.n_layers * tokens * dim * 2 * 2
    return {
        "bytes_per_reference": round(nbytes),
        "less_than_dense": round(per_head * config.num_attention_heads / nbytes, 1),
        "less_than_dense_kv_heads": round(per_head * config.num_key_value_heads / nbytes, 1),
    }


def _stored_bytes(llm: MemoryLLM) -> float:
    llm.flush()
    stats = llm.store.scope(Scope(user=USER)).stats()
    return stats.kv_bytes / max(1, stats.warm)


def _full_bytes(llm: MemoryLLM, recipe: Memory3, asked: Sequence[Asked]) -> float:
    """Bytes of every token's KV in the recipe's layers, packed in bf16."""
    everything, plain = replace(recipe, keep=None), Packing("bf16", None, "")
    memories = [one.hits[0].memory for one in asked[:32] if one.hits]
    sizes = [len(plain.pack(kv)[0]) for kv in everything.encode(llm.model, memories)]
    return sum(sizes) / len(sizes)
