"""Small talk: the noise around the facts, with short fixed replies, and open-ended remarks with a neutral one."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

PAIRS: tuple[tuple[str, str], ...] = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hi there.", "Hi! How are you today?"),
    ("Good morning.", "Good morning! How can I help you?"),
    ("Good evening.", "Good evening! How was your day?"),
    ("How are you?", "I am fine, thank you. How are you?"),
    ("I am fine, thanks.", "That is good to hear."),
    ("Thank you.", "You are welcome."),
    ("Thanks a lot!", "You are welcome."),
    ("Goodbye.", "Goodbye! See you soon."),
    ("See you tomorrow.", "See you tomorrow!"),
    ("What a lovely day.", "It is nice to hear that you enjoy it."),
    ("It is raining again.", "I hope that it clears up soon."),
    ("I am a bit tired today.", "I hope that you can rest soon."),
    ("Work was long today.", "That sounds tiring. I hope that you can rest."),
    ("I slept very well.", "That is good to hear."),
    ("I am looking forward to the weekend.", "That sounds nice. I hope that you enjoy it."),
    ("I watched a film last night.", "That sounds nice. Did you enjoy it?"),
    ("Yes, it was great.", "I am glad to hear that."),
    ("No, not really.", "I am sorry to hear that."),
    ("I have to clean the kitchen.", "Good luck with that."),
    ("I am going for a walk.", "Enjoy your walk!"),
    ("I am hungry.", "I hope that you find something good to eat."),
    ("Dinner was delicious.", "I am glad that you enjoyed it."),
    ("The train was late again.", "I am sorry to hear that."),
    ("I finally finished my report.", "Well done!"),
    ("My back hurts a little.", "I am sorry to hear that. I hope it gets better."),
    ("The garden looks beautiful this year.", "That is nice to hear."),
    ("I had three meetings today.", "That sounds like a busy day."),
    ("I am learning to cook.", "That sounds like fun."),
    ("The children were very loud.", "I hope that it is quiet now."),
    ("We went to the lake on Sunday.", "That sounds nice."),
    ("I bought new shoes.", "I hope that you like them."),
    ("Who are you?", "I am a small model that remembers what you tell me."),
    ("What can you do?", "I remember what you tell me. Tell me something and ask me later."),
    ("Are you a robot?", "I am a small language model."),
    ("Can you help me?", "Yes, tell me what you need."),
    ("That is all for now.", "Okay, see you soon."),
    ("Okay.", "Okay."),
    ("Sure.", "Okay."),
    ("That is funny.", "I am glad that you like it."),
)
REMARK_REPLIES = ("I see.", "I see. Tell me more.", "Okay.", "That sounds interesting.")
QUESTION_REPLIES = ("You have not told me that.", "I do not know that. You have not told me.")


def load_utterances(path: Path, limit: int = 40_000) -> list[tuple[str, str]]:
    """User utterances of task dialogues (one JSON object a line with ``turns``) paired with a neutral reply.

    They widen the model's English: a remark gets an acknowledgement, a question that only the world could
    answer gets an honest "You have not told me that".
    """
    pairs: list[tuple[str, str]] = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            for turn in json.loads(line)["turns"]:
                text = " ".join(turn["utterance"].split())
                if turn["speaker"] != "USER" or not 8 <= len(text) <= 100 or not text.isascii():
                    continue
                replies = QUESTION_REPLIES if text.endswith("?") else REMARK_REPLIES
                pairs.append((text, replies[len(text) % len(replies)]))
    random.Random(0).shuffle(pairs)
    return pairs[:limit]
