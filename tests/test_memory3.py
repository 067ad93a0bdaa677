"""Memory3: what is kept of a reference, where it is read, and what each stretch of a prompt reads."""

import math
from datetime import UTC, datetime

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agentmem import InvalidInput, Memory, Memory3, MemoryLLM, Role, Scope
from agentmem.llm import bundled_model
from agentmem.model.attention import Call, Hook, Placed, attached
from agentmem.model.local import LocalModel
from agentmem.model.reading import Capture
from agentmem.model.selection import attention_received, top_tokens
from agentmem.model.softmax import Segment
from tests.model.plain_reference import reference
from tests.model.tiny_models import local, some_ids

TEXTS = [
    "The harbour master of Velnor is Tarik. The old road leads the way to the hills.",
    "The wood is known for the winter storms. The feast of Cinogund is stoshoat, or so they say.",
    "The gate code of Oslo is K7-402.",
]
CLOSE = {"atol": 3e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel.load(bundled_model(), device="cpu")


def memory(text: str) -> Memory:
    return Memory(
        id=text[:8],
        scope=Scope(user="ada"),
        text=text,
        role=Role.USER,
        turn="t",
        chunk_no=0,
        n_tokens=9,
        created_at=datetime(2026, 5, 4, tzinfo=UTC),
    )


MEMORIES = [memory(text) for text in TEXTS]

# ------------------------------------------------------------------------------------------------------------ the score


def by_hand(queries: Tensor, keys: Tensor, scaling: float, score: str) -> Tensor:
    """The formula of section 3.3, one number after the other."""
    heads, tokens, _ = queries.shape
    group = heads // keys.shape[0]
    out = torch.zeros(keys.shape[:2], dtype=torch.float64)
    for head in range(heads):
        for i in range(tokens):
            logits = [
                float(queries[head, i].double() @ keys[head // group, j].double()) * scaling for j in range(tokens)
            ]
            total = sum(math.exp(z) for z in logits) if score == "softmax" else 1.0
            for j in range(tokens):
                out[head // group, j] += math.exp(logits[j]) / total
    return out


@settings(max_examples=25, deadline=None)
@given(
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    tokens=st.integers(1, 7),
    score=st.sampled_from(["softmax", "unnormalised"]),
    seed=st.integers(0, 999),
)
def test_the_score_is_the_papers(kv_heads: int, group: int, tokens: int, score: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(kv_heads * group, tokens, 4, generator=generator)
    keys = torch.randn(kv_heads, tokens, 4, generator=generator)
    got = attention_received(queries, keys, 0.5, score).double()
    wanted = by_hand(queries, keys, 0.5, score)
    # The shortcut is defined up to a factor per KV head: only the order counts.
    torch.testing.assert_close(
        got / got.sum(-1, keepdim=True), wanted / wanted.sum(-1, keepdim=True), atol=1e-5, rtol=0
    )
    if score == "softmax":
        torch.testing.assert_close(got.sum(-1), torch.full((kv_heads,), float(group * tokens)).double())


def test_padding_neither_gives_nor_receives() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(3, 4, 6, 8, generator=generator), torch.randn(3, 2, 6, 8, generator=generator)
    valid = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    for score in ("softmax", "unnormalised"):
        padded = attention_received(queries, keys, 0.3, score, valid)
        for row, n in enumerate((6, 4, 1)):
            alone = attention_received(queries[row, :, :n], keys[row, :, :n], 0.3, score)
            assert torch.isneginf(padded[row, :, n:]).all()
            order = padded[row, :, :n].argsort(-1)
            assert torch.equal(order, alone.argsort(-1))


def test_huge_logits_do_not_overflow_the_shortcut() -> None:
    keys = torch.tensor([[[100.0], [99.0], [1.0]]])
    got = attention_received(keys, keys, 1.0, "unnormalised")
    assert torch.isfinite(got).all()
    assert top_tokens(got, 1).tolist() == [[0]]


def test_of_equals_the_first_are_kept_whatever_the_rounding() -> None:
    received = torch.tensor([[2.0, 5.0, 5.0 + 1e-5, 5.0 - 1e-5, 1.0, 5.01]])
    assert top_tokens(received, 3).tolist() == [[1, 2, 5]]
    assert top_tokens(received, 9).tolist() == [[0, 1, 2, 3, 4, 5]]


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3_partial", "smollm3", "gpt_oss", "gpt_neox"])
@pytest.mark.parametrize("score", ["softmax", "unnormalised"])
def test_each_head_keeps_the_tokens_that_receive_most(name: str, score: str) -> None:
    model = local(name)
    recipe = Memory3(keep=5, score=score)
    one = memory("The old road leads to the hills, and the sea.")
    (kv,) = recipe.encode(model, [one])
    ids = [*recipe.prefix(model), *model.chat.encode(f" {one.text}")]
    start = len(recipe.prefix(model))
    capture = Capture()
    with attached(model.model, capture), torch.no_grad():
        model.model(input_ids=torch.tensor([ids]), use_cache=False)
    assert kv.layers == tuple(range(model.n_layers // 2))
    positions = torch.arange(start, len(ids))
    for column, layer in enumerate(kv.layers):
        queries = model.rotary.unrotate(layer, capture.queries[layer][0, :, start:], positions)
        keys = model.rotary.unrotate(layer, capture.keys[layer][0, :, start:], positions)
        received = by_hand(queries, keys, capture.scaling[layer], score)
        assert kv.offsets is not None
        kept = kv.offsets[column]
        assert kept.tolist() == [sorted(set(row)) for row in kept.tolist()]
        # Equal tokens receive the same in the first layer: which of them is kept is open, what it received is not.
        torch.testing.assert_close(
            received.gather(1, kept).sort(-1).values, received.topk(5).values.sort(-1).values, atol=1e-6, rtol=1e-3
        )
        for got, whole in ((kv.keys[column], keys), (kv.values[column], capture.values[layer][0, :, start:])):
            torch.testing.assert_close(got, whole.gather(1, kept[..., None].expand(-1, -1, whole.shape[-1])), **CLOSE)


def test_heads_and_layers_keep_other_tokens(model: LocalModel) -> None:
    (kv,) = Memory3().encode(model, MEMORIES[:1])
    assert kv.n_tokens == 8
    assert kv.offsets is not None
    assert len({tuple(row) for offset in kv.offsets for row in offset.tolist()}) > 1


def test_keeping_as_many_tokens_as_there_are_is_keeping_all(model: LocalModel) -> None:
    question = model.chat.encode("What is the gate code?")
    some, every = Memory3(keep=128), Memory3(keep=None)
    one, other = some.encode(model, MEMORIES), every.encode(model, MEMORIES)
    assert [kv.offsets is None for kv in (one[0], other[0])] == [False, True]
    torch.testing.assert_close(
        model.logits(question, some.place(model, one)), model.logits(question, every.place(model, other)), **CLOSE
    )


def test_layers_above_the_last_kept_one_do_not_run(model: LocalModel) -> None:
    ran: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(model.model.model.layers)
    ]
    try:
        Memory3().encode(model, MEMORIES)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0]  # layer 1 is left before its attention, once its keys are there
    assert torch.isfinite(model.logits([5, 6])).all()


def test_layers_can_be_chosen(model: LocalModel) -> None:
    (kv,) = Memory3(layers=(1, 3)).encode(model, MEMORIES[:1])
    assert kv.layers == (1, 3)
    placed = Memory3(layers=(1, 3)).place(model, [kv])
    prefix = len(Memory3().prefix(model))
    assert [0 if key is None else key.shape[1] for key in placed.keys] == [prefix, prefix + 8, prefix, prefix + 8]


def test_what_changes_the_kv_changes_the_identity() -> None:
    recipes = [Memory3(), Memory3(keep=4), Memory3(keep=None), Memory3(score="unnormalised"), Memory3(layers=(0, 1))]
    assert len({recipe.identity for recipe in recipes}) == len(recipes)
    assert Memory3(top_k=3, stride=32, interval=200).identity == Memory3().identity


# --------------------------------------------------------------------------------------------------------- where it is


@pytest.mark.parametrize("keep", [8, None])
def test_all_references_lie_in_one_interval_behind_the_prefix(model: LocalModel, keep: int | None) -> None:
    recipe = Memory3(keep=keep)
    kvs = recipe.encode(model, MEMORIES)
    placed = recipe.place(model, kvs)
    prefix = recipe.prefix(model)
    assert placed.positions[: len(prefix)].tolist() == list(range(-128 - len(prefix), -128))
    assert placed.n_tokens == sum(kv.n_tokens for kv in kvs)
    for kv, (start, stop) in zip(kvs, placed.spans, strict=True):
        for column, layer in enumerate(kv.layers):
            offsets = torch.arange(kv.n_tokens).expand(2, -1) if kv.offsets is None else kv.offsets[column]
            turned = model.rotary.rotate(layer, kv.keys[column], offsets - 128)
            torch.testing.assert_close(placed.keys[layer][:, start:stop], turned, atol=0, rtol=0)
    shared = model.encode(prefix)
    for layer in range(model.n_layers):
        keys = placed.keys[layer]
        assert keys is not None
        assert keys.shape[1] == len(prefix) + (placed.n_tokens if layer < 2 else 0)
        torch.testing.assert_close(
            keys[:, : len(prefix)], model.rotary.rotate(layer, shared.keys[layer], placed.positions[: len(prefix)])
        )


def test_a_reference_that_is_longer_than_the_interval_makes_it_longer(model: LocalModel) -> None:
    recipe = Memory3(keep=None, interval=8)
    kvs = recipe.encode(model, MEMORIES)
    longest = max(kv.n_tokens for kv in kvs)
    placed = recipe.place(model, kvs)
    assert longest > 8
    assert int(placed.positions[len(recipe.prefix(model)) :].max()) == -1
    assert int(placed.positions.min()) == -longest - len(recipe.prefix(model))


def test_one_softmax_over_prefix_memories_and_context(model: LocalModel) -> None:
    recipe = Memory3()
    placed = recipe.place(model, recipe.encode(model, MEMORIES))
    ids = torch.tensor([model.chat.encode("What is the feast of Cinogund?")])
    with reference(model.model, placed):
        wanted = model.model(input_ids=ids, use_cache=False).logits[0]
    torch.testing.assert_close(model.logits(ids[0].tolist(), placed), wanted, **CLOSE)


def test_shares_are_of_the_memories_alone_and_of_the_layers_that_read_them(model: LocalModel) -> None:
    recipe = Memory3()
    placed = recipe.place(model, recipe.encode(model, MEMORIES))
    ids = torch.tensor([model.chat.encode("What is the feast of Cinogund?")])
    with reference(model.model, placed) as state:
        model.model(input_ids=ids, use_cache=False)
    layers = [state.weights[0][layer]["memory"][0, :, -1] for layer in (0, 1)]
    wanted = [torch.stack([w[:, a:b].sum(-1).mean() for w in layers]).mean() for a, b in placed.spans]
    with model.reading(placed) as reader, torch.no_grad():
        model.model(input_ids=ids, use_cache=False)
    ((_, shares),) = reader.shares
    torch.testing.assert_close(shares[0], torch.stack(wanted).float(), **CLOSE)


# ------------------------------------------------------------------------------------------------ stretches of a prompt


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt_oss", "smollm3", "phi3_partial"])
def test_stretches_of_a_prompt_read_what_is_theirs(name: str) -> None:
    """Stepwise generation against one forward with everything placed and a mask per query."""
    model = local(name)
    recipe = Memory3(keep=4)
    kvs = recipe.encode(model, MEMORIES)
    sets = [recipe.place(model, [kvs[0], kvs[1]]), recipe.place(model, [kvs[2], kvs[0]]), recipe.place(model, [kvs[1]])]
    prompt, starts, new = some_ids(31), (0, 9, 20), 6
    generation = model.generate(prompt, reads=list(zip(starts, sets, strict=True)), max_new_tokens=new)
    tokens = generation.token_ids if generation.text is not None else []
    whole = torch.tensor([[*prompt, *tokens]])
    logits = _one_forward(model, whole, sets, starts)
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == tokens
    with torch.no_grad():
        plain = model.model(input_ids=whole, use_cache=False).logits[0]
    assert (plain - logits).abs().max() > 1e-2


def _one_forward(model: LocalModel, ids: Tensor, sets: list[Placed], starts: tuple[int, ...]) -> Tensor:
    which = sum((torch.arange(ids.shape[1]) >= start).long() for start in starts) - 1

    class Everything(Hook):
        def segments(self, call: Call) -> list[Segment]:
            return [
                Segment(
                    keys[None], values[None], mask=(which == i)[None, None, :, None].expand(1, 1, -1, keys.shape[1])
                )
                for i, one in enumerate(sets)
                if (keys := one.keys[call.layer]) is not None and (values := one.values[call.layer]) is not None
            ]

    with attached(model.model, Everything()), torch.no_grad():
        logits: Tensor = model.model(input_ids=ids, use_cache=False).logits[0]
        return logits


def test_a_prompt_that_reads_nothing_in_any_stretch_is_the_plain_model(model: LocalModel) -> None:
    prompt = some_ids(40)
    plain = model.generate(prompt, max_new_tokens=8)
    stretched = model.generate(prompt, reads=[(0, None), (16, None), (32, None)], max_new_tokens=8)
    assert plain.text == stretched.text
    assert stretched.shares == ()


@pytest.mark.parametrize("starts", [[1], [0, 0], [0, 9, 4], [0, 40]])
def test_stretches_that_do_not_cover_the_prompt_are_refused(model: LocalModel, starts: list[int]) -> None:
    with pytest.raises(InvalidInput, match="reads must begin at token 0"):
        model.generate(some_ids(40), reads=[(start, None) for start in starts])


# ------------------------------------------------------------------------------------------------------- end to end


def test_each_64_tokens_of_a_long_prompt_recall_for_themselves(tmp_path) -> None:
    towns = ["Velnor", "Cinogund", "Tralvis", "Mospeth", "Quorane", "Brellin", "Dastrick"]
    with MemoryLLM(store=tmp_path / "m.db", recipe="memory3", threshold=None, top_k=2) as llm:
        ada = llm.conversation(user="ada")
        for town in towns:
            ada.memories.add(f"The harbour master of {town} is Tarik{town[:2]}.")
        starts: list[int] = []
        read: list[list[str]] = []
        generate = llm.model.generate

        def seen(prompt, **options):
            starts.extend(start for start, _ in options["reads"])
            return generate(prompt, **options)

        recall = llm.reader.recall

        def recalled(*args, **options):
            found = recall(*args, **options)
            read.append([hit.memory.text for hit in found.hits])
            return found

        llm.model.generate, llm.reader.recall = seen, recalled  # type: ignore[method-assign]
        question = " ".join(
            f"Who runs the harbour of {town}, and since when, and why did the old one leave?" for town in towns
        )
        reply = ada.chat(question, max_new_tokens=4)
    n = reply.usage.prompt_tokens
    assert n > 128
    assert starts == sorted({0, *range(n - 64, 0, -64)})
    assert len(read) == len(starts)
    assert len({tuple(texts) for texts in read}) > 1, "every stretch recalled the same"
    assert {hit.memory.text for hit in reply.memories} == {text for texts in read for text in texts}


def test_memories_survive_a_restart_sparse(tmp_path) -> None:
    with MemoryLLM(store=tmp_path / "m.db", recipe="memory3", threshold=None, codec="bf16") as llm:
        llm.conversation(user="ada").memories.add(TEXTS[0])
        llm.flush()
        (stored,) = llm.conversation(user="ada").memories.list()
        assert stored.tier == "warm"
        # 2 layers, 2 KV heads, 8 tokens of 64 dims, keys and values in bf16; places and header beside them
        assert 8192 < stored.kv_bytes < 8192 + 700
    with MemoryLLM(store=tmp_path / "m.db", recipe="memory3", threshold=None) as llm:
        reply = llm.conversation(user="ada").chat("Who runs the harbour of Velnor?", max_new_tokens=4)
        assert [read.memory.text for read in reply.memories] == [TEXTS[0]]
        assert not reply.memories[0].rebuilt


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "keep is 0"),
        ({"keep": 129}, "keep is 129, but a reference has at most 128 tokens"),
        ({"layers": ()}, "ascending numbers"),
        ({"layers": (2, 1)}, "ascending numbers"),
        ({"layers": (-1,)}, "ascending numbers"),
        ({"score": "sum"}, "'softmax' or 'unnormalised'"),
        ({"interval": 0, "keep": None}, "interval must be 1 or more"),
        ({"top_k": 0}, "top_k must be 1 or more"),
        ({"stride": 0}, "stride must be 1 or more"),
        ({"prompt_stride": 0}, "prompt_stride must be 1 or more"),
    ],
)
def test_values_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Memory3(**options)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [(Memory3(layers=(0, 4)), "layers are 0 to 3"), (Memory3(interval=1024), "positions before the context")],
)
def test_a_model_that_cannot_serve_it_is_refused_before_a_store(tmp_path, recipe: Memory3, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        MemoryLLM(store=tmp_path / "m.db", recipe=recipe)
    assert not (tmp_path / "m.db").exists()
