"""Training dialogues: some memories that were encoded alone, and a dialogue that reads them.

What makes selection between memories appear (measured, see MODEL_CARD.md): several memories at once, all at the same
positions, and a question about *every* fact in one dialogue. Distractor memories are always present
(LongLLaMA's crossbatch, arXiv 2307.03170 section 3.2); some questions have no answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import date, timedelta

from agentmem.training.facts import FAMILIES, RELATIONS, Fact, Relation, draw_relations, invented, tell
from agentmem.training.smalltalk import PAIRS
from agentmem.training.values import Split


@dataclass(frozen=True)
class Chunk:
    """A memory before it is encoded."""

    role: str
    text: str
    day: date


@dataclass
class Dialogue:
    """Memories, and the turns (role, text) of the context that reads them."""

    chunks: list[Chunk] = field(default_factory=list)
    turns: list[tuple[str, str]] = field(default_factory=list)

    def exchange(self, user: str, assistant: str, role: str = "user") -> None:
        """Append one turn and its reply."""
        self.turns += [(role, user), ("assistant", assistant)]


@dataclass(frozen=True)
class Mix:
    """What a dialogue is made of. Rates are probabilities per draw."""

    max_facts: int = 6
    min_facts: int = 0
    max_chunks: int = 12
    corrected: float = 0.25
    unknown: float = 0.2
    noise: float = 0.25
    told_in_context: float = 0.2
    repeated_question: float = 0.2
    alike: float = 0.0
    """Facts of one family together, and questions about its untold members."""
    novel: float = 0.0
    """Facts about made-up things."""
    joined: float = 0.0
    """Two facts, or a fact and small talk, in one turn."""
    max_questions: int = 8


def _remember(rng: random.Random, fact: Fact, day: date) -> list[Chunk]:
    """The chunks that one exchange about a fact leaves: the statement, its acknowledgement, or both."""
    told = Chunk(fact.relation.role, fact.told(rng), day)
    acknowledged = Chunk("assistant", fact.acknowledged(rng), day)
    return rng.choice([[told, acknowledged], [told, acknowledged], [told], [acknowledged]])


def _join(rng: random.Random, mix: Mix, utterances: list[tuple[str, str]], chunks: list[Chunk]) -> list[Chunk]:
    """Put some neighbouring chunks of one speaker, or a chunk and small talk, into one turn."""
    out: list[Chunk] = []
    for chunk in chunks:
        if out and out[-1].role == chunk.role and chunk.role != "tool" and rng.random() < mix.joined:
            out[-1] = Chunk(chunk.role, f"{out[-1].text} {chunk.text}", out[-1].day)
        elif chunk.role == "user" and rng.random() < mix.joined:
            remark = _noise(rng, utterances)[0]
            out.append(
                Chunk("user", f"{remark} {chunk.text}" if rng.random() < 0.6 else f"{chunk.text} {remark}", chunk.day)
            )
        else:
            out.append(chunk)
    return out


def _noise(rng: random.Random, utterances: list[tuple[str, str]]) -> tuple[str, str]:
    return rng.choice(utterances) if utterances and rng.random() < 0.5 else rng.choice(PAIRS)


def draw(rng: random.Random, mix: Mix, utterances: list[tuple[str, str]], split: Split = "train") -> Dialogue:
    """One dialogue of the mix."""
    dialogue = Dialogue()
    today = date(2024, 1, 1) + timedelta(days=rng.randrange(4000))
    relations = draw_relations(rng, rng.randint(mix.min_facts, mix.max_facts), alike=mix.alike, novel=mix.novel)
    facts = tell(rng, relations, split)
    current: list[Fact] = []
    for fact in facts:
        day = today - timedelta(days=rng.randint(0, 60))
        kept = _remember(rng, fact, day)
        if rng.random() < mix.repeated_question:
            # An earlier answer is a memory too, and a stale one after a correction.
            kept.append(Chunk("assistant", fact.answered(), day))
        if rng.random() < mix.corrected:
            fact = fact.corrected(rng, split)
            kept += _remember(rng, fact, min(today, day + timedelta(days=rng.randint(0, 9))))
        current.append(fact)
        dialogue.chunks += kept
    known = {fact.relation.key for fact in facts}
    if mix.joined:
        dialogue.chunks = _join(rng, mix, utterances, dialogue.chunks)
    strangers = [relation for relation in RELATIONS if relation.key not in known]
    rng.shuffle(strangers)
    if mix.alike and facts and rng.random() < mix.alike:  # ask about what only sounds like what was told
        words = {word for fact in facts for word in fact.relation.key.split()}
        near = [relation for family in FAMILIES for relation in family if words & set(relation.key.split())]
        near = [r for r in near if r.key not in known]
        rng.shuffle(near)
        strangers = list({r.key: r for r in [*near[:3], *strangers]}.values())
    for fact in facts + [Fact(relation, "?") for relation in strangers[:2]]:
        if rng.random() < mix.repeated_question:  # questions asked before, and that they once had no answer
            dialogue.chunks.append(Chunk("user", fact.asked(rng), today))
            if rng.random() < 0.5:
                dialogue.chunks.append(Chunk("assistant", fact.unknown(), today))
    for _ in range(rng.randint(0, 3)):
        said, replied = _noise(rng, utterances)
        dialogue.chunks.append(rng.choice([Chunk("user", said, today), Chunk("assistant", replied, today)]))
    if len(dialogue.chunks) > mix.max_chunks:
        dialogue.chunks = rng.sample(dialogue.chunks, mix.max_chunks)
    rng.shuffle(dialogue.chunks)
    _talk(rng, mix, utterances, dialogue, [f for f in current if _present(f, dialogue.chunks)], strangers, split)
    return dialogue


def _present(fact: Fact, chunks: list[Chunk]) -> bool:
    """Whether the latest value survived the cut in a chunk that can be read.

    A chunk is encoded causally: where the value stands before its relation, the value's keys cannot know what it is
    the value of, so such a chunk alone ("Biscuit is my dog.") cannot be selected by content.
    """
    return any(0 <= chunk.text.find(fact.relation.key) < chunk.text.rfind(fact.value) for chunk in chunks)


def _talk(
    rng: random.Random,
    mix: Mix,
    utterances: list[tuple[str, str]],
    dialogue: Dialogue,
    facts: list[Fact],
    strangers: list[Relation],
    split: Split,
) -> None:
    """Write the context: ask about every fact, in any order, between noise, unknowns, news and corrections."""
    pending = list(facts)
    rng.shuffle(pending)
    fresh = tell(rng, [*strangers[2:6], *([invented(rng)] if mix.novel and rng.random() < mix.novel else [])], split)
    asked = 0
    while asked < mix.max_questions and (pending or rng.random() < 0.5 or not dialogue.turns):
        chance = rng.random()
        if chance < mix.noise * 0.6:
            dialogue.exchange(*_noise(rng, utterances))
        elif chance < mix.noise * 0.6 + mix.unknown and strangers:
            dialogue.exchange((fact := Fact(strangers[0], "?")).asked(rng), fact.unknown())
            strangers = strangers[1:]
            asked += 1
        elif chance < mix.noise * 0.6 + mix.unknown + mix.told_in_context and fresh:
            news = [fresh.pop()]
            if fresh and rng.random() < mix.joined and "tool" not in (news[0].relation.role, fresh[-1].relation.role):
                news.append(fresh.pop())
            said, replied = " ".join(fact.told(rng) for fact in news), " ".join(fact.acknowledged(rng) for fact in news)
            if news[0].relation.role == "user" and rng.random() < mix.joined:
                said = f"{_noise(rng, utterances)[0]} {said}"
            dialogue.exchange(said, replied, news[0].relation.role)
            for fact in news:
                strangers = [relation for relation in strangers if relation.key != fact.relation.key]
                pending.insert(rng.randint(0, len(pending)), fact)
        elif pending:
            fact = pending.pop()
            if rng.random() < mix.told_in_context * 0.5:  # corrected in the dialogue itself: context wins over memory
                fact = fact.corrected(rng, split)
                dialogue.exchange(fact.told(rng), fact.acknowledged(rng), fact.relation.role)
            dialogue.exchange(fact.asked(rng), fact.answered())
            asked += 1
