"""Answers that are decoded together are those that are decoded alone, whoever comes and goes meanwhile."""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, local, some_ids
from transformers import DynamicCache

from agentmem.errors import InvalidInput
from agentmem.llm import bundled_model
from agentmem.model.attention import Placed
from agentmem.model.batch import Batch, can_batch
from agentmem.model.decoder import ROWS
from agentmem.model.generation import Generation
from agentmem.model.grammar import Rules
from agentmem.model.local import LocalModel
from agentmem.model.sampling import Sampling
from agentmem.model.stream import Stream, StreamPlan


@functools.cache
def model() -> LocalModel:
    return local("llama")


@functools.cache
def memory(seed: int, n: int, temperature: float = 1.0, scale: float = 1.0) -> Placed:
    kvs = model().encode_batch([some_ids(5 + 3 * i, 10 * seed + i) for i in range(n)])
    return model().place(kvs, [-20] * n, temperature=temperature, scale=scale)


# ------------------------------------------------------------------------------------------------------------- logits


def contexts(model: LocalModel, name: str) -> list[tuple[list[int], Placed | None]]:
    """Rows of different lengths; some read, in their own ways."""
    kvs = model.encode_batch([some_ids(9, 1), some_ids(14, 2), some_ids(4, 3)])
    behind = model.precede(model.place(kvs[:1], [-9]), model.encode(some_ids(3, 8)), -12)
    return [
        (some_ids(7, 4), model.place(kvs[:2], [-14, -14])),
        (some_ids(30, 5), None),
        (some_ids(19, 6), model.place(kvs, [-27, -18, -4], windowed=True)),
        (some_ids(1, 7), model.place(kvs[2:], [-4], temperature=0.8, scale=1.2)),
        (some_ids(12, 9), behind),
    ]


