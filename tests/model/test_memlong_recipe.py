"""The memlong recipe against its formulas, computed here from scratch: what is stored, where it is read, by whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
import torch
from tiny_models import build, local, tokenizer
from torch import Tensor

from agentmem import InvalidInput, MemLong, Memory, Role, Scope
from agentmem.model.attention import Placed
from agentmem.model.local import LocalModel
from agentmem.recipes.memlong import CONFIG_KEY

TEXTS = ["The horse is called Brilo.", "It rained.", "Nobody came, and the lamps were put out at nine."]
QUESTION = "What is the horse called?"
CLOSE = {"atol": 5e-4, "rtol": 0.0}


def memory(text: str, minute: int = 0) -> Memory:
    at = datetime(2026, 5, 4, tzinfo=UTC) + timedelta(minutes=minute)
    return Memory(
        id=text, scope=Scope(user="ada"), text=text, role=Role.USER, turn="t", chunk_no=0, n_tokens=9, created_at=at
    )


MEMORIES = [memory(text, minute) for minute, text in enumerate(TEXTS)]


class FromScratch:
    """A Llama with grouped-query attention in double precision, written out; nothing of transformers or agentmem runs.

    ``accumulate`` is the published code's mistake: the shared keys are rotated once more by every retrieval layer.
    """

    def __init__(self, model: LocalModel, memory_layer: int, retrieval_layers: Sequence[int], accumulate: bool = False):
        self.weights = {name: tensor.double() for name, tensor in model.model.state_dict().items()}
        self.config = model.config
        self.memory_layer, self.retrieval_layers = memory_layer, tuple(retrieval_layers)
        self.accumulate = accumulate
        self.prefix = list(model.chat.prefix_ids)

    def rope(self, x: Tensor, positions: Tensor) -> Tensor:
        d = x.shape[-1]
        theta = self.config.rope_parameters["rope_theta"]
        angle = positions[:, None].double() * theta ** (-torch.arange(0, d, 2).double() / d)
        a, b = x[..., : d // 2], x[..., d // 2 :]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt() * self.weights[name]

    def run(
        self, ids: Sequence[int], start: int, mem: tuple[Tensor, Tensor] | None = None, at: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of ``ids`` at positions from ``start``, and the memory layer's keys (before RoPE) and values.

        ``mem``: keys before RoPE and values, (kv_heads, M, d); ``at``: their positions.
        """
        c, w = self.config, self.weights
        heads, kv_heads, d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        positions = torch.arange(start, start + len(ids))
        x = w["model.embed_tokens.weight"][torch.tensor(ids)]
        stored: tuple[Tensor, Tensor] | None = None
        shared = None if mem is None else mem[0]
        for layer in range(c.num_hidden_layers):
            name = f"model.layers.{layer}."
            h = self.norm(x, name + "input_layernorm.weight")
            q, k, v = (
                (h @ w[f"{name}self_attn.{p}_proj.weight"].T).view(len(ids), n, d).transpose(0, 1)
                for p, n in (("q", heads), ("k", kv_heads), ("v", kv_heads))
            )
            if layer == self.memory_layer:
                stored = k, v
            q, keys, values = self.rope(q, positions), self.rope(k, positions), v
            visible = torch.ones(len(ids), len(ids)).tril().bool()
            if mem is not None and layer in self.retrieval_layers:
                assert shared is not None
                assert at is not None
                turned = self.rope(shared, at)
                shared = turned if self.accumulate else shared
                keys, values = torch.cat((turned, keys), 1), torch.cat((mem[1], values), 1)
                visible = torch.cat((torch.ones(len(ids), turned.shape[1]).bool(), visible), 1)
            group = heads // kv_heads
            scores = q @ keys.repeat_interleave(group, 0).transpose(1, 2) / d**0.5
            weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
            mixed = (weights @ values.repeat_interleave(group, 0)).transpose(0, 1).flatten(1)
            x = x + mixed @ w[name + "self_attn.o_proj.weight"].T
            h = self.norm(x, name + "post_attention_layernorm.weight")
            gate, up = (h @ w[f"{name}mlp.{p}_proj.weight"].T for p in ("gate", "up"))
            x = x + (torch.nn.functional.silu(gate) * up) @ w[name + "mlp.down_proj.weight"].T
        assert stored is not None
        return self.norm(x, "model.norm.weight") @ w["lm_head.weight"].T, *stored

    def memory(self, chunks: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Keys and values of chunks, each encoded alone after the prefix, whose own are dropped."""
        found = [self.run([*self.prefix, *chunk], 0)[1:] for chunk in chunks]
        n = len(self.prefix)
        return torch.cat([k[:, n:] for k, _ in found], 1), torch.cat([v[:, n:] for _, v in found], 1)


@pytest.fixture(scope="module")
def model() -> LocalModel:
    """Four layers, four query heads on two KV heads."""
    return local("llama")


def ids(model: LocalModel, text: str) -> list[int]:
    return model.chat.encode(text)


def read(model: LocalModel, recipe: MemLong) -> Tensor:
    placed = recipe.place(model, recipe.encode(model, MEMORIES))
    return model.logits([*model.chat.prefix_ids, *ids(model, QUESTION)], placed)


@pytest.mark.parametrize(("memory_layer", "readers"), [(2, (2, 3)), (1, (1, 2, 3)), (1, (3,)), (0, (0, 2))])
def test_zero_is_the_papers_memory_at_0_and_context_from_1(
    model: LocalModel, memory_layer: int, readers: tuple[int, ...]
) -> None:
    paper = FromScratch(model, memory_layer, readers)
    mem = paper.memory([ids(model, text) for text in TEXTS])
    question = [*model.chat.prefix_ids, *ids(model, QUESTION)]
    wanted, *_ = paper.run(question, 1, mem, torch.zeros(mem[0].shape[1], dtype=torch.int64))
    got = read(model, MemLong(memory_layer, readers))
    torch.testing.assert_close(got, wanted.float(), **CLOSE)
    assert not torch.allclose(got, model.logits(question), **CLOSE)


def test_contiguous_is_the_papers_0_to_m_without_the_codes_accumulating_rotation(model: LocalModel) -> None:
    chunks = [ids(model, text) for text in TEXTS]
    question = [*model.chat.prefix_ids, *ids(model, QUESTION)]
    right, wrong = (FromScratch(model, 1, (1, 2, 3), accumulate) for accumulate in (False, True))
    mem = right.memory(chunks)
    m = mem[0].shape[1]
    wanted, *_ = right.run(question, m, mem, torch.arange(m))
    mistaken, *_ = wrong.run(question, m, mem, torch.arange(m))
    got = read(model, MemLong(1, (1, 2, 3), "contiguous", top_k=3))
    torch.testing.assert_close(got, wanted.float(), **CLOSE)
    assert (mistaken - wanted).abs().max() > 0.1, "the mistake must show, or this test says nothing"


@pytest.mark.parametrize("positions", ["zero", "contiguous"])
def test_every_layer_rotates_the_stored_keys_themselves_and_nothing_writes_to_them(
    model: LocalModel, positions: str
) -> None:
    recipe = MemLong(1, (1, 2, 3), positions, top_k=3)  # type: ignore[arg-type]
    kvs = recipe.encode(model, MEMORIES)
    before = [kv.keys[0].clone() for kv in kvs]
    first, again = recipe.place(model, kvs), recipe.place(model, kvs)
    assert first.keys[0] is None
    for layer in (1, 2, 3):
        keys = first.keys[layer]
        assert keys is not None
        assert torch.equal(keys, again.keys[layer])
        joined = torch.cat([kv.keys[0] for kv in kvs], 1)
        at = first.positions.expand(joined.shape[0], -1)
        torch.testing.assert_close(keys, model.rotary.rotate(layer, joined, at))
    assert all(kv.intact and torch.equal(kv.keys[0], old) for kv, old in zip(kvs, before, strict=True))


def test_positions_of_both_modes(model: LocalModel) -> None:
    def positions(recipe: MemLong) -> Placed:
        return recipe.place(model, recipe.encode(model, MEMORIES))

    lengths = [len(ids(model, text)) for text in TEXTS]
    assert positions(MemLong()).positions.tolist() == [-1] * sum(lengths)
    contiguous = positions(MemLong(positions="contiguous", top_k=3))
    assert contiguous.positions.tolist() == list(range(-sum(lengths), 0))
    assert [stop - start for start, stop in contiguous.spans] == lengths


def test_only_the_memory_layer_is_stored_with_kv_heads_only(model: LocalModel) -> None:
    (kv, *_) = MemLong(1).encode(model, MEMORIES)
    assert kv.layers == (1,)
    assert kv.keys[0].shape == kv.values[0].shape == (2, len(ids(model, TEXTS[0])), 16)


@pytest.mark.parametrize(("layers", "memory_layer", "readers"), [
    (26, 13, (13, 17, 21, 25)),  # the paper's
    (28, 14, (14, 18, 22, 26)), (32, 16, (16, 20, 24, 28)), (8, 4, (4, 5, 6, 7)), (4, 2, (2, 3)), (2, 1, (1,)),
])  # fmt: skip
def test_default_layers(layers: int, memory_layer: int, readers: tuple[int, ...]) -> None:
    class Counted:
        n_layers = layers
        model = build("llama")

    layout = MemLong().layout(Counted())  # type: ignore[arg-type]
    assert (layout.memory_layer, layout.retrieval_layers, layout.positions) == (memory_layer, readers, "zero")


def test_a_tuned_model_says_how_it_is_read_and_the_recipe_may_say_otherwise() -> None:
    tuned = LocalModel(build("llama"), tokenizer())
    setattr(tuned.model.config, CONFIG_KEY, {"memory_layer": 1, "retrieval_layers": [1, 3], "positions": "contiguous"})
    assert dataclasses.astuple(MemLong().layout(tuned)) == (1, (1, 3), "contiguous")
    assert dataclasses.astuple(MemLong(positions="zero").layout(tuned)) == (1, (1, 3), "zero")
    assert dataclasses.astuple(MemLong(2).layout(tuned)) == (2, (2, 3), "contiguous")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"memory_layer": 4}, "memory_layer is 4, but the model's layers are 0 to 3"),
        ({"memory_layer": 2, "retrieval_layers": (1, 3)}, "retrieval layer 1 lies below the memory layer 2"),
        ({"retrieval_layers": (3, 4)}, "ascending numbers of the model's 4 layers"),
        ({"retrieval_layers": (3, 2)}, "ascending numbers"),
        ({"positions": "contiguous"}, "8 chunks of 128 tokens before the context, but the model has 512 positions"),
    ],
)
def test_a_model_that_cannot_serve_it_is_refused_with_the_reason(
    model: LocalModel, fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason):
        MemLong(**fields).check(model)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [{"positions": "one"}, {"top_k": 0}, {"stride": 0}, {"memory_layer": -1}, {"retrieval_layers": ()}],
)
def test_values_that_no_model_could_serve_are_refused_at_once(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        MemLong(**fields)  # type: ignore[arg-type]


def test_layers_of_another_shape_are_not_read_across(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalModel(build("llama"), tokenizer())
    whole = model.encode

    def wider(ids: Sequence[int], **more: object) -> object:
        kv = whole(ids)
        keys = (*kv.keys[:3], kv.keys[3].repeat(2, 1, 1))
        return dataclasses.replace(kv, keys=keys, values=(*kv.values[:3], kv.values[3].repeat(2, 1, 1)))

    monkeypatch.setattr(model, "encode", wider)
    with pytest.raises(InvalidInput, match=r"layers \[3\] have other KV heads"):
        MemLong().check(model)


@pytest.mark.parametrize("family", ["llama_yarn", "gemma3", "smollm3", "qwen3", "gpt_neox"])
def test_each_reading_layer_rotates_in_its_own_way(family: str) -> None:
    """Scaled RoPE, two kinds of RoPE in one model, layers without any: the reader's way, never the writer's."""
    model = local(family)
    recipe = MemLong(1, (1, 2, 3))
    kvs = recipe.encode(model, MEMORIES)
    placed = recipe.place(model, kvs)
    joined = torch.cat([kv.keys[0] for kv in kvs], 1)
    for layer in (1, 2, 3):
        keys = placed.keys[layer]
        assert keys is not None
        torch.testing.assert_close(keys, model.rotary.rotate(layer, joined, placed.positions))
    assert torch.isfinite(model.logits(ids(model, QUESTION), placed)).all()


def test_identity_changes_with_the_stored_layer_only() -> None:
    assert MemLong().identity != MemLong(3).identity
    assert MemLong(3).identity == MemLong(3, (3, 4), "contiguous", top_k=2).identity
