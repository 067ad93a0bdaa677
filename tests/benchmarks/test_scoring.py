import pytest

from benchmarks.scoring import TARGETS, by_group, rates, score, verdicts
from benchmarks.scripts import GROUPS, Phase


def answered(kind, text, *, group="name", read=(), old=None):
    expected = "Your dog? You have not told me." if kind == "unknown" else "Your dog is called Rex."
    return {
        "kind": kind,
        "group": group,
        "relation": "dog",
        "question": "What is my dog called?",
        "expected": expected,
        "value": "" if kind == "unknown" else "Rex",
        "old": old,
        "answer": text,
        "seconds": 0.5,
        "read": [{"text": t, "role": "user", "share": s, "right": r, "rebuilt": False} for t, s, r in read],
    }


RIGHT = ("My dog is called Rex.", 0.6, True)
OTHER = ("Hello!", 0.1, False)
ANSWERS = [
    answered("known", "Your dog is called Rex.", read=[RIGHT, OTHER]),
    answered("known", " Your dog is called Rex. \n", read=[RIGHT]),
    answered("known", "Rex is your dog.", read=[OTHER]),
    answered("known", "Your dog? You have not told me.", group="tool"),
    answered("corrected", "Your dog is called Rex.", old="Max", read=[RIGHT]),
    answered("corrected", "Your dog is called Max.", old="Max", read=[RIGHT]),
    answered("corrected", "Your dog is called Rexmax.", old="Max"),
    answered("unknown", "Your dog? You have not told me."),
    answered("unknown", "The dog? You have not told me."),
    answered("unknown", "Your dog is called Max."),
]
WITHOUT = [answered("known", "Your dog is called Max."), answered("known", "Your dog is called Rex.")]


@pytest.mark.parametrize(
    ("name", "hits", "n"),
    [
        ("known_exact", 2, 4),
        ("known_contained", 3, 4),
        ("known_abstained", 1, 4),
        ("known_value_read", 2, 4),
        ("known_exact_when_read", 2, 2),
        ("corrected_exact", 1, 3),
        ("corrected_contained", 1, 3),
        ("corrected_stale", 1, 3),
        ("corrected_value_read", 2, 3),
        ("unknown_exact", 1, 3),
        ("unknown_abstained", 2, 3),
        ("without_memory_contained", 1, 2),
        ("without_memory_abstained", 0, 2),
    ],
)
def test_each_figure_counts_what_it_says(name, hits, n):
    figure = rates(ANSWERS, WITHOUT)[name]
    assert (figure["hits"], figure["n"]) == (hits, n)


def test_groups_partition_the_questions():
    groups = by_group(ANSWERS, WITHOUT)
    assert set(groups) == set(GROUPS)
    for name, figure in rates(ANSWERS, WITHOUT).items():
        assert sum(groups[group][name]["n"] for group in GROUPS) == figure["n"]
        assert sum(groups[group][name]["hits"] for group in GROUPS) == figure["hits"]


def test_targets_pass_at_their_bound_and_fail_beyond():
    at = {name: {"hits": 1, "n": 100, "rate": target, "low": 0, "high": 1} for name, (_, target) in TARGETS.items()}
    assert all(verdict["passed"] for verdict in verdicts(at).values())
    for name, (direction, target) in TARGETS.items():
        worse = target - 0.001 if direction == "at least" else target + 0.001
        beyond = {**at, name: {**at[name], "rate": worse}}
        assert [n for n, verdict in verdicts(beyond).items() if not verdict["passed"]] == [name]


def test_a_figure_without_questions_meets_no_target():
    assert not any(verdict["passed"] for verdict in verdicts(rates([], [])).values())


def test_score_puts_the_report_together():
    end = {"pid": 1, "top_k": 8, "fingerprint": "f", "stats": dict.fromkeys(
        ("memories", "tokens", "text_bytes", "kv_bytes", "warm", "cold", "file_bytes"), 7)}  # fmt: skip
    turn = {"seconds": 0.25, "confirmed": True}
    sessions = {
        phase: [{"user": "u", "memories": 4, "turns": [turn, {**turn, "confirmed": None}]}, {**end, "pid": number}]
        for number, phase in enumerate((Phase.SESSION_1, Phase.SESSION_2, Phase.SESSION_3))
    }
    result = score(
        sessions
        | {
            Phase.ASK: [{"user": "u", "memories": 46, "answers": ANSWERS}, {**end, "pid": 3}],
            Phase.ASK_WITHOUT: [{"user": "u", "memories": 66, "answers": WITHOUT}, {**end, "pid": 4}],
        }
    )
    assert result["memories_per_user"] == {"min": 46, "max": 46, "mean": 46.0}
    assert result["processes"] == {"session-1": 0, "session-2": 1, "session-3": 2, "ask": 3, "ask-without": 4}
    assert (result["replies_confirming_the_value"]["hits"], result["replies_confirming_the_value"]["n"]) == (3, 3)
    assert result["seconds_per_turn"]["telling"]["median"] == 0.25
    assert result["attention"]["questions"] == 4
    assert result["attention"]["right_memories"] == pytest.approx(0.6)
    assert result["attention"]["all_memories"] == pytest.approx((0.7 + 0.6 * 3) / 4)
    assert result["read_from_disk"]["rate"] == 1.0
    assert [a["answer"] for a in result["wrong_answers"]] == [
        "Rex is your dog.",
        "Your dog? You have not told me.",
        "Your dog is called Max.",
        "Your dog is called Rexmax.",
        "Your dog is called Max.",
    ]
