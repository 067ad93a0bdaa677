"""Arguments of made-up tools: what they are called, what values they take, and how people say them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

from agentmem.training.values import Split, is_heldout, value

ValueKind = Literal["place", "name", "word", "code", "day", "time", "count", "amount", "text", "email", "flag", "choice"]


@dataclass(frozen=True)
class Concept:
    """Something that tools ask for. ``says`` and ``described`` hold ``{v}``, the value, and ``{k}``, the key in words."""

    keys: tuple[str, ...]
    kind: ValueKind
    says: tuple[str, ...]
    described: tuple[str, ...]


def _concept(keys: str, kind: ValueKind, says: str, described: str) -> Concept:
    return Concept(tuple(keys.split()), kind, tuple(says.split("|")), tuple(described.split("|")))


CONCEPTS: tuple[Concept, ...] = (
    _concept("city location place town area", "place", "in {v}|in {v}|in {v}|at {v}|for {v}|near {v}|in the {k} of {v}",
             "The {k}.|Which {k}.|Name of the {k}.|Where to look."),
    _concept("origin start source departure_city from_city", "place", "from {v}", "Where it begins.|The {k}."),
    _concept("destination target to_city arrival_city end", "place", "to {v}", "Where it goes to.|The {k}."),
    _concept("name person user customer guest owner patient", "name", "for {v}|of {v}|named {v}|called {v}|by {v}",
             "The {k}.|Name of the {k}.|Who it is for.|Full name."),
    _concept("recipient to receiver contact", "name", "to {v}", "Who gets it.|The {k}."),
    _concept("sender author from_user", "name", "from {v}|by {v}", "Who sends it.|The {k}."),
    _concept("email email_address", "email", "to {v}|with {k} {v}|at {v}", "The {k}.|Where to write to."),
    _concept("day date when due_date", "day", "on {v}|on {v}|for {v}|by {v}", "The {k}.|Which day.|Day of the event."),
    _concept("time hour start_time", "time", "at {v}", "The {k}.|When it begins.|Time of the day."),
    _concept("people guests party_size persons seats", "count",
             "for {v} people|for {v} guests|for {v} persons|for {v}|with {v} people", "How many people.|Number of {k}."),
    _concept("quantity count amount number units", "count", "{v} times|{v} of them|{v} pieces|with {k} {v}",
             "How many.|The {k}.|Number of pieces."),
    _concept("nights days hours minutes duration weeks", "count", "for {v} {k}|lasting {v} {k}", "How long.|Number of {k}."),
    _concept("age", "count", "who is {v} years old|aged {v}|of age {v}", "The age in years.|How old."),
    _concept("limit max_results page top_k n", "count", "with {k} {v}|with at most {v} results|and {k} {v}",
             "How many results.|The {k}."),
    _concept("price budget amount total max_price", "amount", "for {v} dollars|for {v} euros|with a {k} of {v}|at {v} euros",
             "The {k}.|How much money.|Amount in euros."),
    _concept("weight height distance width temperature", "amount", "with {k} {v}|with a {k} of {v}|and {k} {v}",
             "The {k}.|The {k} in the usual unit."),
    _concept("key code id order_id reference account ticket number", "code",
             "{v}|with {k} {v}|number {v}|for {v}|with the {k} {v}|under {v}", "The {k}.|Which one.|The {k} to use."),
    _concept("room_number flight_number serial phone account_id", "code", "with {k} {v}|{k} {v}|for {k} {v}", "The {k}."),
    _concept("query topic subject term keyword search_term", "text", "about {v}|on the {k} {v}|for {v}",
             "What to look for.|The {k}.|The words."),
    _concept("message content body note text title", "text", "saying {v}|with the {k} {v}|that says {v}", "The {k}.|What to say."),
    _concept("item product thing object dish song", "word", "{v}|of {v}|for {v}|for the {k} {v}", "The {k}.|What it is.|Which {k}."),
    _concept("category kind type genre topic", "word", "of {k} {v}|in the {k} {v}|with {k} {v}", "The {k}.|Which {k}."),
    _concept("language target_language lang", "word", "in {v}|to {v}|into {v}", "The language.|Which language."),
    _concept("unit units scale", "choice", "in {v}", "The unit.|Which unit."),
    _concept("size color colour level priority mode status class style sort_by", "choice", "with {k} {v}|in {k} {v}|{k} {v}",
             "The {k}.|Which {k}."),
    _concept("urgent gift private express refundable notify verbose", "flag", "with {k} {v}|{k} {v}|and {k} is {v}",
             "Whether it is {k}.|{k} or not."),
)  # fmt: skip

_CHOICES = (
    "celsius fahrenheit", "small medium large", "red green blue", "low normal high", "economy business", "open closed",
    "fast slow", "metric imperial", "asc desc", "km miles", "north south east west", "draft final", "hot cold",
)  # fmt: skip
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday today tomorrow".split()
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


def draw_value(
    rng: random.Random, kind: ValueKind, split: Split, choices: tuple[str, ...] = ()
) -> tuple[Any, str]:
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
        cents = rng.choice(["5", "25", "99", "50", str(rng.randrange(1, 100)).rstrip("0")])
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
        at = f"{value(rng, 'word', split).lower()}@{value(rng, 'word', split).lower()}.{rng.choice(['com', 'org', 'net'])}"
        return at, at
    if kind == "text":
        words = " ".join(value(rng, "word", split) for _ in range(rng.choice([1, 2, 2, 3, 4])))
        return words, words
    word = value(rng, kind, split)
    return word, word


def number(rng: random.Random, split: Split) -> int:
    """A whole number; small ones, as people say them, are in training only."""
    while True:
        n = rng.choice([rng.randrange(1, 21), rng.randrange(100), rng.randrange(1000), rng.randrange(10_000)])
        if (n > 20 and is_heldout(str(n))) if split == "heldout" else (n <= 20 or not is_heldout(str(n))):
            return n


def _day(rng: random.Random, split: Split) -> str:
    if split == "train" and rng.random() < 0.5:
        return rng.choice(("", "", "", "next ")) + rng.choice(_DAYS[:7]) if rng.random() < 0.8 else rng.choice(_DAYS[7:])
    while True:
        day, month, year = rng.randrange(1, 29), rng.randrange(1, 13), rng.randrange(2024, 2035)
        said = rng.choice([f"{year}-{month:02}-{day:02}", f"{day} {_MONTHS[month - 1]}", f"{_MONTHS[month - 1]} {day}"])
        if is_heldout(said) == (split == "heldout"):
            return said


def draw_arguments(rng: random.Random, n: int, split: Split) -> list[Argument]:
    """n arguments of different concepts, whose ways of being said cannot be mistaken for one another's."""
    concepts = rng.sample(CONCEPTS, n)
    out: list[Argument] = []
    for concept in concepts:
        key = rng.choice([k for k in concept.keys if k not in {a.key for a in out}] or [concept.keys[0] + "_2"])
        made_up = rng.random() < 0.06
        if made_up:
            key = value(rng, "word", split).lower()
        others = {said.split()[0] for c in concepts if c is not concept for said in c.says}
        says = () if made_up else tuple(s for s in concept.says if n == 1 or s.split()[0] not in others and s != "{v}")
        choices: tuple[str, ...] = ()
        if concept.kind == "choice":
            choices = tuple(rng.choice(_CHOICES).split())
            if made_up or rng.random() < 0.4:
                choices = tuple(dict.fromkeys(value(rng, "word", split).lower() for _ in range(rng.choice([2, 3, 4]))))
        words = key.replace("_", " ")
        out.append(Argument(
            key=key,
            kind=concept.kind,
            says=tuple(s.replace("{k}", words) for s in says),
            described=rng.choice(concept.described).replace("{k}", words) if rng.random() < 0.35 else "",
            required=rng.random() < 0.85,
            choices=choices,
            extra=(("title", words.title()),) if rng.random() < 0.2 else (),
        ))  # fmt: skip
    return out
