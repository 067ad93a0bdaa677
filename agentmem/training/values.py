"""Made-up values (names, words, codes, lists) that can only be known by having been told.

Every value belongs to one of two splits by its checksum, so that one used in a test is never seen in training.
"""

from __future__ import annotations

import random
import zlib
from typing import Literal

Split = Literal["train", "heldout"]
Kind = Literal["name", "word", "place", "code", "list"]

HELDOUT_SHARE = 8
"""One value string in this many is held out."""

_ONSETS = "b c d f g h j k l m n p r s t v w z br cl cr dr fl gr pl pr sh sk sl sp st th tr ch qu".split()
_NUCLEI = "a e i o u a e i o u ai ee ie oa oo ou ay".split()
_CODAS = ["", "", "", "n", "r", "s", "l", "m", "t", "nd", "x", "ck"]
_PLACES = ["Street", "Road", "Lane", "Hill", "Bay", "Park", "Avenue"]
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_COMMON = (
    "Biscuit Rex Bella Max Luna Charlie Milo Daisy Rocky Oscar Alice Bob Carol David Emma Frank Grace Henry Irene Jack "
    "Kate Liam Maria Noah Olivia Peter Quinn Rosa Sam Tina Victor Wendy Anna Ben Clara Daniel Elena Felix Hannah Ivan "
    "Julia Karl Laura Martin Nina Omar Paula Robert Sofia Thomas London Paris Berlin Madrid Rome Vienna Oslo Dublin "
    "Boston Chicago Denver Seattle Toronto Tokyo Delhi Cairo Lima"
).split()
_PLAIN = (
    "blue green red yellow purple orange pink silver pizza pasta sushi salad soup curry rice bread cheese apples milk "
    "eggs coffee tea honey butter tomatoes potatoes onions carrots fish chess tennis football guitar piano drums "
    "violin reading cooking hiking swimming painting physics history music biology"
).split()


def is_heldout(value: str) -> bool:
    """True when the value is kept for tests."""
    return zlib.crc32(value.lower().encode()) % HELDOUT_SHARE == 0


def _pseudo_word(rng: random.Random) -> str:
    syllables = rng.choice([2, 2, 2, 3])
    return "".join(rng.choice(_ONSETS) + rng.choice(_NUCLEI) for _ in range(syllables)) + rng.choice(_CODAS)


def _code(rng: random.Random) -> str:
    shape = rng.choice(["dddd", "ddddd", "LddL", "LL-ddd", "Ld-dd", "ddd-ddd", "LLdd", "Lddd"])
    return "".join(rng.choice(_LETTERS) if c == "L" else str(rng.randrange(10)) if c == "d" else c for c in shape)


def _draw(rng: random.Random, kind: Kind, common: float) -> str:
    if kind == "code":
        return _code(rng)
    if kind == "list":
        items = [
            rng.choice(_PLAIN) if rng.random() < common else _pseudo_word(rng) for _ in range(rng.choice([2, 3, 3]))
        ]
        return ", ".join(items[:-1]) + " and " + items[-1]
    if kind == "word":
        return rng.choice(_PLAIN) if rng.random() < common else _pseudo_word(rng)
    name = rng.choice(_COMMON) if rng.random() < common else _pseudo_word(rng).capitalize()
    if kind == "place" and rng.random() < 0.5:
        return f"{name} {rng.choice(_PLACES)}"
    if kind == "name" and rng.random() < 0.15:
        return f"{name} {_pseudo_word(rng).capitalize()}"
    return name


def value(rng: random.Random, kind: Kind, split: Split = "train") -> str:
    """Draw a value of the split. Held-out values are made-up words and codes only, never common ones."""
    while True:
        drawn = _draw(rng, kind, 0.2 if split == "train" else 0.0)
        words = [w for w in drawn.replace(",", " ").split() if w not in _PLACES and w != "and"]
        if all(is_heldout(w) for w in words) if split == "heldout" else not any(is_heldout(w) for w in words):
            return drawn
