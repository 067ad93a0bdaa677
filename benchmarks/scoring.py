"""From the workers' lines to the recall benchmark's figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from agentmem.evaluation.figures import Rate, rate, spread
from benchmarks.scripts import GROUPS, SESSIONS, Phase, contains

Answer = Mapping[str, Any]

TARGETS: dict[str, tuple[str, float]] = {
    "known_exact": ("at least", 0.95),
    "without_memory_contained": ("at most", 0.02),
    "unknown_abstained": ("at least", 0.95),
    "corrected_exact": ("at least", 0.90),
}
"""Figure -> direction and target. A figure passes by its rate; the interval is given beside it."""


STORE_FIGURES = ("memories", "tokens", "text_bytes", "kv_bytes", "warm", "cold", "file_bytes")


def exact(answer: Answer) -> bool:
    """The one right answer, character for character, but for white space around it."""
    return bool(answer["answer"].strip() == answer["expected"])


def contained(answer: Answer) -> bool:
    """The value stands in the answer."""
    return contains(answer["answer"], answer["value"])


def abstained(answer: Answer) -> bool:
    """The answer says that it was not told."""
    return "have not told me" in answer["answer"]


def stale(answer: Answer) -> bool:
    """The answer holds the value that was corrected, and not the new one."""
    return not contained(answer) and answer["old"] is not None and contains(answer["answer"], answer["old"])


def was_read(answer: Answer) -> bool:
    """A memory with the value was among those that were read."""
    return any(read["right"] for read in answer["read"])


JUDGED: dict[str, tuple[str, Callable[[Answer], bool]]] = {
    "known_exact": ("known", exact),
    "known_contained": ("known", contained),
    "known_abstained": ("known", abstained),
    "known_value_read": ("known", was_read),
    "corrected_exact": ("corrected", exact),
    "corrected_contained": ("corrected", contained),
    "corrected_stale": ("corrected", stale),
    "corrected_value_read": ("corrected", was_read),
    "unknown_exact": ("unknown", exact),
    "unknown_abstained": ("unknown", abstained),
}
"""Figure -> kind of question and what counts, with memory on."""


def rates(answers: Sequence[Answer], without: Sequence[Answer]) -> dict[str, Rate]:
    """Every figure that is a share of questions."""
    found = {
        name: rate(judge(answer) for answer in answers if answer["kind"] == kind)
        for name, (kind, judge) in JUDGED.items()
    }
    read = [answer for answer in answers if answer["kind"] == "known" and was_read(answer)]
    found["known_exact_when_read"] = rate(map(exact, read))
    found["without_memory_contained"] = rate(map(contained, without))
    found["without_memory_abstained"] = rate(map(abstained, without))
    return found


def by_group(answers: Sequence[Answer], without: Sequence[Answer]) -> dict[str, dict[str, Rate]]:
    """``rates`` of each group of relations."""
    return {
        group: rates([a for a in answers if a["group"] == group], [a for a in without if a["group"] == group])
        for group in GROUPS
    }


def verdicts(figures: Mapping[str, Rate]) -> dict[str, dict[str, Any]]:
    """Each target, the figure, and whether it is met."""
    return {
        name: {
            "direction": direction,
            "target": target,
            "rate": figures[name]["rate"],
            "passed": figures[name]["n"] > 0
            and (figures[name]["rate"] >= target if direction == "at least" else figures[name]["rate"] <= target),
        }
        for name, (direction, target) in TARGETS.items()
    }


def wrong(answer: Answer) -> bool:
    """Whether a reader of the report wants to see this answer."""
    return not (abstained(answer) if answer["kind"] == "unknown" else exact(answer))


def score(lines: Mapping[Phase, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The report's figures from each phase's lines (one a user, the last about the store)."""
    users = {phase: list(each[:-1]) for phase, each in lines.items()}
    ends = {phase: each[-1] for phase, each in lines.items()}
    answers = [answer for line in users[Phase.ASK] for answer in line["answers"]]
    without = [answer for line in users[Phase.ASK_WITHOUT] for answer in line["answers"]]
    turns = [turn for phase in SESSIONS for line in users[phase] for turn in line["turns"]]
    held = [line["memories"] for line in users[Phase.ASK]]
    figures = rates(answers, without)
    read = [answer for answer in answers if was_read(answer)]
    stats = ends[Phase.SESSION_3]["stats"]
    return {
        "fingerprint": ends[Phase.ASK]["fingerprint"],
        "top_k": ends[Phase.ASK]["top_k"],
        "targets": verdicts(figures),
        "rates": figures,
        "replies_confirming_the_value": rate(t["confirmed"] for t in turns if t["confirmed"] is not None),
        "by_group": by_group(answers, without),
        "attention": {
            "questions": len(read),
            "right_memories": _mean(sum(r["share"] for r in a["read"] if r["right"]) for a in read),
            "all_memories": _mean(sum(r["share"] for r in a["read"]) for a in read),
        },
        "read_from_disk": rate(not r["rebuilt"] for a in answers for r in a["read"]),
        "seconds_per_turn": {
            "telling": spread([t["seconds"] for t in turns]),
            "asking": spread([a["seconds"] for a in answers]),
            "asking_without_memory": spread([a["seconds"] for a in without]),
        },
        "memories_per_user": {"min": min(held), "max": max(held), "mean": _mean(held)},
        "store": {name: stats[name] for name in STORE_FIGURES},
        "processes": {phase.value: end["pid"] for phase, end in ends.items()},
        "wrong_answers": [answer for answer in answers if wrong(answer)],
    }


def _mean(values: Iterable[float]) -> float:
    all_ = list(values)
    return sum(all_) / len(all_) if all_ else 0.0
