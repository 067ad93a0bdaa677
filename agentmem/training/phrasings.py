"""How people ask for tools, and what tools return: one phrasing a line.

``{noun}`` and ``{verb}`` are the tool's (``{Verb}`` begins a sentence), ``{name}`` its name and ``{words}`` the words
of its name; ``{args}`` is what is said about the arguments, with the space before it.
"""

from __future__ import annotations


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip().replace("\\n", "\n") for line in text.strip().splitlines())


ASKED = _lines("""
    What is the {noun}{args}?
    What is the {noun}{args}?
    What's the {noun}{args}?
    Tell me the {noun}{args}.
    Show me the {noun}{args}, please.
    {Verb} the {noun}{args}.
    Please {verb} the {noun}{args}.
    Can you {verb} the {noun}{args}?
    I need the {noun}{args}.
    How is the {noun}{args}?
    How is the {noun}{args}?
    {Verb} {noun}{args}.
    Which {noun} is there{args}?
    I would like to know the {noun}{args}.
    Could you check the {noun}{args}?
    Do you know the {noun}{args}?
    {Noun}{args}, please.
    Give me the {noun}{args}.
    Is there a {noun}{args}?
""")
DONE = _lines("""
    {Verb} a {noun}{args}.
    {Verb} a {noun}{args}.
    {Verb} the {noun}{args}.
    Please {verb} a {noun}{args}.
    Can you {verb} a {noun}{args}?
    I want to {verb} a {noun}{args}.
    I need to {verb} the {noun}{args}.
    Could you {verb} my {noun}{args}, please?
    {Verb} {noun}{args}.
    {Verb} my {noun}{args}!
    Go and {verb} the {noun}{args}.
    I would like to {verb} a {noun}{args}.
    Please {verb} us a {noun}{args}.
    Would you {verb} one {noun}{args}?
""")
NAMED = _lines("""
    Call {name}{args}.
    Use {name}{args}.
    Please call {name}{args}.
    Use the {name} tool{args}.
    Run {name}{args}.
    Call the tool {name}{args}.
    Can you call {name}{args}?
    {name}{args}
    I want you to use {name}{args}.
""")
WORDED = _lines("""
    Use the {words} tool{args}.
    {Words}{args}.
    {words}{args}
    Do the {words}{args}.
    {Words}{args}, please.
""")
SHORT = _lines("""
    {noun}
    {Noun}?
    {Noun}, please.
    The {noun}.
    My {noun}!
    {words}
    {Words}, please.
    {Verb} {noun}.
    {Verb} the {noun}.
    A {noun}, please.
    What about the {noun}?
    Now the {noun}.
""")
BARE = _lines("""
    {Verb}{args}.
    {verb}{args}
    Please {verb}{args}.
    Can you {verb}{args}?
    I want to {verb}{args}.
    {Verb} it{args}.
    Could you {verb} something{args}?
    {Verb}{args}, please.
""")
SUMMED = _lines("""
    {verb} {a} and {b}
    {Verb} {a} and {b}.
    What is {a} {sign} {b}?
    What is {a} {word} {b}?
    {a} {sign} {b}
    Please {verb} {a} and {b}.
    Can you {verb} {a} and {b}?
    {Verb} {a} by {b}.
    {Verb} {a} with {b}.
    What is the {noun} of {a} and {b}?
    How much is {a} {word} {b}?
    Calculate {a} {sign} {b}.
    {Verb} {a} to {b}.
    {Verb} the numbers {a} and {b}.
""")
"""``{a}`` and ``{b}`` are the numbers, ``{sign}`` and ``{word}`` what stands between them."""
HANDED = _lines("""
    I want to talk to {noun}.
    I have a question about {noun}.
    Please transfer me to {noun}.
    Transfer me to {noun}.
    Can I speak to {noun}?
    Connect me with {noun}, please.
    I need help with {noun}.
    Get me the {noun} team.
    My problem is about {noun}.
    Ask {noun}.
    Hand me over to {noun}.
    Hand over to {noun}.
    I need {noun}.
""")
STATED = _lines("""
    {Verb} this {noun}.
    I need a {noun}.
    A {noun}, please.
    It is about the {noun}.
    Use {name}.
""")
"""Followed by statements about the arguments."""

RETURNED = _lines("""
    {word}, {n} degrees
    {word}
    {code}
    {n}
    {noun} {code} is {word}
    The {noun} is {word}.
    The {noun} is {code}.
    Done.
    ok
    {word} and {n}
    Your {noun} is confirmed: {code}.
    {noun} for {some}: {word}
    {some}: {word}, {n}
    Number {n} is ready for {some}.
    {noun} id {code}
    It is {word} in {some}.
    {n} {noun}s found
    {word}\\n{code}
    true
    {word} {noun}, {n} euros, {code}
    Booked: {code}
    [{n}, {code}]
    1. {word} 2. {code}
    {n} %
    {word} since {n}
""")
"""What a tool returns: a made-up word, a number, a code, ``{some}`` argument of the call."""
FAILED = _lines("""
    error: no {noun} for {some}
    Error: {some} is unknown.
    {{"error": "{word}"}}
    error {n}
    Not found.
    The {noun} is not available.
    error: try {word} later
""")
TRANSFERRED = _lines("""
    {{"assistant": "{Noun}"}}
    Transferred to {noun}.
    Successfully transferred to {noun}
    ok
""")
