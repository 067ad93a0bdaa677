"""Streaming, stopping, seeds, threads."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, build, local, some_ids, tokenizer

from agentmem.errors import InvalidInput
from agentmem.model.detokenise import Detokeniser
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.model.sampling import Sampling

IDS = some_ids(9, 2)


@pytest.fixture
def model() -> LocalModel:
    return local("llama")


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "agentmem-generate"]


def wait_for_workers() -> None:
    deadline = time.monotonic() + 10
    while workers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not workers()


def test_pieces_are_the_text(model: LocalModel) -> None:
    generation = model.generate(IDS, max_new_tokens=30)
    pieces = list(generation)
    assert "".join(pieces) == generation.text
    assert generation.text == model.tokenizer.decode(generation.token_ids, skip_special_tokens=True)
    assert len(pieces) > 1
    assert generation.finish_reason == "length"
    assert len(generation.token_ids) == 30


def test_it_streams(model: LocalModel) -> None:
    """The first piece is there long before the last token."""
    generation = model.generate(IDS, max_new_tokens=400)
    next(generation)
    assert len(generation.token_ids) < 400
    generation.close()


def test_a_stop_token_ends_the_turn_and_is_not_part_of_it() -> None:
    model = LocalModel(build("llama"), tokenizer())
    whole = local("llama").generate(IDS, max_new_tokens=12)
    assert whole.finish_reason == "length"
    full = whole.token_ids
    model.chat.stop_ids = frozenset({full[5]})
    generation = model.generate(IDS, max_new_tokens=12)
    assert generation.finish_reason == "stop"
    assert generation.token_ids == full[: full.index(full[5])]


def test_a_stop_string_ends_it_and_is_not_part_of_it(model: LocalModel) -> None:
    full = model.generate(IDS, max_new_tokens=60).text
    stop = full[11:14]
    generation = model.generate(IDS, max_new_tokens=60, stop=(stop,))
    assert generation.text == full[: full.index(stop)]
    assert generation.finish_reason == "stop"
    assert len(generation.token_ids) < 60


def test_close_stops_it(model: LocalModel) -> None:
    placed = model.place([model.encode(some_ids(8))], [-8])
    generation = model.generate(IDS, placed=placed, max_new_tokens=480)
    first = next(generation)
    generation.close()
    wait_for_workers()
    assert generation.finish_reason == "cancelled"
    assert len(generation.token_ids) < 480
    assert generation.text.startswith(first)
    assert generation.shares[0][1].shape == (len(generation.token_ids), 1)
    assert model.model.config._attn_implementation != "agentmem"
    generation.close()
    assert list(generation) == []


def test_dropping_it_stops_it(model: LocalModel) -> None:
    generation = model.generate(IDS, max_new_tokens=480)
    next(generation)
    begun = time.monotonic()
    del generation
    gc.collect()
    wait_for_workers()
    assert time.monotonic() - begun < 5


def test_closing_one_that_waits_for_the_model(model: LocalModel) -> None:
    with model.reading(None):
        generation = model.generate(IDS, max_new_tokens=480)
        threading.Timer(0.1, generation._run.cancel.set).start()
        time.sleep(0.2)
        assert generation.token_ids == []
    assert generation.finish_reason == "cancelled"


def test_an_error_in_the_worker_reaches_the_consumer(model: LocalModel) -> None:
    def on_stride(ids: list[int]) -> None:
        raise LookupError("the store is gone")

    generation = model.generate(IDS, on_stride=on_stride, stride=4, max_new_tokens=20)
    with pytest.raises(LookupError, match="the store is gone"):
        list(generation)
    with pytest.raises(LookupError, match="the store is gone"):
        _ = generation.finish_reason
    assert len(generation.token_ids) == 4
    wait_for_workers()
    assert model.generate(IDS, max_new_tokens=5).finish_reason == "length"


def test_on_stride_may_run_the_model(model: LocalModel) -> None:
    """A memory without KV is encoded from text in the middle of an answer."""
    kv = model.encode(some_ids(10, 7), [1])
    want = model.generate(
        IDS, on_stride=lambda ids: model.place([kv], [-10]) if len(ids) == 4 else None, stride=4, max_new_tokens=12
    )

    def on_stride(ids: list[int]) -> object:
        model.embed(["something else"])
        return model.place([model.encode(some_ids(10, 7), [1])], [-10]) if len(ids) == 4 else None

    got = model.generate(IDS, on_stride=on_stride, stride=4, max_new_tokens=12)
    assert got.text == want.text
    assert got.token_ids == want.token_ids
    assert got.token_ids != model.generate(IDS, max_new_tokens=12).token_ids
    torch.testing.assert_close(got.shares[0][1], want.shares[0][1])


def test_a_seed_gives_the_same_text_and_leaves_global_randomness_alone(model: LocalModel) -> None:
    def sample(seed: int | None) -> list[int]:
        sampling = Sampling(temperature=1.5, top_p=0.95, top_k=50, seed=seed)
        generation = model.generate(IDS, max_new_tokens=24, sampling=sampling)
        _ = generation.text
        return generation.token_ids

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = sample(11)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert sample(11) == first
    assert sample(12) != first
    assert sample(None) != sample(None)


def test_sampling_follows_the_distribution(model: LocalModel) -> None:
    """Sampled first tokens against the softmax of the logits, with and without top-k and top-p."""
    probs = (model.logits(IDS)[-1].double() / 1.3).softmax(-1)
    ranked = probs.sort(descending=True)
    n = 300
    for top_k, top_p in ((0, 1.0), (3, 1.0), (0, 0.6)):
        kept = ranked.indices[:top_k] if top_k else ranked.indices
        if top_p < 1:
            kept = kept[: int((ranked.values.cumsum(0) < top_p).sum()) + 1]
        want = torch.zeros_like(probs).index_put((kept,), probs[kept])
        want /= want.sum()
        counts = torch.zeros_like(probs)
        for seed in range(n):
            sampling = Sampling(temperature=1.3, top_p=top_p, top_k=top_k, seed=seed)
            generation = model.generate(IDS, max_new_tokens=1, sampling=sampling)
            _ = generation.text
            counts[generation.token_ids[0]] += 1
        assert counts[want == 0].sum() == 0
        assert (counts / n - want).abs().max() < 4 * (0.25 / n) ** 0.5


def test_a_tiny_temperature_is_greedy(model: LocalModel) -> None:
    greedy, cold = (model.generate(IDS, max_new_tokens=8, sampling=Sampling(t, seed=0)) for t in (0.0, 1e-30))
    assert greedy.text == cold.text


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
    ],
)
def test_sampling_out_of_range_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        Sampling(**bad)


def test_what_cannot_be_generated_is_refused(model: LocalModel) -> None:
    for ids, settings_, says in (
        ([], {}, "no token ids"),
        ([1, 10_000], {}, "10000"),
        ([1, -1], {}, "-1"),
        (IDS, {"max_new_tokens": 0}, "max_new_tokens"),
        (IDS, {"stride": 0}, "stride"),
        (IDS, {"max_new_tokens": 504}, "513 positions, the model has 512"),
    ):
        with pytest.raises(InvalidInput, match=says):
            model.generate(ids, **settings_)
    assert not workers()
    with pytest.raises(InvalidInput, match="513"):
        model.logits(some_ids(513))
    with pytest.raises(InvalidInput, match="513"):
        model.encode_batch([[5], some_ids(512)], [1])


def test_what_cannot_be_placed_is_refused(model: LocalModel) -> None:
    kv = model.encode(IDS)
    for args, says in (
        (([kv], []), "one start per KV"),
        (([kv, kv.only([0])], [0, 0]), "different layers"),
    ):
        with pytest.raises(InvalidInput, match=says):
            model.place(*args)
    with pytest.raises(InvalidInput, match="positive"):
        model.place([kv], [0], temperature=0.0)
    deeper = KV(kv.keys + kv.keys, kv.values + kv.values)
    with pytest.raises(InvalidInput, match="only 4 layers"):
        model.place([deeper], [0])


def test_two_threads_with_different_memories(model: LocalModel) -> None:
    placed = [model.place([model.encode(some_ids(12, seed))], [-12]) for seed in range(4)]
    want = [model.generate(IDS, placed=p, max_new_tokens=20).text for p in placed]
    assert len(set(want)) == 4
    got: list[list[str]] = [[] for _ in placed]
    chunk = some_ids(15, 50)
    kv = model.encode(chunk)
    pure = []

    def talk(number: int) -> None:
        for _ in range(3):
            got[number].append("".join(model.generate(IDS, placed=placed[number], max_new_tokens=20)))

    def write() -> None:
        pure.extend(all(map(torch.equal, model.encode(chunk).keys, kv.keys)) for _ in range(20))

    threads = [threading.Thread(target=talk, args=(n,)) for n in range(4)] + [threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [[text] * 3 for text in want]
    assert pure == [True] * 20


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_are_normalised_and_do_not_depend_on_the_batch(name: str) -> None:
    model = local(name)
    texts = ["a dog", "a much longer text about a dog and a cat", "x", "a dog"]
    vectors = model.embed(texts)
    assert vectors.shape == (4, model.hidden_size)
    assert vectors.dtype == "float32"
    assert abs((vectors**2).sum(1) - 1).max() < 1e-5
    assert abs(vectors[0] - vectors[3]).max() < 1e-5
    assert abs(vectors[1] - vectors[0]).max() > 1e-2
    for text, vector in zip(texts, vectors, strict=True):
        assert abs(model.embed([text])[0] - vector).max() < 1e-4


def test_embedding_edge_cases(model: LocalModel) -> None:
    assert model.embed([]).shape == (0, 64)
    long = "word " * 2000
    assert abs((model.embed([long]) ** 2).sum() - 1) < 1e-5
    with pytest.raises(InvalidInput, match="without tokens"):
        model.embed(["fine", ""])
    with pytest.raises(InvalidInput, match="surrogate"):
        model.embed(["\ud800"])


class Letters:
    """A tokenizer whose decode is easy to predict: byte-level, one id per byte."""

    def decode(self, ids: list[int], **_: object) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


@settings(deadline=None)
@given(text=st.text(max_size=30), stop=st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_detokenising_gives_the_text_up_to_the_first_stop_string(text: str, stop: list[str]) -> None:
    detokeniser = Detokeniser(Letters(), tuple(stop))
    pieces = [detokeniser.push(byte) for byte in text.encode()]
    pieces.append(detokeniser.flush())
    cut = min([at for at in map(text.find, stop) if at >= 0], default=len(text))
    assert detokeniser.stopped == any(s in text for s in stop)
    if "\ufffd" not in text:
        assert "".join(pieces) == text[:cut]
        assert all("\ufffd" not in piece for piece in pieces)


@given(st.binary(max_size=40))
def test_detokenising_bytes_that_are_no_text(raw: bytes) -> None:
    detokeniser = Detokeniser(Letters())
    pieces = [detokeniser.push(byte) for byte in raw]
    assert all(len(pieces) < 8 or any(pieces[i : i + 16]) for i in range(len(pieces) - 16))
    _ = detokeniser.flush()


def test_real_weights_tell_the_same_story() -> None:
    """A small model that was trained by others, whose tokenizer drops the space before the first word."""
    path = Path(__file__).parents[3] / "shared" / "data" / "models" / "stories260K"
    if not path.is_dir():
        pytest.skip("stories260K is not in the data folder")
    model = LocalModel.load(path, device="cpu")
    first = [1, *model.chat.encode("Once upon a time, there was a little girl named Lily. She had a red ball.")]
    then = model.chat.encode(" One day she went to the park and")
    plain = model.generate(first + then, max_new_tokens=40)
    placed = model.place([model.encode(first)], [-len(first)])
    read = model.generate(then, placed=placed, max_new_tokens=40)
    assert read.text == plain.text
    assert plain.text == model.tokenizer.decode(plain.token_ids)
    assert (model.logits(then, placed) - model.logits(first + then)[len(first) :]).abs().max() < 1e-4
