"""Codecs: what goes in comes out, as exactly as the codec promises; what is no payload is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agentmem.errors import InvalidInput, PayloadDamaged
from agentmem.store.codec import CODECS, FORMAT, bytes_per_token, pack, unpack
from agentmem.store.quantised import GROUP

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def layers(count: int, heads: int, tokens: int, dim: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(heads, tokens, dim, generator=generator).mul_(3).to(dtype) for _ in range(count)]


SHAPES = st.tuples(*(st.integers(1, n) for n in (3, 3, 9, 8)))


@settings(max_examples=60)
@given(shape=SHAPES, dtype=st.sampled_from(sorted(DTYPES)), seed=st.integers(0, 99))
def test_lossless_round_trips(shape: tuple[int, int, int, int], dtype: str, seed: int) -> None:
    keys, values = layers(*shape, DTYPES[dtype], seed), layers(*shape, DTYPES[dtype], seed + 100)
    for codec in {"fp32", {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype]}:
        out_keys, out_values, *_ = unpack(pack(keys, values, codec))
        for given_, got in zip((*keys, *values), (*out_keys, *out_values), strict=True):
            assert got.dtype == given_.dtype
            assert torch.equal(got, given_)


@settings(max_examples=40)
@given(shape=SHAPES, dtype=st.sampled_from(sorted(DTYPES)), scale=st.sampled_from([1e-3, 1.0, 300.0]))
def test_int8_is_within_half_a_step(shape: tuple[int, int, int, int], dtype: str, scale: float) -> None:
    keys = [t.mul(scale) for t in layers(*shape, DTYPES[dtype], 1)]
    values = [t.mul(scale) for t in layers(*shape, DTYPES[dtype], 2)]
    out_keys, out_values, *_ = unpack(pack(keys, values, "int8"))
    for given_, got, dim in [(keys, out_keys, -2), (values, out_values, -1)]:
        for a, b in zip(given_, got, strict=True):
            assert b.dtype == a.dtype
            exact = a.float()
            step = exact.abs().amax(dim, keepdim=True) / 127
            # half a step, the scale's rounding to fp16 (2^-11 of 127 steps), and the dtype's own rounding
            limit = step * 0.5 + step * 127 * 2**-11 + exact.abs() * torch.finfo(a.dtype).eps + 6.2e-5
            assert bool(((b.float() - exact).abs() <= limit).all())


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 150), st.integers(1, 70)),
    dtype=st.sampled_from(sorted(DTYPES)),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
)
def test_int4_loses_a_third_of_a_step_of_its_group(shape: tuple[int, int, int, int], dtype: str, scale: float) -> None:
    keys = [t.mul(scale) for t in layers(*shape, DTYPES[dtype], 1)]
    values = [t.mul(scale).add(5 * scale) for t in layers(*shape, DTYPES[dtype], 2)]
    out_keys, out_values, *_ = unpack(pack(keys, values, "int4"))
    for given_, got, value in [(keys, out_keys, False), (values, out_values, True)]:
        for a, b in zip(given_, got, strict=True):
            assert b.dtype == a.dtype
            assert b.shape == a.shape
            # groups are tokens of a channel, or what a token has in all heads
            exact, read = (t.float().transpose(-2, -3).flatten(-2) if value else t.float().mT for t in (a, b))
            groups = math.ceil(exact.shape[-1] / GROUP)
            width = math.ceil(exact.shape[-1] / groups)
            for e, r in zip(exact.split(width, -1), read.split(width, -1), strict=True):
                low, high = e.amin(-1), e.amax(-1)
                # one of 16 levels, or a middle of 127 quarters of a step; the least step, and the dtype's own rounding
                step = torch.maximum((high - low) / 15, (high + low).abs() / 2 * 4 / 127).clamp_min(2**-12)
                lost = (r - e).square().mean(-1).sqrt()
                assert bool((lost <= 0.6 * step + e.abs().amax(-1) * torch.finfo(a.dtype).eps * 2).all())
                if e.shape[-1] > 32 and scale == 1.0 and not value:
                    assert lost.mean() < 0.33 * step.mean()


def test_int4_a_far_token_costs_its_own_group_only() -> None:
    key = torch.randn(1, GROUP + 22, 4, generator=torch.Generator().manual_seed(0))
    key[:, -1] *= 100
    (got,), *_ = unpack(pack([key], [key], "int4"))
    half = (GROUP + 22) // 2
    assert (got - key)[:, :half].abs().max() < 0.4
    assert (got - key)[:, half:].abs().max() > 1.0


def test_int4_refuses_what_no_step_is_large_enough_for() -> None:
    for far in ([-9e4, 9e4], [9e6, 9e6]):
        with pytest.raises(InvalidInput, match="too large"):
            pack([torch.tensor(far).reshape(1, 2, 1)], [torch.ones(1, 2, 1)], "int4")


def test_an_outlier_channel_of_keys_does_not_cost_the_others() -> None:
    key = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(0))
    key[:, :, 2] *= 100
    (got,), *_ = unpack(pack([key], [key], "int8"))
    assert (got - key)[:, :, [0, 1, 3]].abs().max() < 0.02


def test_sizes_are_what_the_codec_promises() -> None:
    keys = layers(4, 2, 64, 32, torch.float32)
    numbers = 2 * 4 * 2 * 64 * 32
    size = {codec: len(pack(keys, keys, codec)) for codec in CODECS}
    assert size["fp32"] < numbers * 4 + 600
    assert size["fp16"] == size["bf16"] < numbers * 2 + 600
    assert size["int8"] < numbers * 1.07 + 800
    # two bytes for 64 numbers of keys (all tokens), and for 64 (two heads of a token) of values
    assert size["int4"] < numbers * (0.5 + 2 / 64) + 450


@pytest.mark.parametrize("codec", CODECS)
def test_bytes_per_token_are_those_of_a_payload(codec: str) -> None:
    some = layers(4, 2, 96, 64, torch.float32)
    size = bytes_per_token(codec, layers=4, kv_heads=2, head_dim=64, tokens=96)
    assert 0 < len(pack(some, some, codec)) - 96 * size < 700


def test_bytes_per_token_say_what_the_codecs_are_for() -> None:
    llama = {"layers": 32, "kv_heads": 8, "head_dim": 128}
    sizes = {codec: bytes_per_token(codec, **llama) / 2**10 for codec in CODECS}
    assert sizes == {"fp32": 256, "fp16": 128, "bf16": 128, "int8": 65, "int4": 33}
    with pytest.raises(InvalidInput, match="codebooks"):
        bytes_per_token("pq", **llama)


def test_layers_of_different_shapes_are_kept_one_by_one() -> None:
    keys = [torch.ones(2, 3, 4), torch.ones(1, 5, 6)]
    values = [torch.ones(2, 3, 8), torch.ones(1, 5, 2)]
    for codec in CODECS:
        out_keys, out_values, *_ = unpack(pack(keys, values, codec))
        assert [t.shape for t in out_keys] == [t.shape for t in keys]
        assert [t.shape for t in out_values] == [t.shape for t in values]


def test_key_and_value_dims_may_differ() -> None:
    keys, values = layers(3, 2, 5, 6, torch.float16), layers(3, 2, 5, 4, torch.float16)
    out_keys, out_values, *_ = unpack(pack(keys, values, "fp16"))
    assert all(map(torch.equal, keys, out_keys))
    assert all(map(torch.equal, values, out_values))


def test_packing_is_a_pure_function_that_changes_nothing() -> None:
    keys = [t.transpose(0, 1) for t in layers(2, 4, 3, 5, torch.float32)]  # not contiguous
    before = [t.clone() for t in keys]
    assert pack(keys, keys, "int8") == pack(keys, keys, "int8")
    assert all(map(torch.equal, keys, before))


def test_unpack_does_not_copy_a_buffer_it_may_keep() -> None:
    keys = layers(2, 2, 8, 4, torch.float32)
    buffer = bytearray(pack(keys, keys, "fp32"))
    start = np.frombuffer(buffer, np.uint8).ctypes.data
    out_keys, out_values, *_ = unpack(buffer)
    for tensor in (*out_keys, *out_values):
        assert start <= tensor.data_ptr() < start + len(buffer)


@pytest.mark.parametrize(
    ("keys", "values", "codec", "message"),
    [
        ([], [], "fp32", "0 layers"),
        ([torch.ones(1, 2, 3)], [], "fp32", "1 layers of keys and 0 of values"),
        ([torch.ones(1, 2, 3)], [torch.ones(1, 2, 3)], "gzip", "unknown codec 'gzip'; use one of fp32"),
        ([torch.ones(2, 3)], [torch.ones(2, 3)], "fp32", r"\[heads, tokens, dim\]"),
        ([torch.ones(1, 2, 3)], [torch.ones(1, 4, 3)], "fp32", r"\[heads, tokens, dim\]"),
        ([torch.ones(1, 0, 3)], [torch.ones(1, 0, 3)], "fp32", r"\[heads, tokens, dim\]"),
        ([torch.ones(1, 2, 3)], [torch.ones(1, 2, 3).half()], "fp32", "one dtype"),
        ([torch.ones(1, 2, 3).int()], [torch.ones(1, 2, 3).int()], "fp32", "one dtype"),
        ([torch.full((1, 2, 3), 1e6)], [torch.ones(1, 2, 3)], "fp16", "use bf16 or fp32"),
        ([torch.full((1, 2, 3), float("nan"))], [torch.ones(1, 2, 3)], "fp32", "NaN"),
        ([torch.full((1, 2, 3), float("inf"))], [torch.ones(1, 2, 3)], "int8", "NaN or infinity"),
    ],
)
def test_what_cannot_be_packed_is_refused(keys: list[Tensor], values: list[Tensor], codec: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        pack(keys, values, codec)


@settings(max_examples=40)
@given(shape=SHAPES, first=st.integers(0, 3), far=st.booleans(), codec=st.sampled_from(["fp32", "int8"]))
def test_layers_and_places_of_picked_tokens_come_back(
    shape: tuple[int, int, int, int], first: int, far: bool, codec: str
) -> None:
    keys = layers(*shape, torch.float32)
    numbers = tuple(range(first, first + shape[0]))
    offsets = [torch.randint(0, 900 if far else 128, shape[1:3]) for _ in keys]
    got = unpack(pack(keys, keys, codec, layers=numbers, offsets=offsets))
    assert (got.layers or tuple(range(shape[0]))) == numbers
    assert got.offsets is not None
    assert all(map(torch.equal, got.offsets, offsets))
    assert all(offset.dtype == torch.int64 for offset in got.offsets)


def test_all_layers_and_all_tokens_cost_nothing_extra() -> None:
    keys = layers(3, 2, 4, 8, torch.float32)
    assert pack(keys, keys, "fp32", layers=(0, 1, 2)) == pack(keys, keys, "fp32")
    assert unpack(pack(keys, keys, "fp32"))[2:] == ((), None)


def test_a_place_costs_one_byte() -> None:
    keys = layers(2, 2, 8, 8, torch.float32)
    offsets = [torch.arange(8).expand(2, 8)] * 2
    grown = len(pack(keys, keys, "fp32", offsets=offsets)) - len(pack(keys, keys, "fp32"))
    assert grown < 2 * 2 * 8 + 90


@pytest.mark.parametrize(
    ("numbers", "offsets", "message"),
    [
        ((1,), None, "2 ascending numbers"),
        ((2, 1), None, "2 ascending numbers"),
        ((-1, 1), None, "2 ascending numbers"),
        ((), [torch.zeros(1, 3, dtype=torch.int64)] * 2, r"\[heads, tokens\] per layer"),
        ((), [torch.zeros(1, 2)] * 2, "whole numbers"),
        ((), [torch.full((1, 2), -1)] * 2, "whole numbers"),
    ],
)
def test_layers_and_places_that_do_not_fit_are_refused(numbers, offsets, message: str) -> None:
    keys = [torch.ones(1, 2, 3)] * 2
    with pytest.raises(InvalidInput, match=message):
        pack(keys, keys, "fp32", layers=numbers, offsets=offsets)


GOOD = pack([torch.ones(1, 2, 3)] * 2, [torch.ones(1, 2, 3)] * 2, "int8")


def _about(**changes: object) -> bytes:
    def change(header: dict) -> None:
        metadata = header["__metadata__"]
        metadata[FORMAT] = json.dumps(json.loads(metadata[FORMAT]) | changes)

    return _with_header(change)


def _with_header(change) -> bytes:
    length = int.from_bytes(GOOD[:8], "little")
    header = json.loads(GOOD[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + GOOD[8 + length :]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        bytes(8),
        b"\xff" * 64,
        b"hello world, this is not a payload at all",
        GOOD[:-1],
        GOOD + b"x",
        GOOD[: len(GOOD) // 2],
        _with_header(lambda h: h.pop("__metadata__")),
        _with_header(lambda h: h["__metadata__"].update({FORMAT: "{"})),
        _with_header(lambda h: h["__metadata__"].update({FORMAT: "7"})),
        _with_header(lambda h: h.update(__metadata__={"agentmem-kv-2": "{}"})),
        _about(codec="zip"),
        _about(dtype="int64"),
        _about(layers=7),
        _about(layers=10**12),
        _about(layers="many"),
        _about(layers=None),
        _about(stacked=False),
        _about(numbers=[0]),
        _about(numbers=[1, 0]),
        _about(numbers=["a", "b"]),
        _with_header(lambda h: h.update({"at": h.pop("v.0")})),
        _with_header(lambda h: h["k.0"].update(dtype="F64")),
        _with_header(lambda h: h["k.0"].update(shape=[2, 1, 2, 4])),
        _with_header(lambda h: h["k.0"].update(shape=[-2, -1, 2, 3])),
        _with_header(lambda h: h["k.0"].update(shape="big")),
        _with_header(lambda h: h["k.0"].update(data_offsets=[0])),
        _with_header(lambda h: h["k.0"].update(data_offsets=[-100, -88])),
        _with_header(lambda h: h.update({"k.9": h.pop("k.0")})),
        _with_header(lambda h: h.update({"w": h.pop("v.0")})),
        _with_header(lambda h: h.update({"k.0": 7})),
    ],
)
def test_malformed_bytes_are_damage(data: bytes) -> None:
    with pytest.raises(PayloadDamaged, match="re-encode it from text"):
        unpack(data)


@settings(max_examples=200)
@given(place=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255), cut=st.integers(0, len(GOOD)))
def test_any_damage_either_raises_payload_damaged_or_keeps_the_form(place: int, value: int, cut: int) -> None:
    changed = bytearray(GOOD)
    changed[place] = value
    for data in (bytes(changed), GOOD[:cut]):
        try:
            keys, values, *_ = unpack(data)
        except PayloadDamaged:
            continue
        assert len(keys) == len(values) == 2
