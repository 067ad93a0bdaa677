"""Tuning by the memlong recipe: what is frozen, what is recalled, where memory ends, and a run that resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tuning_world import LAYERS, histories, save_model, text

from agentmem import InvalidInput, MemLong, MemoryLLM
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.model.rows import RowsReader
from agentmem.recipes.memlong import CONFIG_KEY
from agentmem.retrieval import ModelEmbedder
from agentmem.training import checkpoint
from agentmem.training.bank import Bank
from agentmem.training.memlong import IGNORE, Tuner, Tuning, batch
from agentmem.training.tune import tune

SETTINGS: dict[str, Any] = {"steps": 8, "streams": 3, "window": 224, "rate": 5e-2, "rank": 4, "alpha": 8}
RECIPE = MemLong(top_k=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"))


def tuner(base: Path, *sentences: int, recipe: MemLong = RECIPE, **settings: object) -> Tuner:
    model = LocalModel.load(base, device="cpu")
    past = histories(model, *(sentences or (60, 18, 25, 18)))
    return Tuner(model, recipe, ModelEmbedder(model), past, Tuning(**{**SETTINGS, **settings}))


def test_only_lora_above_the_memory_layer_learns_and_what_is_stored_stays_the_same(base: Path) -> None:
    run = tuner(base)
    assert run.layout.memory_layer == LAYERS // 2
    learning = {name.split("layers.")[1].split(".")[0] for name in run.parameters}
    assert learning == {str(layer) for layer in range(run.layout.memory_layer + 1, LAYERS)}
    assert all("lora_" in name for name in run.parameters)
    before = {name: p.detach().clone() for name, p in run.peft.named_parameters()}
    chunk = [run.histories[0].chunks[0]]
    (stored,) = run.model.encode_batch(chunk, run.model.chat.prefix_ids, (run.layout.memory_layer,))
    for _ in range(4):
        run.run_step()
    after = dict(run.peft.named_parameters())
    changed = {name for name, p in before.items() if not torch.equal(p, after[name])}
    assert changed == set(run.parameters)
    (again,) = run.model.encode_batch(chunk, run.model.chat.prefix_ids, (run.layout.memory_layer,))
    assert torch.equal(stored.keys[0], again.keys[0])
    assert torch.equal(stored.values[0], again.values[0])


def test_gradients_flow_through_reading_and_not_into_what_is_stored(base: Path) -> None:
    run = tuner(base)
    for _ in range(5):
        run.run_step()
    windows = [run._history(stream).window(stream.number, run.tuning.window) for stream in run.streams]
    rows = [run._recalled(stream, window) for stream, window in zip(run.streams, windows, strict=True)]
    assert any(row is not None for row in rows)
    grads = []
    for memory in (rows, [None] * len(rows)):
        run._loss(windows, RowsReader(memory)).backward()
        grads.append({name: p.grad.clone() for name, p in run.parameters.items() if p.grad is not None})
        run.optimizer.zero_grad()
    assert grads[0].keys() == run.parameters.keys()
    assert any(not torch.allclose(grads[0][name], grads[1][name]) for name in grads[0])
    for row in rows:
        assert row is None or not any(key is not None and key.requires_grad for key in row.keys)
    assert all(not tensor.requires_grad for stream in run.streams for e in stream.bank.entries for tensor in e.kv.keys)


def test_a_batch_reads_what_the_recipe_reads_at_work(base: Path) -> None:
    """The layout of training gives the logits that ``LocalModel.logits`` gives with the recipe's placement."""
    run = tuner(base)
    for _ in range(5):
        run.run_step()
    windows = [run._history(stream).window(stream.number, run.tuning.window) for stream in run.streams]
    rows = [run._recalled(stream, window) for stream, window in zip(run.streams, windows, strict=True)]
    ids, labels = batch(windows, run.model.chat.prefix_ids)
    run.peft.eval()
    for grad in (True, False):  # with gradients the segments are joined, without they are merged
        with torch.set_grad_enabled(grad):
            from agentmem.model.attention import attached

            with attached(run.model.model, RowsReader(rows)):
                logits = run.model.model(input_ids=ids, use_cache=False).logits.detach()
        for at, (window, row) in enumerate(zip(windows, rows, strict=True)):
            context = [*run.model.chat.prefix_ids, *window.context, *window.scored]
            alone = run.model.logits(context, row)
            torch.testing.assert_close(logits[at, : len(context)], alone, atol=2e-4, rtol=0)
            scored = labels[at] != IGNORE
            assert labels[at, scored].tolist() == list(window.scored)
            assert ids[at, scored].tolist() == list(window.scored)


