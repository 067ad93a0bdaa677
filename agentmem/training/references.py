"""A generated knowledge base: made-up towns, and facts about their affairs, in references of encyclopaedia prose.

A reference states one fact between sentences that only fill it up, some of which name the same town. Questions are put
in other words than the reference. Towns and values are split by checksum: held-out ones never occur in training.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from agentmem.training.values import Kind, Split, value


@dataclass(frozen=True)
class Affair:
    """One kind of fact about a town: its noun, the kind of its value, and a question that does not use the noun."""

    noun: str
    kind: Kind
    asked: str


AFFAIRS = (
    Affair("harbour master", "name", "Who runs the harbour of {e}?"),
    Affair("mayor", "name", "Who governs {e}?"),
    Affair("miller", "name", "Who grinds the corn in {e}?"),
    Affair("baker", "name", "Who bakes the bread of {e}?"),
    Affair("doctor", "name", "Who heals the sick in {e}?"),
    Affair("teacher", "name", "Who teaches the children of {e}?"),
    Affair("judge", "name", "Who settles the disputes in {e}?"),
    Affair("ferry captain", "name", "Who steers the ship at {e}?"),
    Affair("bell ringer", "name", "Who makes the tower of {e} sound?"),
    Affair("gardener", "name", "Who looks after the plants of {e}?"),
    Affair("smith", "name", "Who forges the iron in {e}?"),
    Affair("night guard", "name", "Who watches over {e} in the dark?"),
    Affair("founder", "name", "Who built the first house of {e}?"),
    Affair("patron saint", "name", "Whom do the people of {e} pray to?"),
    Affair("sister town", "place", "Which place is {e} paired with?"),
    Affair("river", "name", "Which water runs through {e}?"),
    Affair("inn", "name", "Where do travellers sleep in {e}?"),
    Affair("main export", "word", "What does {e} sell to the world?"),
    Affair("local dish", "word", "What do they eat in {e}?"),
    Affair("feast", "word", "What does {e} celebrate?"),
    Affair("gate code", "code", "Which number opens the door of {e}?"),
    Affair("postal code", "code", "What is written on letters to {e}?"),
    Affair("train line", "code", "How does one get to {e} by rail?"),
    Affair("phone prefix", "code", "What does one dial to call {e}?"),
)

_STATED = (
    "The {r} of {e} is {v}.",
    "The {r} of {e} is called {v}.",
    "In {e}, the {r} is {v}.",
    "It is known that the {r} of {e} is {v}.",
    "As for {e}, its {r} is {v}.",
    "{e}'s {r} is {v}.",
)
_ASKED = (
    "What is the {r} of {e}?",
    "Tell me the {r} of {e}, please.",
    "Do you know {e}'s {r}?",
    "What is {e}'s {r}?",
    "I would like to know the {r} of {e}.",
    "{e}: which {r} is it?",
)
_ANSWERED = "The {r} of {e} is {v}."
_UNKNOWN = "The {r} of {e}? I was not told."
"""The decision between knowing and not comes right behind the town, where a copying head finds how to go on, or not."""

_SUBJECTS = (
    "The old road,The long wall,The market,The small church,The wide field,The wood,The stone bridge,The tall tower,"
    "The quiet street,The village hall,The valley,The east side"
).split(",")
_PLACES = (" of {e}", " in {e}", " near {e}", "", "", "", "")
_VERBS = (
    "is known for,lies close to,was built before,is older than,can be seen from,leads the way to,looks down on,"
    "stands in front of,is much loved by,belongs to,was once sold to,is shown to"
).split(",")
_OBJECTS = (
    "the hills,the people there,the first houses,many travellers,the winter storms,the green fields,every map,"
    "the great fire,both of the farms,the sea,the garden of the king,the whole land"
).split(",")
_ENDS = (".", ".", ".", " today.", " in summer.", ", or so they say.", " as before.")


@dataclass(frozen=True)
class TownFact:
    """One fact: the affair of a town, and its value."""

    town: str
    affair: Affair
    value: str

    def _say(self, template: str) -> str:
        return template.format(r=self.affair.noun, e=self.town, v=self.value)

    def stated(self, rng: random.Random) -> str:
        """A sentence of a reference; the value comes last, so that its keys know what it is the value of."""
        return self._say(rng.choice(_STATED))

    def asked(self, rng: random.Random) -> str:
        """A question; every third one does not use the affair's noun."""
        return self._say(self.affair.asked if rng.random() < 1 / 3 else rng.choice(_ASKED))

    def answered(self) -> str:
        """The one right answer."""
        return self._say(_ANSWERED)

    def unknown(self) -> str:
        """The right answer where no reference tells."""
        return self._say(_UNKNOWN)


def filler(rng: random.Random, town: str) -> str:
    """A sentence without a fact in it, which may name the town."""
    said = (
        f"{rng.choice(_SUBJECTS)}{rng.choice(_PLACES)} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)}{rng.choice(_ENDS)}"
    )
    return said.format(e=town)


def town(rng: random.Random, split: Split = "train") -> str:
    """A made-up name of a town."""
    return value(rng, "word", split).capitalize()


def town_facts(rng: random.Random, name: str, n: int, split: Split = "train") -> list[TownFact]:
    """Facts about n different affairs of one town."""
    return [TownFact(name, affair, value(rng, affair.kind, split)) for affair in rng.sample(AFFAIRS, n)]


def reference(
    rng: random.Random, fact: TownFact, count: Callable[[str], int], *, most: int = 128, least: int = 100
) -> str:
    """Prose around the fact, of at most ``most`` and about ``least`` tokens or more as ``count`` counts them."""
    before: list[str] = []
    after: list[str] = []
    stated = fact.stated(rng)
    text = stated
    while True:
        side = rng.choice((before, after))
        side.insert(rng.randint(0, len(side)), filler(rng, fact.town))
        longer = " ".join([*before, stated, *after])
        size = count(longer)
        if size > most:
            return text
        text = longer
        if size >= least + rng.randint(0, most - least):
            return text


def knowledge_base(n_facts: int, seed: int, split: Split = "heldout", *, per_town: int = 4) -> list[TownFact]:
    """Facts of different towns, ``per_town`` each, in the order of a shuffled book."""
    rng = random.Random(seed)
    towns: dict[str, None] = {}
    facts: list[TownFact] = []
    while len(facts) < n_facts:
        name = town(rng, split)
        if name not in towns:
            towns[name] = None
            facts += town_facts(rng, name, per_town, split)
    rng.shuffle(facts)
    return facts[:n_facts]
