"""The engine of streams: what is kept, found again and refused. Its formulas: test_recipe_matrix.py."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import VOCAB, local
from torch import Tensor

from agentmem.errors import InvalidInput, PayloadDamaged
from agentmem.model.sampling import Sampling
from agentmem.model.stream import BlocksInRam, Stream, StreamPlan
from agentmem.recipes import InfLLM, LMInfinite, StreamingLLM
from agentmem.records import Scope
from agentmem.store import Store

PLAN = StreamPlan(n_init=8, n_local=32, block_size=8, top_k=3, n_repr=2, step=16, cached_blocks=4)


def ids(n: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(5, VOCAB) for _ in range(n)]


class Indexed(BlocksInRam):
    """Keeps the index entries too, as a store does."""

    def __init__(self) -> None:
        super().__init__()
        self.index = b""

    def append(self, record: bytes, index: bytes) -> None:
        super().append(record, index)
        self.index += index


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_oss"])
@pytest.mark.parametrize("cut", [5, 40, 111])
def test_a_stream_that_was_closed_goes_on_bit_for_bit(family: str, cut: int) -> None:
    model, text = local(family), ids(160)
    blocks = Indexed()
    first = Stream(model, PLAN, blocks)
    first.feed(text[:cut])
    second = Stream(model, PLAN, blocks)
    second.restore(first.tail(), blocks.index)
    assert torch.equal(second.feed(text[cut:], all_logits=True), first.feed(text[cut:], all_logits=True))
    assert second.retrieved == first.retrieved


def test_within_the_window_a_stream_is_the_plain_model() -> None:
    model, text = local("llama"), ids(32)
    got = Stream(model, PLAN).feed(text, all_logits=True)
    torch.testing.assert_close(got, model.logits(text), atol=1e-4, rtol=0.0)


def test_positions_never_leave_the_trained_range(monkeypatch: pytest.MonkeyPatch) -> None:
    model = local("llama")
    monkeypatch.setattr(model, "max_positions", 64)
    seen: list[Tensor] = []
    forward = model.model.base_model.forward
    rotate = model.rotary.rotate

    def watched(*args: object, **kwargs: object) -> object:
        position_ids = kwargs["position_ids"]
        assert isinstance(position_ids, Tensor)
        seen.append(position_ids)
        return forward(*args, **kwargs)

    def turned(layer: int, keys: Tensor, positions: Tensor, *rest: object) -> Tensor:
        seen.append(positions)
        return rotate(layer, keys, positions, *rest)

    monkeypatch.setattr(model.model.base_model, "forward", watched)
    monkeypatch.setattr(model.rotary, "rotate", turned)
    stream = Stream(model, PLAN)
    stream.feed(ids(300))
    for token in ids(80, 1):
        stream.feed([token])
    used = torch.cat([one.flatten() for one in seen])
    assert used.min() >= 0
    assert used.max() < 64


@pytest.mark.parametrize(
    "other",
    [
        {"cached_blocks": 3},
        {"cached_blocks": 40},
        {"cache_policy": "lru"},
        {"decay": 0.9},
    ],
)
def test_the_cache_decides_how_fast_not_what(other: dict[str, object]) -> None:
    model, text = local("llama"), ids(300)
    plain = Stream(model, PLAN).feed(text, all_logits=True)
    got = Stream(model, replace(PLAN, **other)).feed(text, all_logits=True)  # type: ignore[arg-type]  # fields by name
    torch.testing.assert_close(got, plain, atol=1e-4, rtol=0.0)


def test_ram_is_bounded_and_the_rest_is_read_again(tmp_path: Path) -> None:
    model, text = local("llama"), ids(600)
    with Store.open(tmp_path / "m.db") as store:
        layout = Stream(model, PLAN).layout
        kept = store.scope(Scope(user="ada")).open_stream(
            "s", fingerprint="f", record_bytes=layout.record_bytes, index_bytes=layout.index_bytes
        )
        small = Stream(model, PLAN, kept, layout=layout, ram_bytes=3 * layout.shapes[0].head_bytes)
        small.feed(text)
        assert small.bank.ram_used <= 3 * layout.shapes[0].head_bytes
        assert small.bank.loads["blocks"] > small.bank.loads["ram"]
        large = Stream(model, PLAN)
        large.feed(text)
        assert large.bank.loads["ram"] > large.bank.loads["blocks"]
        assert torch.equal(small.feed([7]), large.feed([7]))


def test_the_decayed_score_is_that_of_the_paper() -> None:
    stream = Stream(local("llama"), replace(PLAN, cached_blocks=3, decay=0.5))
    bank = stream.bank
    stream.feed(ids(200))
    slots = bank._slots[0, 0]
    before = dict(slots.scores)
    wanted = sorted(before)[:2]
    bank.used(0, [wanted, sorted(bank._slots[0, 1].scores)[:2]], torch.tensor([[3.0, 1.0], [0.0, 0.0]]))
    assert slots.scores == pytest.approx(
        {b: 0.5 * s + (3.0 if b == wanted[0] else 1.0 if b == wanted[1] else 0.0) for b, s in before.items()}
    )


def test_what_is_read_is_counted() -> None:
    stream = Stream(local("llama"), PLAN)
    stream.feed(ids(200))
    stream.count_reads()
    for token in ids(5, 3):
        stream.feed([token])
    shares = stream.counted_reads()
    read = {block for heads in stream.retrieved.values() for head in heads for block in head}
    assert read <= shares.keys()
    assert 0 < sum(shares.values()) < 1


def test_stored_blocks_are_never_changed() -> None:
    blocks = Indexed()
    stream = Stream(local("llama"), PLAN, blocks)
    stream.feed(ids(200))
    before = [bytes(record) for record in blocks._records]
    stream.feed(ids(200, 1))
    assert blocks._records[: len(before)] == before


def test_generating_is_greedy_or_sampled_with_a_seed() -> None:
    model, text = local("llama"), ids(120)
    stream = Stream(model, PLAN)
    generation = stream.generate(text, max_new_tokens=8)
    generation.text  # noqa: B018  # waits
    again = Stream(model, PLAN)
    logits, said = again.feed(text, last_alone=True), []
    for _ in range(8):
        said.append(int(logits.argmax()))
        logits = again.feed(said[-1:])
    assert generation.token_ids == said
    assert generation.finish_reason == "length"
    assert stream.n_tokens == 120 + 7
    drawn = [
        Stream(model, PLAN).generate(text, max_new_tokens=8, sampling=Sampling(temperature=2.0, seed=seed))
        for seed in (3, 3, 4)
    ]
    assert len({one.text for one in drawn[:2]}) == 1
    assert drawn[0].token_ids != drawn[2].token_ids


@pytest.mark.parametrize("bad", [[], [-1], [VOCAB]])
def test_bad_ids_are_refused_and_nothing_is_read(bad: list[int]) -> None:
    stream = Stream(local("llama"), PLAN)
    stream.feed(ids(10))
    with pytest.raises(InvalidInput, match="ids"):
        stream.feed([*ids(3), *bad] if bad else bad)
    assert stream.n_tokens == 10


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"top_k": 5}, "cached_blocks"),
        ({"step": 64}, "n_local"),
        ({"n_repr": 9}, "block_size"),
        ({"n_init": -1}, "n_init"),
        ({"top_k": True}, "top_k"),
        ({"decay": 1.5}, "decay"),
        ({"far": "elsewhere"}, "far"),
        ({"far": "before_window"}, "before the window"),
        ({"selection": "none"}, "selection"),
    ],
)
def test_plans_that_cannot_be_are_refused(fields: dict[str, object], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        replace(PLAN, **fields)  # type: ignore[arg-type]  # fields by name


def test_a_window_beyond_the_trained_positions_is_refused() -> None:
    model = local("llama")
    with pytest.raises(InvalidInput, match="512"):
        Stream(model, replace(PLAN, n_local=500, step=32))
    for recipe in (InfLLM(n_local=600), StreamingLLM(n_local=512), LMInfinite(n_local=510, step=8)):
        with pytest.raises(InvalidInput, match="512"):
            recipe.check(model)
    for recipe in (InfLLM(), StreamingLLM(), LMInfinite()):
        recipe.check(model)


def test_a_model_that_sees_nothing_beyond_its_own_window_is_refused() -> None:
    model = local("mistral")  # every layer slides, over 16 tokens
    with pytest.raises(InvalidInput, match="16 or less"):
        InfLLM(n_local=32, step=16).check(model)
    InfLLM(n_local=16, step=8).check(model)
    StreamingLLM(n_local=32, step=16).check(model)


def test_a_foreign_tail_is_refused_and_the_stream_stays_empty() -> None:
    model = local("llama")
    blocks = Indexed()
    stream = Stream(model, PLAN, blocks)
    stream.feed(ids(100))
    tail = stream.tail()
    for bad, index in (
        (b"", blocks.index),
        (tail[:-1], blocks.index),
        (tail, blocks.index[:-4]),
        (Stream(model, replace(PLAN, n_init=4)).tail(), blocks.index),
    ):
        fresh = Stream(model, PLAN, blocks)
        with pytest.raises(PayloadDamaged):
            fresh.restore(bad, index)
        assert fresh.n_tokens == 0
        torch.testing.assert_close(fresh.feed(ids(20)), Stream(model, PLAN).feed(ids(20)))
