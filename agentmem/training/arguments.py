"""Arguments of made-up tools: their schemas, and values for them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from agentmem.training.concepts import CONCEPTS, ValueKind
from agentmem.training.smalltalk import PAIRS
from agentmem.training.values import Split, is_heldout, value

_CHOICES = tuple(
    (
        "celsius fahrenheit,small medium large,red green blue,low normal high,economy business,open closed,fast slow,"
        "metric imperial,asc desc,km miles,north south east west,draft final,hot cold"
    ).split(",")
)
NUMBERS: tuple[ValueKind, ...] = ("count", "amount")
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_MONTHS = "January February March April May June July August September October November December".split()


@dataclass(frozen=True)
class Argument:
    """One argument of one tool."""

    key: str
    kind: ValueKind
    says: tuple[str, ...]
    described: str = ""
    required: bool = True
    choices: tuple[str, ...] = ()
    extra: tuple[tuple[str, Any], ...] = ()

    @property
    def words(self) -> str:
        """The key as people say it."""
        return self.key.replace("_", " ")

    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        kinds = {"count": "integer", "amount": "number", "flag": "boolean"}
        schema: dict[str, Any] = dict(self.extra) | {"type": kinds.get(self.kind, "string")}
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.described:
            schema["description"] = self.described
        return schema

    def draw(self, rng: random.Random, split: Split) -> tuple[Any, str]:
        """A value, and how it is written in a sentence."""
        return draw_value(rng, self.kind, split, self.choices)


def draw_value(rng: random.Random, kind: ValueKind, split: Split, choices: tuple[str, ...] = ()) -> tuple[Any, str]:
    """A value of the kind and the split, and how it is written in a sentence."""
    if kind == "choice":
        chosen = rng.choice(choices)
        return chosen, chosen
    if kind == "flag":
        yes = rng.random() < 0.5
        return yes, str(yes).lower()
    if kind == "count":
        n = number(rng, split)
        return n, str(n)
    if kind == "amount":
        n = number(rng, split)
        cents = rng.choice(["5", "25", "99", "75", str(rng.randrange(1, 100)).rstrip("0")])
        written = str(n) if rng.random() < 0.4 else f"{n}.{cents or 5}"
        return (float(written) if "." in written else int(written)), written
    if kind == "day":
        day = _day(rng, split)
        return day, day
    if kind == "time":
        clock = f"{rng.randrange(1, 24)}:{rng.choice(['00', '15', '30', '45', f'{rng.randrange(60):02}'])}"
        clock = clock if rng.random() < 0.6 else f"{rng.randrange(1, 13)}{rng.choice(['am', 'pm'])}"
        return clock, clock
    if kind == "email":
        at = f"{value(rng, 'word', split)}@{value(rng, 'word', split)}.{rng.choice(['com', 'org', 'net'])}".lower()
        return at, at
    if kind == "text" and split == "train" and rng.random() < 0.3:
        words = rng.choice(PAIRS)[0].rstrip(".?!")
        return words, words
    if kind == "text":
        words = " ".join(value(rng, "word", split) for _ in range(rng.choice([1, 2, 2, 3, 4])))
        return words, words
    word = value(rng, kind, split)
    if kind in ("place", "name", "word") and split == "train" and rng.random() < 0.06:
        word = _foreign(rng)
    return word, word


def _foreign(rng: random.Random) -> str:
    """A word of letters that are several bytes each, each of which has to be copied."""
    first, last = (ord(letter) for letter in rng.choice(("ßÿ", "αω", "ая", "一鿋", "あん", "가힣")))
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(2, 6)))


def number(rng: random.Random, split: Split) -> int:
    """A whole number; small ones, as people say them, are in training only."""
    while True:
        n = rng.choice([rng.randrange(1, 21), rng.randrange(100), rng.randrange(1000), rng.randrange(10_000)])
        if (n > 20 and is_heldout(str(n))) if split == "heldout" else (n <= 20 or not is_heldout(str(n))):
            return n


def _day(rng: random.Random, split: Split) -> str:
    if split == "train" and rng.random() < 0.5:
        if rng.random() < 0.2:
            return rng.choice(("today", "tomorrow"))
        return rng.choice(("", "", "", "next ")) + rng.choice(_DAYS)
    while True:
        day, month, year = rng.randrange(1, 29), rng.randrange(1, 13), rng.randrange(2024, 2035)
        said = rng.choice([f"{year}-{month:02}-{day:02}", f"{day} {_MONTHS[month - 1]}", f"{_MONTHS[month - 1]} {day}"])
        if is_heldout(said) == (split == "heldout"):
            return said


def draw_arguments(rng: random.Random, n: int, split: Split, only: tuple[ValueKind, ...] = ()) -> list[Argument]:
    """n arguments of different concepts, ``only`` of these kinds, that cannot be mistaken for one another."""
    concepts = rng.sample([concept for concept in CONCEPTS if not only or concept.kind in only], n)
    out: list[Argument] = []
    for concept in concepts:
        key = rng.choice([k for k in concept.keys if k not in {a.key for a in out}] or [concept.keys[0] + "_2"])
        made_up = rng.random() < 0.06
        if made_up:
            key = value(rng, "word", split).lower()
        others = {said.split()[0] for c in concepts if c is not concept for said in c.says}
        says = [s for s in concept.says if n == 1 or (s.split()[0] not in others and s != "{v}")]
        choices: tuple[str, ...] = ()
        if concept.kind == "choice":
            choices = tuple(rng.choice(_CHOICES).split())
            if made_up or rng.random() < 0.4:
                choices = tuple(dict.fromkeys(value(rng, "word", split).lower() for _ in range(rng.choice([2, 3, 4]))))
        words = key.replace("_", " ")
        one = Argument(
            key=key,
            kind=concept.kind,
            says=() if made_up else tuple(said.replace("{k}", words) for said in says),
            described=rng.choice(concept.described).replace("{k}", words) if rng.random() < 0.35 else "",
            required=rng.random() < 0.85,
            choices=choices,
            extra=(("title", words.title()),) if rng.random() < 0.2 else (),
        )
        out.append(one)
    return out