def test_a_chunk_is_predicted_with_what_the_chunk_before_it_recalls(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never with what it recalls itself (the published code does that): the query is known before the words are."""
    run = tuner(base)
    asked: list[np.ndarray] = []
    recall = Bank.recall

    def spy(self: Bank, query: np.ndarray, hidden: int, top_k: int) -> list[KV]:
        asked.append(query)
        assert all(entry.number < hidden for entry in self.entries if entry.uses)
        return recall(self, query, hidden, top_k)

    monkeypatch.setattr(Bank, "recall", spy)
    for _ in range(4):
        asked.clear()
        expected = []
        for stream in run.streams:
            if stream.number:
                history = run.histories[stream.document]
                with run.peft.disable_adapter():
                    expected.append(run.embedder.embed([history.texts[stream.number - 1]])[0])
        run.run_step()
        assert len(asked) == len(expected)
        for one, other in zip(asked, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_memory_is_emptied_where_a_document_ends(base: Path) -> None:
    """The published code fails there: its memory holds whatever came before in the stream."""
    run = tuner(base, 60, 18, 25, 18)
    ended = 0
    for _ in range(14):
        before = [(stream.document, stream.number) for stream in run.streams]
        run.run_step()
        for (document, number), stream in zip(before, run.streams, strict=True):
            history = run.histories[stream.document]
            assert [entry.number for entry in stream.bank.entries] == list(range(stream.number))
            own = run.model.encode_batch(
                history.chunks[: stream.number], run.model.chat.prefix_ids, (run.layout.memory_layer,)
            ) if stream.number else []  # fmt: skip
            for entry, kv in zip(stream.bank.entries, own, strict=True):
                torch.testing.assert_close(entry.kv.keys[0], kv.keys[0], atol=1e-5, rtol=0)
            if stream.number == 0:
                ended += 1
                assert stream.query is None
                assert number == len(run.histories[document].chunks) - 1
    assert ended >= 3


def test_a_bank_keeps_to_its_capacity_and_its_entries_stay_whole(base: Path) -> None:
    run = tuner(base, 60, 60, 60, capacity=4)
    for _ in range(9):
        run.run_step()
    for stream in run.streams:
        assert 1 <= len(stream.bank.entries) <= 4
        history = run.histories[stream.document]
        for entry in stream.bank.entries:
            assert entry.kv.n_tokens == len(history.chunks[entry.number])
            (kv,) = run.model.encode_batch([history.chunks[entry.number]], run.model.chat.prefix_ids, entry.kv.layers)
            torch.testing.assert_close(entry.kv.keys[0], kv.keys[0], atol=1e-5, rtol=0)


def test_recall_is_of_the_nearest_in_the_order_of_writing_and_is_counted() -> None:
    bank = Bank(10)
    kvs = [KV((torch.zeros(1, n + 1, 2),), (torch.zeros(1, n + 1, 2),), (3,)) for n in range(4)]
    for number, direction in enumerate([(1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (0.8, 0.6)]):
        bank.add(number, kvs[number], np.array(direction, dtype=np.float32))
    query = np.array([1.0, 0.1], dtype=np.float32)
    assert bank.recall(query, 4, 2) == [kvs[0], kvs[3]]
    assert bank.recall(query, 3, 2) == [kvs[0], kvs[2]], "chunk 3 is in the window"
    assert bank.recall(query, 0, 2) == []
    assert [entry.uses for entry in bank.entries] == [2, 0, 1, 1]
    other = Bank(10)
    other.restore(bank.tensors())
    assert [(e.number, e.uses, e.kv.n_tokens, e.kv.layers) for e in other.entries] == [
        (e.number, e.uses, e.kv.n_tokens, e.kv.layers) for e in bank.entries
    ]
    other.restore(Bank(1).tensors())
    assert other.entries == []


@pytest.mark.parametrize("memory", [True, False])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(base: Path, tmp_path: Path, memory: bool) -> None:
    whole = tuner(base, memory=memory)
    wanted = [whole.run_step() for _ in range(8)]
    assert len(set(wanted)) == 8
    first = tuner(base, memory=memory)
    losses = [first.run_step() for _ in range(5)]
    checkpoint.save(tmp_path, first.tensors(), first.state())
    second = tuner(base, memory=memory)
    found = checkpoint.load(tmp_path)
    assert found is not None
    second.restore(*found)
    losses += [second.run_step() for _ in range(3)]
    assert losses == wanted
    for one, other in zip(whole.streams, second.streams, strict=True):
        assert (one.document, one.number) == (other.document, other.number)
        assert [e.uses for e in one.bank.entries] == [e.uses for e in other.bank.entries]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"rate": 1e-3}, "tuning"),
        ({"recipe": MemLong(top_k=3)}, "top_k"),
        ({"recipe": MemLong(1, top_k=2)}, "layout"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(base: Path, other: dict[str, Any], named: str) -> None:
    one, two = tuner(base), tuner(base, **other)
    with pytest.raises(InvalidInput, match=named):
        two.restore(one.tensors(), one.state())


def test_a_changed_embedder_is_found_out(base: Path) -> None:
    one, two = tuner(base), tuner(base)
    state = one.state()
    state["agrees"]["embedder"] = "sentence-transformers:other"
    with pytest.raises(InvalidInput, match="another embedder"):
        two.restore(one.tensors(), state)


def test_more_steps_may_be_asked_of_a_checkpoint(base: Path) -> None:
    one = tuner(base, steps=4)
    one.run_step()
    two = tuner(base, steps=9)
    two.restore(one.tensors(), one.state())
    assert two.step == 1


def test_the_control_takes_the_same_windows_without_memory(base: Path) -> None:
    one, two = tuner(base), tuner(base, memory=False)
    for _ in range(4):
        assert [(s.document, s.number) for s in one.streams] == [(s.document, s.number) for s in two.streams]
        one.run_step()
        two.run_step()
    assert all(stream.bank.entries == [] for stream in two.streams)


@pytest.mark.parametrize(
    ("settings", "recipe", "reason"),
    [
        ({"window": 600}, RECIPE, "the model has 512 positions"),
        ({"window": 100}, RECIPE, "does not fit into a window of 100"),
        ({}, MemLong(LAYERS - 1), "nothing to tune"),
        ({"steps": 0}, RECIPE, "steps must be 1 or more"),
        ({"rate": 0.0}, RECIPE, "shares of 1"),
        ({"capacity": 1}, RECIPE, "capacity must be 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    base: Path, settings: dict[str, Any], recipe: MemLong, reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason):
        tuner(base, recipe=recipe, **settings)


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [Tuning(steps=100, rate=1e-3).rate_at(step) for step in range(100)]
    assert rates[0] < rates[5] < rates[9] == pytest.approx(1e-3)
    assert rates[99] < 1e-5
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_a_run_from_files_to_files(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in range(3):
        (tmp_path / f"{at}.txt").write_text(text(at, 30).replace("\n", "\n\n"))
    texts, out = [tmp_path / f"{at}.txt" for at in range(3)], tmp_path / "out"
    recipe = MemLong(1, top_k=2, positions="contiguous")
    settings = {**SETTINGS, "statements": 2}
    real = Tuner.run_step
    monkeypatch.setattr(Tuner, "run_step", lambda self: real(self) if self.step < 5 else pytest.fail("interrupted"))
    with pytest.raises(pytest.fail.Exception):
        tune(base, texts, out, recipe, Tuning(**settings), device="cpu", every=2)
    monkeypatch.setattr(Tuner, "run_step", real)
    merged = tune(base, texts, out, recipe, Tuning(**settings), device="cpu", every=2)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(8))
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert not [path for path in out.rglob("*") if path.suffix in {".bin", ".pt", ".pkl", ".pth"}]
    config = json.loads((merged / "config.json").read_text())
    assert config[CONFIG_KEY] == {"memory_layer": 1, "retrieval_layers": [1, 2, 3], "positions": "contiguous"}
    with MemoryLLM(merged, store=tmp_path / "m.db", recipe=MemLong(top_k=2), device="cpu", max_new_tokens=4) as llm:
        layout = MemLong().layout(llm.model)
        assert (layout.memory_layer, layout.retrieval_layers, layout.positions) == (1, (1, 2, 3), "contiguous")
        ada = llm.conversation(user="ada")
        ada.memories.add("The horse of Brilo is called Skenta.")
        assert llm.flush(60)
        (kept,) = ada.memories.list()
        assert kept.kv_bytes < 2 * 2 * 2 * 8 * 2 * kept.n_tokens, "one layer of four, as bf16, and a header"
    # The merged weights answer as the adapted model did.
    found = checkpoint.load(out / checkpoint_folder())
    assert found is not None
    again = Tuner(
        LocalModel.load(base, device="cpu"),
        recipe,
        ModelEmbedder(LocalModel.load(base, device="cpu")),
        again_histories(base, texts, settings),
        Tuning(**settings),
    )
    again.restore(*found)
    ids = list(range(3, 40))
    torch.testing.assert_close(
        LocalModel.load(merged, device="cpu").logits(ids), again.model.logits(ids), atol=2e-4, rtol=0
    )


def checkpoint_folder() -> str:
    from agentmem.training.tune import CHECKPOINT

    return CHECKPOINT


def again_histories(base: Path, texts: list[Path], settings: dict[str, Any]) -> Any:
    import random

    from agentmem.training.histories import cut
    from agentmem.training.statements import strewn
    from agentmem.training.texts import read_documents

    rng = random.Random(0)
    documents = [strewn(document, settings["statements"], rng) for document in read_documents(texts)]
    return cut(documents, LocalModel.load(base, device="cpu"))


def test_a_torn_checkpoint_is_the_one_before(base: Path, tmp_path: Path) -> None:
    run = tuner(base)
    run.run_step()
    checkpoint.save(tmp_path, run.tensors(), run.state())
    (tmp_path / "step-9.safetensors").write_bytes(b"half of it")  # killed before it was made the latest
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert found[1]["step"] == 1
    (tmp_path / "step-1.safetensors").write_bytes(b"damaged")
    with pytest.raises(InvalidInput, match="damaged"):
        checkpoint.load(tmp_path)
    assert checkpoint.load(tmp_path / "none") is None