def keeps_its_keys(model: LocalModel) -> bool:
    """Whether the context's cache holds the keys that attention sees."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model.model(input_ids=torch.tensor([some_ids(3, 1)]), past_key_values=cache, use_cache=True)
    return bool(cache.layers[0].keys.shape[1:] == model.encode(some_ids(3, 1)).keys[0].shape)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_row_has_the_logits_and_shares_that_it_has_alone(name: str) -> None:
    model = local(name)
    # Newer transformers cache DeepSeek's keys in a compressed form, which its layers expand: decoded one at a time.
    assert can_batch(model.model) == keeps_its_keys(model)
    if name == "deepseek_v3" and not keeps_its_keys(model):
        return
    assert can_batch(model.model)
    batch, rows, wanted = Batch(model.model), contexts(model, name), []
    for ids, placed in rows:
        cache = DynamicCache(config=model.config)
        with torch.no_grad(), model.reading(placed):
            model.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
        batch.join(cache, len(ids), placed)
    more = [some_ids(4, 20 + row) for row in range(len(rows))]
    for at in range(4):
        logits, shares = batch.step([tokens[at] for tokens in more], [True] * len(rows))
        for row, (ids, placed) in enumerate(rows):
            with model.reading(placed) as reader, torch.no_grad():
                alone = model.model(input_ids=torch.tensor([ids + more[row][: at + 1]]), use_cache=False).logits[0, -1]
            assert (logits[row] - alone).abs().max() < 1e-4
            wanted = reader.shares
            assert (shares[row] is None) == (placed is None)
            if placed is not None:
                assert (shares[row] - wanted[0][1][-1]).abs().max() < 1e-5


def test_a_row_that_stands_still_is_not_changed_and_one_that_leaves_makes_room() -> None:
    batch = Batch(model().model)
    rows = [(some_ids(5 + row, row), memory(row, 2) if row % 2 else None) for row in range(4)]
    for ids, placed in rows:
        cache = DynamicCache(config=model().config)
        with torch.no_grad(), model().reading(placed):
            model().model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
        batch.join(cache, len(ids), placed)

    def alone(row: int, token: int) -> torch.Tensor:
        ids, placed = rows[row]
        return model().logits([*ids, token], placed)[-1]

    batch.step([9, 9, 9, 9], [False] * 4)
    logits, _ = batch.step([7, 8, 9, 10], [False, True, True, True])
    for row in range(4):
        assert (logits[row] - alone(row, 7 + row)).abs().max() < 1e-4
    assert batch.leave(0) == 3  # the last one stands in the first place now
    rows[1], rows[2] = ([*rows[1][0], 8], rows[1][1]), ([*rows[2][0], 9], rows[2][1])
    rows[0] = ([*rows[3][0], 10], rows[3][1])
    logits, shares = batch.step([4, 5, 6], [True] * 3)
    for row in range(3):
        assert (logits[row] - alone(row, 4 + row)).abs().max() < 1e-4
    assert [share is None for share in shares] == [False, False, True]
    for _ in range(3):
        batch.leave(0)
    assert len(batch) == 0


# ------------------------------------------------------------------------------------------------------------ answers


@dataclass(frozen=True)
class Asked:
    """One request of a crowd. ``after``: it comes when the first one has so many tokens."""

    seed: int
    prompt: int
    n: int
    memories: int
    swaps: bool
    temperature: float
    after: int
    cancel: int | None

    def begin(self) -> Generation:
        def on_stride(ids: list[int]) -> Placed | None:
            model().embed(["the model is used meanwhile"])
            return memory(self.seed + len(ids), 1 + len(ids) % 3) if len(ids) % 2 else None

        options: dict[str, Any] = {"on_stride": on_stride, "stride": 5} if self.swaps else {}
        placed = memory(self.seed, self.memories, 0.9, 0.9) if self.memories else None
        sampling = Sampling(self.temperature, seed=self.seed)
        ids = some_ids(self.prompt, self.seed)
        return model().generate(ids, placed=placed, max_new_tokens=self.n, sampling=sampling, **options)


ASKED = st.builds(
    Asked,
    seed=st.integers(0, 5),
    prompt=st.integers(1, 70),
    n=st.integers(1, 40),
    memories=st.integers(0, 3),
    swaps=st.booleans(),
    temperature=st.sampled_from([0.0, 0.0, 1.5]),
    after=st.integers(0, 20),
    cancel=st.none() | st.integers(1, 20),
)


@functools.cache
def alone(asked: Asked) -> tuple[list[int], str, list[torch.Tensor]]:
    generation = asked.begin()
    text = generation.text
    return generation.token_ids, text, [shares for _, shares in generation.shares]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ASKED, min_size=2, max_size=6))
def test_whoever_comes_and_goes_every_answer_is_the_one_it_is_alone(crowd: list[Asked]) -> None:
    wanted = [alone(asked) for asked in crowd]
    running = model().generate(some_ids(3, 99), max_new_tokens=300)
    generations: list[Generation] = [running] * len(crowd)
    for number in sorted(range(len(crowd)), key=lambda number: crowd[number].after):
        while len(running.token_ids) < crowd[number].after:
            time.sleep(0.0005)
        generations[number] = crowd[number].begin()
    for asked, generation, (ids, text, shares) in zip(crowd, generations, wanted, strict=True):
        if asked.cancel is None:
            assert generation.text == text
            assert generation.token_ids == ids
            got = [some for _, some in generation.shares]
            assert [one.shape for one in got] == [one.shape for one in shares]
            assert all((a - b).abs().max() < 1e-4 for a, b in zip(got, shares, strict=True) if len(a))
            continue
        while len(generation.token_ids) < asked.cancel and not generation._run.ended.is_set():
            time.sleep(0.0005)
        generation.close()
        n = len(generation.token_ids)
        assert generation.token_ids == ids[:n]
        assert text.startswith(generation.text.rstrip("\ufffd"))
        assert n == len(ids) or generation.finish_reason == "cancelled"
    running.close()


def test_more_answers_than_are_decoded_at_once_wait_and_are_answered() -> None:
    crowd = [Asked(i % 5, 3 + i % 7, 12, i % 3, False, 0.0, 0, None) for i in range(ROWS + 8)]
    wanted = [alone(asked)[0] for asked in crowd]
    generations = [asked.begin() for asked in crowd]
    for generation in generations:
        _ = generation.text
    assert [generation.token_ids for generation in generations] == wanted


def test_one_that_waits_for_room_can_be_given_up() -> None:
    running = [model().generate(some_ids(3, 7), max_new_tokens=480) for _ in range(ROWS)]
    late = model().generate(some_ids(3, 8), max_new_tokens=480)
    while any(not generation.token_ids for generation in running):
        time.sleep(0.001)
    late.close()
    assert late.token_ids == []
    assert late.finish_reason == "cancelled"
    for generation in running:
        generation.close()


def test_an_error_ends_its_own_answer_only() -> None:
    def gone(ids: list[int]) -> None:
        raise LookupError("the store is gone")

    other = Asked(1, 9, 30, 2, False, 0.0, 0, None)
    wanted = alone(other)[0]
    good, bad = other.begin(), model().generate(some_ids(4, 3), on_stride=gone, stride=4, max_new_tokens=30)
    with pytest.raises(LookupError, match="gone"):
        _ = bad.text
    assert good.text
    assert good.token_ids == wanted


def test_an_answer_that_recalls_keeps_nobody_waiting() -> None:
    """The others go on while one looks for its memories, and the model is free between their steps."""
    held = threading.Event()

    def slow(ids: list[int]) -> None:
        assert held.wait(30)

    waiting = model().generate(some_ids(4, 3), on_stride=slow, stride=4, max_new_tokens=8)
    other = model().generate(some_ids(4, 4), max_new_tokens=60)
    assert len(other.text) > 0
    assert len(other.token_ids) == 60
    assert len(waiting.token_ids) == 4
    begun = time.monotonic()
    running = model().generate(some_ids(4, 4), max_new_tokens=480)
    next(running)
    for _ in range(20):
        model().embed(["the model is free between two steps"])
    assert not running._run.ended.is_set()
    running.close()
    held.set()
    assert len(waiting.text) > 0
    assert len(waiting.token_ids) == 8
    assert time.monotonic() - begun < 20


def test_answers_that_follow_a_grammar_are_decoded_with_the_others() -> None:
    model = LocalModel.load(bundled_model(), device="cpu")
    rules = Rules(lambda text: None)
    grammar = rules.grammar(rules.json({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}))

    def ask(number: int) -> Generation:
        sampling = Sampling(1.0, seed=number) if number > 2 else None
        rule = grammar if number % 2 else None
        return model.generate([1, 40 + number, 50], max_new_tokens=30, sampling=sampling, grammar=rule)

    wanted = [ask(number).text for number in range(5)]
    together = [ask(number) for number in range(5)]
    assert [generation.text for generation in together] == wanted
    assert all(wanted[number].startswith('{"n":') for number in (1, 3))


def test_a_stream_is_decoded_beside_a_batch() -> None:
    plan = StreamPlan(n_init=8, n_local=32, block_size=8, top_k=3, n_repr=2, step=16, cached_blocks=4)
    crowd = [Asked(i, 9 + i, 30, i, False, 0.0, 0, None) for i in range(3)]
    wanted = [alone(asked)[0] for asked in crowd]
    told = Stream(model(), plan).generate(some_ids(90, 5), max_new_tokens=25)
    text = told.text
    generations = [asked.begin() for asked in crowd]
    beside = Stream(model(), plan).generate(some_ids(90, 5), max_new_tokens=25)
    assert beside.text == text
    for generation in generations:
        _ = generation.text
    assert [generation.token_ids for generation in generations] == wanted


def test_a_model_that_no_batch_can_hold_answers_one_token_of_each_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = [Asked(i, 9 + i, 30, i, True, 0.0, 0, None) for i in range(3)]
    wanted = [alone(asked)[0] for asked in crowd]
    monkeypatch.setattr(model().decoder, "_fits", False)
    generations = [asked.begin() for asked in crowd]
    for generation in generations:
        _ = generation.text
    assert [generation.token_ids for generation in generations] == wanted


def test_bad_input_is_refused_while_others_are_answered() -> None:
    running = model().generate(some_ids(3, 7), max_new_tokens=480)
    with pytest.raises(InvalidInput):
        model().generate([], max_new_tokens=4)
    next(running)
    running.close()
