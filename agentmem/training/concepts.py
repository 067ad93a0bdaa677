"""What tools ask for: places, people, numbers, and so on, with their keys and how people say them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ValueKind = Literal[
    "place", "name", "word", "code", "day", "time", "count", "amount", "text", "email", "flag", "choice"
]


@dataclass(frozen=True)
class Concept:
    """Something that tools ask for.

    ``says`` and ``described`` hold ``{v}``, the value, and ``{k}``, the key in words.
    """

    keys: tuple[str, ...]
    kind: ValueKind
    says: tuple[str, ...]
    described: tuple[str, ...]


def _concept(keys: str, kind: ValueKind, says: str, described: str) -> Concept:
    return Concept(tuple(keys.split()), kind, tuple(says.split("|")), tuple(described.split("|")))


CONCEPTS: tuple[Concept, ...] = (
    _concept(
        "city location place town area",
        "place",
        "in {v}|in {v}|in {v}|at {v}|for {v}|near {v}|in the {k} of {v}",
        "The {k}.|Which {k}.|Name of the {k}.|Where to look.",
    ),
    _concept(
        "origin start source departure_city from_city",
        "place",
        "from {v}",
        "Where it begins.|The {k}.",
    ),
    _concept(
        "destination target to_city arrival_city end",
        "place",
        "to {v}",
        "Where it goes to.|The {k}.",
    ),
    _concept(
        "name person user customer guest owner patient",
        "name",
        "for {v}|of {v}|named {v}|called {v}|by {v}|under the {k} {v}",
        "The {k}.|Name of the {k}.|Who it is for.|Full name.",
    ),
    _concept(
        "recipient to receiver contact",
        "name",
        "to {v}",
        "Who gets it.|The {k}.",
    ),
    _concept(
        "sender author from_user",
        "name",
        "from {v}|by {v}",
        "Who sends it.|The {k}.",
    ),
    _concept(
        "email email_address",
        "email",
        "to {v}|with {k} {v}|at {v}",
        "The {k}.|Where to write to.",
    ),
    _concept(
        "day date when due_date",
        "day",
        "on {v}|on {v}|for {v}|by {v}",
        "The {k}.|Which day.|Day of the event.",
    ),
    _concept(
        "time hour start_time",
        "time",
        "at {v}",
        "The {k}.|When it begins.|Time of the day.",
    ),
    _concept(
        "people guests party_size persons seats",
        "count",
        "for {v} people|for {v} guests|for {v} persons|for {v}|with {v} people",
        "How many people.|Number of {k}.",
    ),
    _concept(
        "quantity count amount number units",
        "count",
        "{v} times|{v} of them|{v} pieces|with {k} {v}",
        "How many.|The {k}.|Number of pieces.",
    ),
    _concept(
        "nights days hours minutes duration weeks",
        "count",
        "for {v} {k}|lasting {v} {k}",
        "How long.|Number of {k}.",
    ),
    _concept(
        "age",
        "count",
        "who is {v} years old|aged {v}|of age {v}",
        "The age in years.|How old.",
    ),
    _concept(
        "limit max_results page top_k n",
        "count",
        "with {k} {v}|with at most {v} results|and {k} {v}",
        "How many results.|The {k}.",
    ),
    _concept(
        "price budget amount total max_price",
        "amount",
        "for {v} dollars|for {v} euros|with a {k} of {v}|at {v} euros",
        "The {k}.|How much money.|Amount in euros.",
    ),
    _concept(
        "weight height distance width temperature",
        "amount",
        "with {k} {v}|with a {k} of {v}|and {k} {v}",
        "The {k}.|The {k} in the usual unit.",
    ),
    _concept(
        "key code id order_id reference account ticket number",
        "code",
        "{v}|with {k} {v}|number {v}|for {v}|with the {k} {v}|under {v}",
        "The {k}.|Which one.|The {k} to use.",
    ),
    _concept(
        "room_number flight_number serial phone account_id",
        "code",
        "with {k} {v}|{k} {v}|for {k} {v}",
        "The {k}.",
    ),
    _concept(
        "query topic subject term keyword search_term",
        "text",
        "about {v}|on the {k} {v}|for {v}|with the {k} {v}|and the {k} {v}",
        "What to look for.|The {k}.|The words.",
    ),
    _concept(
        "message content body note text title",
        "text",
        "saying {v}|with the {k} {v}|that says {v}|and the {k} {v}",
        "The {k}.|What to say.",
    ),
    _concept(
        "item product thing object dish song",
        "word",
        "{v}|of {v}|for {v}|for the {k} {v}",
        "The {k}.|What it is.|Which {k}.",
    ),
    _concept(
        "category kind type genre topic",
        "word",
        "of {k} {v}|in the {k} {v}|with {k} {v}",
        "The {k}.|Which {k}.",
    ),
    _concept(
        "language target_language lang",
        "word",
        "in {v}|to {v}|into {v}",
        "The language.|Which language.",
    ),
    _concept(
        "unit units scale",
        "choice",
        "in {v}",
        "The unit.|Which unit.",
    ),
    _concept(
        "size color colour level priority mode status class style sort_by",
        "choice",
        "with {k} {v}|in {k} {v}|{k} {v}",
        "The {k}.|Which {k}.",
    ),
    _concept(
        "urgent gift private express refundable notify verbose",
        "flag",
        "with {k} {v}|{k} {v}|and {k} is {v}",
        "Whether it is {k}.|{k} or not.",
    ),
)
