"""What people tell an assistant: relations, and the ways to state, acknowledge, correct, ask and answer them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from agentmem.training.values import Kind, Split, value


@dataclass(frozen=True)
class Relation:
    """One kind of fact. Templates hold ``{r}`` (what it is about) and ``{v}`` (the value)."""

    key: str
    kind: Kind
    state: tuple[str, ...]
    acknowledge: tuple[str, ...]
    correct: tuple[str, ...]
    thank: tuple[str, ...]
    ask: tuple[str, ...]
    answer: str
    unknown: str
    role: str = "user"


_OPENERS = (
    "",
    "",
    "",
    "By the way, ",
    "Please remember that ",
    "You should know that ",
    "Just so you know, ",
    "Note that ",
)


def _opened(sentence: str) -> tuple[str, ...]:
    return tuple((o + sentence) if o else sentence[0].upper() + sentence[1:] for o in _OPENERS)


def _noun(key: str, kind: Kind) -> Relation:
    named = kind == "name"
    is_ = "is called" if named else "is"
    state = _opened("my {r} is {v}.") + _opened("my {r} " + is_ + " {v}.")
    ask: tuple[str, ...] = (
        "What is my {r}?",
        "Do you remember my {r}?",
        "Tell me my {r}, please.",
        "What did I say my {r} was?",
        "Can you remind me of my {r}?",
        "I forgot, what is my {r}?",
        "Please tell me what my {r} is.",
    )
    if named:
        state += ("My {r}'s name is {v}.", "The name of my {r} is {v}.", "I have a {r} called {v}.", "{v} is my {r}.")
        ask += (
            "What is my {r} called?",
            "What is the name of my {r}?",
            "What is my {r}'s name?",
            "How is my {r} called?",
        ) * 2
    return Relation(
        key=key,
        kind=kind,
        state=state,
        acknowledge=(
            "Got it, your {r} " + is_ + " {v}.",
            "Okay, I will remember that your {r} " + is_ + " {v}.",
            "Noted: your {r} " + is_ + " {v}.",
        ),
        correct=(
            "Actually, my {r} is {v}.",
            "Actually, my {r} " + is_ + " {v}, not {old}.",
            "Correction: my {r} is {v}.",
            "I was wrong, my {r} " + is_ + " {v}.",
            "No wait, my {r} is {v} now.",
            "Actually it is {v}, my {r} I mean.",
            "My {r} has changed, it is {v} now.",
        ),
        thank=(
            "Thanks for the correction, your {r} " + is_ + " {v} now.",
            "Okay, corrected: your {r} " + is_ + " {v} now.",
        ),
        ask=ask,
        answer="Your {r} " + is_ + " {v}.",
        unknown="Your {r}? You have not told me.",
    )


def _verb(key: str, kind: Kind, ask: str, *, where: str) -> Relation:
    """A fact about the speaker: ``key`` is a verb phrase ('live in'), ``where`` completes 'You have not told me'."""
    return Relation(
        key=key,
        kind=kind,
        state=_opened("I {r} {v}."),
        acknowledge=("Got it, you {r} {v}.", "Okay, I will remember that you {r} {v}.", "Noted: you {r} {v}."),
        correct=(
            "Actually, I {r} {v}.",
            "Actually, I {r} {v}, not {old}.",
            "Correction: I {r} {v}.",
            "I was wrong, I {r} {v}.",
            "No wait, I {r} {v} now.",
        ),
        thank=("Thanks for the correction, you {r} {v} now.", "Okay, corrected: you {r} {v} now."),
        ask=(ask, f"Do you remember {where}?", f"Tell me {where}, please.", f"Can you remind me {where}?"),
        answer="You {r} {v}.",
        unknown="You {r}? You have not told me.",
    )


def _tool(key: str) -> Relation:
    return Relation(
        key=key,
        kind="code",
        state=("{r}: {v}", "result: the {r} is {v}", "{r} = {v}", "ok, {r} {v}"),
        acknowledge=("The {r} is {v}.", "The tool says that the {r} is {v}."),
        correct=("update: the {r} is {v} now", "correction: the {r} is {v}"),
        thank=("The {r} is {v} now.", "The tool says that the {r} is {v} now."),
        ask=("What is the {r}?", "What {r} did the tool return?", "Which {r} did we get?", "Tell me the {r}, please."),
        answer="The {r} is {v}.",
        unknown="The {r}? You have not told me.",
        role="tool",
    )


_NAMED = [
    *(
        "dog cat sister brother boss cousin horse boat band parrot rabbit hamster doctor dentist teacher neighbour "
        "aunt uncle mother father son daughter wife husband manager lawyer company team school hotel ship robot garden "
        "village river tortoise goldfish coach partner flatmate colleague landlord plumber barber tailor baker nurse"
    ).split(),
    *"best friend,guinea pig,project manager,piano teacher,football team,chess club,music school".split(","),
]
_WORDS = (
    "favourite colour,favourite food,favourite drink,favourite subject,hobby,favourite sport,favourite fruit,"
    "lucky word,nickname,car,phone,bicycle,job,favourite game"
).split(",")
_PLACES = "hometown,street,address,office,favourite city,birthplace,holiday destination,gym".split(",")
_CODES = (
    "wifi password,phone number,flight number,locker code,door code,customer number,passport number,"
    "library card number,room number,bank pin,licence plate,member number"
).split(",")
_LISTS = "shopping list,packing list,guest list,to-do list,menu".split(",")
_TOOLS = (
    "booking reference,tracking number,invoice number,ticket id,seat number,server port,order number,"
    "gate number,case number,build number"
).split(",")

RELATIONS: tuple[Relation, ...] = (
    *(_noun(key, "name") for key in _NAMED),
    *(_noun(key, "word") for key in _WORDS),
    *(_noun(key, "place") for key in _PLACES),
    *(_noun(key, "code") for key in _CODES),
    *(_noun(key, "list") for key in _LISTS),
    *(_tool(key) for key in _TOOLS),
    _verb("live in", "place", "Where do I live?", where="where I live"),
    _verb("work at", "place", "Where do I work?", where="where I work"),
    _verb("was born in", "place", "Where was I born?", where="where I was born"),
    _verb("study at", "place", "Where do I study?", where="where I study"),
    _verb("like to eat", "word", "What do I like to eat?", where="what I like to eat"),
    _verb("play", "word", "What do I play?", where="what I play"),
    _verb("collect", "word", "What do I collect?", where="what I collect"),
    _verb("am allergic to", "word", "What am I allergic to?", where="what I am allergic to"),
)


@dataclass(frozen=True)
class Fact:
    """A relation with the value that was told, and the value it replaces where it is a correction."""

    relation: Relation
    value: str
    old: str | None = None

    def _say(self, rng: random.Random, templates: tuple[str, ...]) -> str:
        said = rng.choice(templates).format(r=self.relation.key, v=self.value, old=self.old)
        # "you was born" / "you am": the two verb phrases that change with the person
        return (
            said.replace("you was ", "you were ")
            .replace("You was ", "You were ")
            .replace("you am ", "you are ")
            .replace("You am ", "You are ")
        )

    def told(self, rng: random.Random) -> str:
        """The user's (or tool's) statement; worded as a correction when it replaces a value."""
        return self._say(rng, self.relation.state if self.old is None else self.relation.correct)

    def acknowledged(self, rng: random.Random) -> str:
        """The assistant's acknowledgement, which restates the fact with its value last."""
        return self._say(rng, self.relation.acknowledge if self.old is None else self.relation.thank)

    def asked(self, rng: random.Random) -> str:
        """A question that this fact answers."""
        return self._say(rng, self.relation.ask)

    def answered(self) -> str:
        """The one right answer."""
        return self._say(random.Random(0), (self.relation.answer,))

    def unknown(self) -> str:
        """The right answer when nobody has told it."""
        return self._say(random.Random(0), (self.relation.unknown,))

    def corrected(self, rng: random.Random, split: Split = "train") -> Fact:
        """The same relation with a new value that replaces this one."""
        new = self.value
        while new == self.value:
            new = value(rng, self.relation.kind, split)
        return Fact(self.relation, new, self.value)


