"""What each user says in three sessions and is asked afterwards: a pure function of seed and number.

The tellers and the askers are different processes that share nothing but the store, so both draw the script anew.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from agentmem.records import Role
from agentmem.training.facts import RELATIONS, Fact, Relation
from agentmem.training.smalltalk import PAIRS
from agentmem.training.values import value

Kind = Literal["known", "corrected", "unknown"]

GROUPS = ("name", "word", "place", "code", "list", "verb", "tool")
"""Every user tells at least one fact of each group, so that each group's figures rest on as many questions."""
KNOWN_ASKED = 4
"""Known facts that are asked of each user in the end."""


class Phase(StrEnum):
    """What happens in one process, in this order."""

    SESSION_1 = "session-1"
    SESSION_2 = "session-2"
    SESSION_3 = "session-3"
    ASK = "ask"
    ASK_WITHOUT = "ask-without"
    """The known questions again, with memory off."""


SESSIONS = (Phase.SESSION_1, Phase.SESSION_2, Phase.SESSION_3)


@dataclass(frozen=True)
class Said:
    """One message to the model. ``relation`` and ``value`` are what it tells, None for questions and small talk."""

    role: Role
    text: str
    relation: str | None = None
    value: str | None = None


@dataclass(frozen=True)
class Question:
    """A question of the last day: its one right answer, and the value in it ("" when it was never told)."""

    kind: Kind
    group: str
    relation: str
    text: str
    answer: str
    value: str
    old: str | None = None


@dataclass(frozen=True)
class Script:
    """One user: three sessions, then the questions, each of which is asked in a conversation of its own."""

    user: str
    sessions: tuple[tuple[Said, ...], ...]
    questions: tuple[Question, ...]


def contains(text: str, value: str) -> bool:
    """Whether the value stands in the text as whole words."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def group_of(relation: Relation) -> str:
    """The group of ``GROUPS`` that a relation is counted in."""
    if relation.role == Role.TOOL:
        return "tool"
    return "verb" if relation.answer.startswith("You ") else relation.kind


def scripts(n: int, seed: int) -> list[Script]:
    """The scripts of n users."""
    return [script(number, seed) for number in range(n)]


def script(number: int, seed: int) -> Script:
    """The script of one user."""
    rng = random.Random(f"recall {seed} {number}")
    facts, strangers = _facts(rng)
    early, late = facts[:4], facts[4:]
    corrected = {
        early[0].relation.key: early[0].corrected(rng, "heldout"),
        late[0].relation.key: late[0].corrected(rng, "heldout"),
    }
    noise = [Said(Role.USER, text) for text, _ in rng.sample(PAIRS, 9)]
    never = [Fact(relation, "?") for relation in strangers]
    sessions = (
        _shuffled(rng, [*_told(rng, early), *noise[:4]]),
        # Questions about one fact that stays, one that will be corrected, and one that nobody has told.
        _shuffled(rng, [*_told(rng, late), *_asked(rng, [early[0], early[1], never[0]]), *noise[4:6]]),
        _shuffled(rng, [*_told(rng, list(corrected.values())), *_asked(rng, [late[1]]), *noise[6:]]),
    )
    known = [fact for fact in facts if fact.relation.key not in corrected]
    questions = [
        *(_question(rng, "known", fact) for fact in rng.sample(known, KNOWN_ASKED)),
        *(_question(rng, "corrected", fact) for fact in corrected.values()),
        *(_question(rng, "unknown", fact) for fact in never),
    ]
    rng.shuffle(questions)
    return Script(f"user-{number:03d}", sessions, tuple(questions))


def _facts(rng: random.Random) -> tuple[list[Fact], list[Relation]]:
    """Eight facts, one or two of each group, with different held-out values, tools last; two relations never told.

    A tool's result comes in an agent's session, which is the second: the first four facts are never a tool's.
    """
    chosen = [rng.choice([r for r in RELATIONS if group_of(r) == group]) for group in GROUPS]
    rest = [r for r in RELATIONS if r not in chosen]
    extra, *strangers = rng.sample(rest, 3)
    values: set[str] = set()
    facts = []
    for relation in [*chosen, extra]:
        told = value(rng, relation.kind, "heldout")
        while told in values:
            told = value(rng, relation.kind, "heldout")
        values.add(told)
        facts.append(Fact(relation, told))
    rng.shuffle(facts)
    spoken = [fact for fact in facts if fact.relation.role != Role.TOOL]
    late = spoken[4:] + [fact for fact in facts if fact.relation.role == Role.TOOL]
    rng.shuffle(late)
    return spoken[:4] + late, strangers


def _told(rng: random.Random, facts: list[Fact]) -> list[Said]:
    return [Said(Role(fact.relation.role), fact.told(rng), fact.relation.key, fact.value) for fact in facts]


def _asked(rng: random.Random, facts: list[Fact]) -> list[Said]:
    return [Said(Role.USER, fact.asked(rng)) for fact in facts]


def _shuffled(rng: random.Random, said: list[Said]) -> tuple[Said, ...]:
    rng.shuffle(said)
    return tuple(said)


def _question(rng: random.Random, kind: Kind, fact: Fact) -> Question:
    unknown = kind == "unknown"
    return Question(
        kind=kind,
        group=group_of(fact.relation),
        relation=fact.relation.key,
        text=fact.asked(rng),
        answer=fact.unknown() if unknown else fact.answered(),
        value="" if unknown else fact.value,
        old=fact.old,
    )
