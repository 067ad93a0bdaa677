"""KV that is decoded and placed while the model is busy with earlier layers: the same numbers, later."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from agentmem.arriving import BLOCKS, Prefetcher
from agentmem.llm import bundled_model
from agentmem.model.attention import Placed
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.packing import Packed
from agentmem.recipes import Parallel
from agentmem.store.codec import CODECS, PackedKV, pack, unpack


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel.load(bundled_model())


@pytest.fixture
def prefetcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Prefetcher]:
    """One that does for a few kilobytes what is meant for megabytes."""
    monkeypatch.setattr("agentmem.arriving.LEAST_BYTES", 1)
    found = Prefetcher()
    yield found
    found.close()


@dataclass(frozen=True)
class Slow(Parallel):
    """Places what comes after the first layers only when it is told to."""

    go: threading.Event = field(default_factory=threading.Event)
    begun: list[int] = field(default_factory=list)

    def place(self, model: LocalModel, kvs: Sequence[KV]) -> Placed:
        if self.begun:
            assert self.go.wait(30)
        self.begun.append(kvs[0].layers[0])
        return super().place(model, kvs)


def blocks(model: LocalModel) -> list[KV]:
    chat = model.chat
    return model.encode_batch([chat.encode(text) for text in ("My dog is called Biscuit.", "I live in Graz.")])


def packed(kv: KV, codec: str) -> Packed:
    return Packed(PackedKV(pack(kv.keys, kv.values, codec)))


def same(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> bool:
    return len(one) == len(other) and all(
        b is None if a is None else b is not None and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("codec", CODECS)
def test_what_arrives_is_what_placing_all_at_once_gives(model: LocalModel, prefetcher: Prefetcher, codec: str) -> None:
    first, second = blocks(model)
    whole = KV(*unpack(pack(first.keys, first.values, codec)))
    arrived: dict[int, KV] = {}
    # One from disk, one from RAM.
    found = prefetcher.place(Parallel(), model, [packed(first, codec), second], arrived.__setitem__)
    expected = Parallel().place(model, [whole, second])
    assert same(found.keys, expected.keys)
    assert same(found.values, expected.values)
    assert (found.spans, found.n_tokens) == (expected.spans, expected.n_tokens)
    assert torch.equal(found.positions, expected.positions)
    assert list(arrived) == [0], "what came from RAM is there already"
    assert arrived[0].layers == whole.layers
    assert same(arrived[0].keys, whole.keys)


def test_the_prompt_begins_before_the_last_layers_are_there(model: LocalModel, prefetcher: Prefetcher) -> None:
    slow, (kv, _) = Slow(), blocks(model)
    placed = prefetcher.place(slow, model, [packed(kv, "int8")])
    first = model.n_layers // BLOCKS
    assert slow.begun == [0], "the later layers wait, and nobody waited for them"
    assert all(key is not None for key in placed.keys[:first])

    got: list[Tensor] = []
    reading = threading.Thread(target=lambda: got.append(model.logits(model.chat.encode("What is it called?"), placed)))
    reading.start()
    reading.join(0.5)
    assert reading.is_alive(), "the model waits at the first layer that is not there"
    slow.go.set()
    reading.join(30)
    expected = Parallel().place(model, [KV(*unpack(pack(kv.keys, kv.values, "int8")))])
    assert torch.equal(got[0], model.logits(model.chat.encode("What is it called?"), expected))
    assert len(slow.begun) == BLOCKS


def test_what_goes_wrong_on_the_way_is_raised_where_it_is_read(model: LocalModel, prefetcher: Prefetcher) -> None:
    class Broken(Slow):
        def place(self, model: LocalModel, kvs: Sequence[KV]) -> Placed:
            placed = super().place(model, kvs)
            if len(self.begun) > 1:
                raise MemoryError("no room on the device")
            return placed

    broken, (kv, _) = Broken(), blocks(model)
    broken.go.set()
    placed = prefetcher.place(broken, model, [packed(kv, "bf16")])
    with pytest.raises(MemoryError, match="no room"):
        model.logits([1, 2, 3], placed)


def test_kv_of_picked_tokens_and_of_few_layers_comes_as_a_whole(model: LocalModel, prefetcher: Prefetcher) -> None:
    kv, _ = blocks(model)
    for some in (kv.only([0]), kv.select([0, 2])):
        slow = Slow()
        data = pack(some.keys, some.values, "bf16", layers=some.layers, offsets=some.offsets)
        found = prefetcher.place(slow, model, [Packed(PackedKV(data))])
        expected = Parallel().place(model, [KV(*unpack(data))])
        assert same(found.keys, expected.keys)
        assert slow.begun == [0]


def test_little_kv_comes_as_a_whole(model: LocalModel) -> None:
    slow, prefetcher = Slow(), Prefetcher()
    prefetcher.place(slow, model, [packed(kv, "bf16") for kv in blocks(model)])
    prefetcher.close()
    assert slow.begun == [0]


def test_other_threads_keep_their_number_of_torch_threads(prefetcher: Prefetcher) -> None:
    usual, seen = torch.get_num_threads(), []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *seen] == [usual, usual]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dims", [(16, 16), (5, 3)])
def test_layers_are_read_a_few_at_a_time(codec: str, dims: tuple[int, int]) -> None:
    torch.manual_seed(0)
    keys, values = ([torch.randn(3, 7, dim) for _ in range(6)] for dim in dims)
    data = pack(keys, values, codec)
    payload, whole = PackedKV(data), unpack(data)
    for start, stop in [(0, 6), (0, 1), (2, 5), (5, 6)]:
        some = payload.read(start, stop)
        assert same(some.keys, whole.keys[start:stop])
        assert same(some.values, whole.values[start:stop])
        assert (some.layers or tuple(range(6))) == tuple(range(start, stop))
