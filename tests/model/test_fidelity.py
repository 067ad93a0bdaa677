"""Law 2, 3, 4 and 12 on every family: what is read from memory is what would have been in the context."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plain_reference import reference
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, WINDOW, local, some_ids

from agentmem.errors import InvalidInput
from agentmem.model.generation import UNCHANGED
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.model.reading import reading

PREFIX, SUFFIX, NEW = some_ids(24, 1), some_ids(9, 2), 14


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LocalModel:
    return local(request.param)


def through_disk(kv: KV, path: Path) -> KV:
    save_file({f"{part}{i}": t for part in ("keys", "values") for i, t in enumerate(getattr(kv, part))}, path)
    loaded = load_file(path)
    return KV(*(tuple(loaded[f"{part}{i}"] for i in range(kv.n_layers)) for part in ("keys", "values")))


def plain(model: LocalModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def plain_greedy(model: LocalModel, ids: list[int]) -> list[int]:
    out = model.model.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)
    return out[0, len(ids) :].tolist()


def test_nothing_recalled_is_the_plain_model_bit_for_bit(model: LocalModel) -> None:
    want = plain(model, SUFFIX)
    assert torch.equal(model.logits(SUFFIX), want)
    assert torch.equal(model.logits(SUFFIX, model.place([], [])), want)
    with model.reading(model.place([model.encode(PREFIX)], [-24])) as reader:
        reader.swap(None)
        assert torch.equal(plain(model, SUFFIX), want)
    assert torch.equal(plain(model, SUFFIX), want)
    generation = model.generate(SUFFIX, max_new_tokens=NEW)
    assert generation.text is not None
    assert generation.token_ids == plain_greedy(model, SUFFIX)
    assert generation.shares == ()


def test_prefix_from_disk_equals_prefix_in_context(model: LocalModel, tmp_path: Path) -> None:
    want = plain(model, PREFIX + SUFFIX)[len(PREFIX) :]
    kv = through_disk(model.encode(PREFIX), tmp_path / "kv.safetensors")
    placed = model.place([kv], [-len(PREFIX)], windowed=True)
    assert (model.logits(SUFFIX, placed) - want).abs().max() < 1e-4
    # The negative control: without the memory, or with it one position off, logits are far away.
    assert (model.logits(SUFFIX) - want).abs().max() > 0.05

    own = model.place([kv], [0], windowed=True)
    positions = torch.arange(len(PREFIX), len(PREFIX) + len(SUFFIX))[None]
    with model.reading(own), torch.no_grad():
        got = model.model(input_ids=torch.tensor([SUFFIX]), position_ids=positions, use_cache=False).logits[0]
    assert (got - want).abs().max() < 1e-4


def test_prefix_in_memory_gives_the_same_greedy_text(model: LocalModel) -> None:
    want = plain_greedy(model, PREFIX + SUFFIX)
    placed = model.place([model.encode(PREFIX)], [-len(PREFIX)], windowed=True)
    generation = model.generate(SUFFIX, placed=placed, max_new_tokens=NEW)
    assert "".join(generation) == model.tokenizer.decode(want, skip_special_tokens=True)
    assert generation.token_ids == want


def test_a_memory_in_two_parts_equals_one(model: LocalModel) -> None:
    kv = model.encode(PREFIX)
    parts = [kv.slice(0, 10), kv.slice(10, 24)]
    whole = model.logits(SUFFIX, model.place([kv], [-24]))
    assert (model.logits(SUFFIX, model.place(parts, [-24, -14])) - whole).abs().max() < 1e-4
    assert (model.logits(SUFFIX, model.place([KV.join(parts)], [-24])) - whole).abs().max() < 1e-4


@pytest.mark.parametrize("starts", [[0, 12], [0, 0], [3, 1]])
def test_chunks_encoded_alone_equal_one_forward_with_a_block_diagonal_mask(
    model: LocalModel, starts: list[int]
) -> None:
    """Chunks at overlapping positions == one forward in which each sees only itself and the question sees all."""
    chunks = [some_ids(12, 3), some_ids(12, 4)]
    first = 24
    placed = model.place(model.encode_batch(chunks), starts, windowed=True)
    positions = torch.arange(first, first + len(SUFFIX))[None]
    with model.reading(placed), torch.no_grad():
        got = model.model(input_ids=torch.tensor([SUFFIX]), position_ids=positions, use_cache=False).logits[0]

    ids = torch.tensor([chunks[0] + chunks[1] + SUFFIX])
    at = torch.cat([torch.arange(start, start + 12) for start in starts] + [positions[0]])
    block = torch.tensor([0] * 12 + [1] * 12 + [2] * len(SUFFIX))
    order = torch.arange(len(block))
    allowed = (order[:, None] >= order[None]) & ((block[:, None] == block[None]) | (block[:, None] == 2))
    near = allowed & (at[:, None] - at[None] < WINDOW)
    kinds = set(getattr(model.config, "layer_types", None) or ())

    def as_mask(seen: torch.Tensor) -> torch.Tensor:
        if model.model.config._attn_implementation == "sdpa":
            return seen[None, None]
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]

    mask: object = as_mask(near if model.config.model_type == "mistral" else allowed)
    if "sliding_attention" in kinds and model.config.model_type != "mistral":
        mask = {"full_attention": as_mask(allowed), "sliding_attention": as_mask(near)}
    with torch.no_grad():
        want = model.model(input_ids=ids, attention_mask=mask, position_ids=at[None], use_cache=False).logits[0, 24:]
    assert (got - want).abs().max() < 1e-4


@pytest.mark.parametrize(("temperature", "scale"), [(1.0, 1.0), (0.6, 0.8), (1.7, 1.2)])
def test_logits_and_shares_equal_a_float64_softmax(model: LocalModel, temperature: float, scale: float) -> None:
    kvs = model.encode_batch([some_ids(n, n) for n in (5, 11, 7)])
    placed = model.place(kvs, [-11, -11, -7], temperature=temperature, scale=scale)
    with model.reading(placed) as reader:
        got = plain(model, SUFFIX)
    with reference(model.model, placed) as state:
        want = plain(model, SUFFIX)
    assert (got - want).abs().max() < 1e-4
    ((read, shares),) = reader.shares
    assert read is placed
    assert shares.shape == (1, 3)
    torch.testing.assert_close(shares[0].double(), state.share(0), atol=1e-5, rtol=1e-4)
    for weights in state.weights[0].values():
        parts = weights["memory"][:, :, -1].sum(-1) + weights["context"][:, :, -1].sum(-1)
        if "sink" in weights:
            parts = parts + weights["sink"][:, :, -1, 0]
        torch.testing.assert_close(parts, torch.ones_like(parts))


def test_swapping_every_stride_equals_a_step_by_step_reference(model: LocalModel) -> None:
    first, second = (model.place([model.encode(some_ids(13, seed))], [-13]) for seed in (5, 6))
    plan = [second, None, UNCHANGED, first]
    seen: list[list[int]] = []

    def on_stride(ids: list[int]) -> object:
        seen.append(ids)
        return plan[len(seen) - 1]

    generation = model.generate(SUFFIX, placed=first, on_stride=on_stride, stride=3, max_new_tokens=15)
    assert generation.finish_reason == "length"
    assert [len(ids) for ids in seen] == [3, 6, 9, 12]
    assert all(generation.token_ids[: len(ids)] == ids for ids in seen)

    served = [first, second, None, None, first]
    ids, cache, tokens, shares = torch.tensor([SUFFIX]), None, [], []
    with reference(model.model, None) as state:
        for step in range(15):
            state.placed = served[step // 3]
            out = model.model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
            tokens.append(int(ids))
            if state.placed is not None:
                shares.append(state.share(-1))
    assert generation.token_ids == tokens
    assert [placed for placed, _ in generation.shares] == [first, second, first]
    got = torch.cat([rows for _, rows in generation.shares]).double()
    torch.testing.assert_close(got, torch.stack(shares), atol=1e-4, rtol=1e-3)


def test_reading_and_generating_never_change_stored_tensors(model: LocalModel) -> None:
    kv = model.encode(PREFIX)
    before = [tensor.clone() for tensor in (*kv.keys, *kv.values)]
    placed = model.place([kv, kv.slice(2, 9)], [-24, -7])
    served = [tensor.clone() for tensor in (*placed.keys, *placed.values) if tensor is not None]
    assert model.generate(SUFFIX, placed=placed, max_new_tokens=NEW).finish_reason == "length"
    assert kv.intact
    assert all(torch.equal(a, b) for a, b in zip(before, (*kv.keys, *kv.values), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(served, (*placed.keys, *placed.values), strict=True))
    # Nor does anything share its bytes with what the model reads.
    pointers = {tensor.data_ptr() for tensor in (*kv.keys, *kv.values)}
    assert not pointers & {tensor.data_ptr() for tensor in (*placed.keys, *placed.values)}


def test_encoding_is_a_pure_function(model: LocalModel) -> None:
    """The same bytes again, also while another memory is being read and after a long generation."""
    kv = model.encode(PREFIX, [1])
    placed = model.place([model.encode(some_ids(9, 9))], [-9])
    with model.reading(placed):
        inside = model.encode(PREFIX, [1])
        again = model.logits(SUFFIX)
        assert (model.logits(SUFFIX, placed) - again).abs().max() > 1e-3
    assert torch.equal(again, plain(model, SUFFIX))
    _ = model.generate(SUFFIX, placed=placed, max_new_tokens=40).text
    after = model.encode(PREFIX, [1])
    for other in (inside, after):
        assert all(torch.equal(a, b) for a, b in zip(kv.keys + kv.values, other.keys + other.values, strict=True))


def test_the_prefix_is_seen_but_not_kept(model: LocalModel) -> None:
    kv = model.encode(PREFIX[4:], PREFIX[:4])
    whole = model.encode(PREFIX).slice(4, 24)
    for got, want in zip(kv.keys + kv.values, whole.keys + whole.values, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_batch_encoding_equals_single_encoding(model: LocalModel) -> None:
    chunks = [some_ids(n, n) for n in (7, 30, 1, 12)]
    for chunk, kv in zip(chunks, model.encode_batch(chunks, [1]), strict=True):
        single = model.encode(chunk, [1])
        assert kv.n_tokens == len(chunk)
        for got, want in zip(kv.keys + kv.values, single.keys + single.values, strict=True):
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_rows_of_a_left_padded_batch_share_one_memory(model: LocalModel) -> None:
    placed = model.place([model.encode(PREFIX)], [-len(PREFIX)])
    short = SUFFIX[4:]
    ids = torch.tensor([SUFFIX, [0] * 4 + short])
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with model.reading(placed) as reader, torch.no_grad():
        got = model.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    alone = []
    for row, wanted in ((got[0], SUFFIX), (got[1, 4:], short)):
        with model.reading(placed) as single:
            assert (row - plain(model, wanted)).abs().max() < 1e-4
        alone.append(single.shares[0][1])
    torch.testing.assert_close(reader.shares[0][1], torch.stack(alone).mean(0), atol=1e-5, rtol=1e-4)


def test_the_model_is_left_as_it_was(model: LocalModel) -> None:
    hf, placed = model.model, model.place([model.encode(PREFIX)], [-24])
    before = hf.config._attn_implementation
    names = [set(vars(module)) for module in hf.modules()]

    def fail() -> None:
        with reading(hf, placed):
            assert hf.config._attn_implementation == "agentmem"
            raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        fail()
    assert hf.config._attn_implementation == before
    assert [set(vars(module)) for module in hf.modules()] == names


def test_memory_of_some_layers_and_picked_tokens(model: LocalModel) -> None:
    """Other tokens per head, in half of the layers: the same as hiding all other tokens, by a float64 softmax."""
    kv = model.encode(PREFIX).only([0, 1])
    generator = torch.Generator().manual_seed(0)
    picks = [
        torch.stack([torch.randperm(24, generator=generator)[:5].sort().values for _ in range(key.shape[0])])
        for key in kv.keys
    ]
    placed = model.place([kv.pick(picks)], [-24])
    assert placed.keys[2] is None
    assert placed.keys[0] is not None
    full = model.place([kv], [-24])
    for layer, pick in enumerate(picks):
        want = torch.stack([full.keys[layer][head, rows] for head, rows in enumerate(pick)])
        torch.testing.assert_close(placed.keys[layer], want, atol=1e-5, rtol=1e-5)
    with reference(model.model, placed):
        want = plain(model, SUFFIX)
    assert (model.logits(SUFFIX, placed) - want).abs().max() < 1e-4
    with pytest.raises(InvalidInput, match="windowed"):
        model.place([kv.pick(picks)], [-24], windowed=True)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_bfloat16_memory_is_as_exact_as_the_model(name: str) -> None:
    """Moved by 24 positions and stored in bf16, memory adds no more error than bf16 already makes in the context."""
    exact, model = local(name), local(name, torch.bfloat16)
    truth = plain(exact, PREFIX + SUFFIX)[24:]
    own = plain(model, PREFIX + SUFFIX)[24:].float()
    kv = model.encode(PREFIX)
    assert kv.dtype == torch.bfloat16
    got = model.logits(SUFFIX, model.place([kv], [-24], windowed=True)).float()

    def error(logits: torch.Tensor) -> float:
        return ((logits - truth).pow(2).mean().sqrt() / truth.std()).item()

    assert error(got) < 1.5 * error(own) + 0.01
