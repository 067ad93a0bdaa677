"""KV: an immutable block of keys and values."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentmem.errors import InvalidInput
from agentmem.model.kv import KV


def make(tokens: int = 6, heads: tuple[int, ...] = (2, 3), seed: int = 0) -> KV:
    """Heads differ by layer, and values are narrower than keys."""
    g = torch.Generator().manual_seed(seed)
    keys = tuple(torch.randn(h, tokens, 8, generator=g) for h in heads)
    return KV(keys, tuple(torch.randn(h, tokens, 4, generator=g) for h in heads))


def same(a: KV, b: KV) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.keys + a.values, b.keys + b.values, strict=True))


def test_it_says_what_it_holds() -> None:
    kv = make()
    assert (kv.n_layers, kv.n_tokens, kv.dtype, kv.device.type) == (2, 6, torch.float32, "cpu")
    assert kv.nbytes == 4 * 6 * (2 + 3) * (8 + 4)
    assert kv.layers == (0, 1)


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        ([], []),
        ([(2, 5, 8)], []),
        ([(2, 5, 8)], [(2, 4, 8)]),
        ([(2, 5, 8)], [(3, 5, 8)]),
        ([(2, 5, 8), (2, 4, 8)], [(2, 5, 8), (2, 4, 8)]),
        ([(5, 8)], [(5, 8)]),
        ([(1, 2, 5, 8)], [(1, 2, 5, 8)]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(keys: list[tuple[int, ...]], values: list[tuple[int, ...]]) -> None:
    with pytest.raises(InvalidInput):
        KV(tuple(torch.zeros(s) for s in keys), tuple(torch.zeros(s) for s in values))


@pytest.mark.parametrize("layers", [(0,), (1, 0), (0, 0), (-1, 0), (0, 1, 2)])
def test_layers_that_do_not_fit_are_refused(layers: tuple[int, ...]) -> None:
    kv = make()
    with pytest.raises(InvalidInput, match="layers"):
        KV(kv.keys, kv.values, layers)


def test_it_cannot_be_changed_unnoticed() -> None:
    kv = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        kv.keys = ()  # type: ignore[misc]  # that is the test
    assert kv.intact
    kv.values[1][0, 0, 0] += 1
    assert not kv.intact


def test_a_write_through_a_slice_is_noticed() -> None:
    kv = make()
    kv.slice(1, 3).keys[0].mul_(2)
    assert not kv.intact


def test_untracked_tensors_are_refused() -> None:
    with torch.inference_mode():
        keys = torch.zeros(1, 2, 4)
    with pytest.raises(InvalidInput, match="no_grad"):
        KV((keys,), (keys,))


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_slices_of_a_join_are_its_parts(sizes: list[int]) -> None:
    parts = [make(size, seed=i) for i, size in enumerate(sizes)]
    joined = KV.join(parts)
    assert joined.n_tokens == sum(sizes)
    end = 0
    for part in parts:
        assert same(joined.slice(end, end + part.n_tokens), part)
        end += part.n_tokens


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 2), (0, 7)])
def test_bad_slices_are_refused(start: int, stop: int) -> None:
    with pytest.raises(InvalidInput, match="slice"):
        make().slice(start, stop)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_selected_tokens_keep_their_places(indices: list[int]) -> None:
    kv = make()
    some = kv.select(indices)
    assert some.offsets is not None
    for i, key in enumerate(kv.keys):
        assert torch.equal(some.keys[i], key[:, indices])
        assert torch.equal(some.values[i], kv.values[i][:, indices])
        assert some.offsets[i].tolist() == [indices] * key.shape[0]
    again = some.select([len(indices) - 1])
    assert again.offsets is not None
    assert again.offsets[0].tolist() == [[indices[-1]]] * 2


def test_bad_selections_are_refused() -> None:
    kv = make()
    for indices in ([], [6], [-1]):
        with pytest.raises(InvalidInput):
            kv.select(indices)
    with pytest.raises(InvalidInput):
        kv.pick([torch.zeros(2, 1, dtype=torch.int64)])
    some = kv.select([0, 3])
    with pytest.raises(InvalidInput, match="picked"):
        some.slice(0, 1)
    with pytest.raises(InvalidInput, match="picked"):
        KV.join([some, some])


def test_only_some_layers() -> None:
    kv = make().only([1])
    assert kv.layers == (1,)
    assert kv.n_layers == 1
    assert kv.slice(0, 2).layers == (1,)
    assert kv.select([1]).only([1]).layers == (1,)
    with pytest.raises(InvalidInput):
        kv.only([0])


def test_joining_needs_the_same_layers() -> None:
    with pytest.raises(InvalidInput, match="layers"):
        KV.join([make(), make().only([1])])
    with pytest.raises(InvalidInput, match="nothing"):
        KV.join([])


def test_to_another_dtype() -> None:
    kv = make()
    assert kv.to() is kv
    assert kv.to("cpu", torch.float32) is kv
    half = kv.select([0, 2]).to(dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.values[0].dtype == torch.bfloat16
    assert half.offsets is not None
    assert half.offsets[0].dtype == torch.int64
