"""Rotation is found out by probing, exact, and undone exactly."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, build, local, some_ids, tokenizer

from agentmem.errors import UnsupportedModel
from agentmem.model.local import LocalModel
from agentmem.model.reading import capturing
from agentmem.model.rotary import Kind, Rotary

_EXPECTED = {
    "llama": ("half", 0, 16),
    "phi3_partial": ("half", 0, 8),
    "gpt_neox": ("half", 0, 4),
    "glm": ("adjacent", 0, 8),
    "deepseek_v3": ("half", 16, 8),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_calibration_is_exact(name: str) -> None:
    rotary = local(name).rotary
    assert rotary.movable
    assert rotary.error < 1e-6
    assert len(rotary.layers) == 4
    if name in _EXPECTED:
        first = rotary.layers[0]
        assert (first.pairs, first.offset, first.width) == _EXPECTED[name]


def test_each_kind_of_layer_has_its_own_table() -> None:
    types = [layer.layer_type for layer in local("gemma3").rotary.layers]
    assert types == ["sliding_attention"] * 3 + ["full_attention"]
    assert [layer.kind for layer in local("smollm3").rotary.layers] == [Kind.ROPE] * 3 + [Kind.NONE]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "glm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_calibrates_within_its_rounding(name: str, dtype: torch.dtype) -> None:
    rotary = Rotary(build(name, dtype))
    assert rotary.movable
    assert rotary.error < 4 * torch.finfo(dtype).eps
    assert [(la.pairs, la.offset, la.width) for la in rotary.layers] == [
        (la.pairs, la.offset, la.width) for la in local(name).rotary.layers
    ]


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(FAMILIES),
    places=st.lists(st.integers(-2000, 2000), min_size=1, max_size=8),
    layer=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_unrotate_undoes_rotate(name: str, places: list[int], layer: int, seed: int) -> None:
    if name in {"llama_dynamic", "phi3_longrope"}:
        places = [place % 64 for place in places]  # their tables change beyond this, so the model has no such positions
    model = local(name)
    dim = model.encode(some_ids(1)).keys[layer].shape[-1]
    keys = torch.randn(2, len(places), dim, generator=torch.Generator().manual_seed(seed))
    before = keys.clone()
    turned = model.rotary.rotate(layer, keys, torch.tensor(places))
    back = model.rotary.unrotate(layer, turned, torch.tensor(places))
    torch.testing.assert_close(back, keys, atol=1e-5, rtol=1e-5)
    assert torch.equal(keys, before)
    assert turned.is_contiguous()
    assert back.is_contiguous()


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(FAMILIES), a=st.integers(0, 60), b=st.integers(-60, 60), shift=st.integers(-300, 300))
def test_logits_depend_on_distance_alone(name: str, a: int, b: int, shift: int) -> None:
    if name in {"llama_dynamic", "phi3_longrope"}:
        shift = min(shift, 0)
    model = local(name)
    dim = model.encode(some_ids(1)).keys[0].shape[-1]
    q, k = torch.randn(2, 1, 1, dim, generator=torch.Generator().manual_seed(0)).unbind()

    def dot(q_at: int, k_at: int) -> torch.Tensor:
        rotary = model.rotary
        return (rotary.rotate(0, q, torch.tensor([q_at])) * rotary.rotate(0, k, torch.tensor([k_at]))).sum()

    torch.testing.assert_close(dot(a, b), dot(a + shift, b + shift), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_rotation_equals_the_models_own(name: str) -> None:
    """Keys of layer 0 depend on nothing but token and position: un-rotate them at one place, rotate to another."""
    model, n = local(name), 12
    ids, starts = torch.tensor([some_ids(n)]), (0, 40)
    keys = []
    for start in starts:
        with capturing(model.model) as capture, torch.no_grad():
            model.model(input_ids=ids, position_ids=torch.arange(start, start + n)[None], use_cache=False)
        keys.append(capture.keys[0][0])
    still = model.rotary.unrotate(0, keys[0], torch.arange(n))
    moved = model.rotary.rotate(0, still, torch.arange(40, 40 + n))
    assert (moved - keys[1]).abs().max() / keys[1].abs().max() < 1e-5


def test_positions_per_head() -> None:
    model = local("llama")
    keys = torch.randn(2, 3, 16)
    at = torch.tensor([[0, 5, 9], [4, 4, 100]])
    turned = model.rotary.rotate(0, keys, at)
    for head in range(2):
        torch.testing.assert_close(turned[head : head + 1], model.rotary.rotate(0, keys[head : head + 1], at[head]))


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_learned_absolute_positions_are_refused(name: str) -> None:
    model = build(name)
    rotary = Rotary(model)
    assert not rotary.movable
    with pytest.raises(UnsupportedModel, match="absolute positions"):
        rotary.unrotate(0, torch.zeros(4, 1, 16), torch.tensor([0]))
    with pytest.raises(UnsupportedModel, match="rotary positions"):
        LocalModel(model, tokenizer())


@pytest.mark.parametrize(
    ("name", "reason"), [("bloom", "AttentionInterface"), ("falcon_h1", "recurrent"), ("qwen3_next", "recurrent")]
)
def test_other_architectures_are_refused_with_the_reason(name: str, reason: str) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = build(name)
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedModel, match=reason):
        Rotary(model)
    assert model.config._attn_implementation == before