def _families() -> list[list[Relation]]:
    """Relations that share a word ("room number", "phone number"): what a search confuses, a reader must not."""
    by_word: dict[str, list[Relation]] = {}
    for relation in RELATIONS:
        for word in relation.key.split():
            by_word.setdefault(word, []).append(relation)
    return [family for family in by_word.values() if len(family) > 1]


FAMILIES = _families()


def invented(rng: random.Random) -> Relation:
    """A relation about a made-up thing, so that relations are matched by their words and not learned by heart."""
    return _noun(value(rng, "word"), rng.choice(("name", "name", "word", "place", "code")))


def draw_relations(rng: random.Random, n: int, *, alike: float = 0.0, novel: float = 0.0) -> list[Relation]:
    """n different relations; ``alike`` is the chance that half come from one family, ``novel`` that one is invented."""
    chosen: dict[str, Relation] = {}
    if alike and rng.random() < alike:
        family = rng.choice(FAMILIES)
        chosen = {r.key: r for r in rng.sample(family, min(len(family), (n + 1) // 2))}
    for relation in rng.sample(RELATIONS, n):
        if len(chosen) < n:
            fresh = invented(rng) if novel and rng.random() < novel else relation
            chosen.setdefault(fresh.key, fresh)
    return list(chosen.values())[:n]


def tell(rng: random.Random, relations: Sequence[Relation], split: Split = "train") -> list[Fact]:
    """A fact of each relation."""
    return [Fact(relation, value(rng, relation.kind, split)) for relation in relations]
