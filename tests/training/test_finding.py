"""The third stage of the bundled model's training: pass keys in texts that are read from afar."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from agentmem.llm import bundled_model
from agentmem.model.attention import Call, attached
from agentmem.model.local import LocalModel
from agentmem.model.softmax import Mixed, Segment
from agentmem.training import finding
from agentmem.training.batches import Packer, collate
from agentmem.training.far import FromAfar, finding_loss
from agentmem.training.passkey import Passkeys, draw_key, needle
from agentmem.training.values import is_heldout


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel.load(bundled_model())


@pytest.fixture(scope="module")
def passkeys(model: LocalModel) -> Passkeys:
    assert isinstance(model.tokenizer, PreTrainedTokenizerFast)
    return Passkeys(Packer(model.tokenizer), ["It was a long book. " * 400], ["I would like to go."])


def test_keys_of_tests_are_never_those_of_training() -> None:
    rng = random.Random(0)
    assert not any(is_heldout(draw_key(rng)) for _ in range(200))
    assert all(is_heldout(draw_key(rng, "heldout")) for _ in range(200))


def test_a_row_says_where_its_keys_are_and_ends_with_the_answer(model: LocalModel, passkeys: Passkeys) -> None:
    rng = random.Random(1)
    for _ in range(20):
        one = passkeys.row(rng, 400)
        ids = [column[0] for column in one.row.columns]
        for first, end in one.needles:
            said = model.tokenizer.decode(ids[first:end]).strip()
            key = said.split("is ")[1][:5]
            assert said == needle(key).strip()
            assert end <= one.text_end
        answer = model.tokenizer.decode([column[0] for column in one.row.columns if column[4] == 1.0])
        assert any(model.tokenizer.decode(ids[a:b]).split("is ")[1][:5] in answer for a, b in one.needles)


def test_with_nothing_far_it_is_the_plain_model(model: LocalModel, passkeys: Passkeys) -> None:
    rows = [passkeys.row(random.Random(2), 250) for _ in range(2)]
    batch = collate([one.row for one in rows])
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask(), "use_cache": False}
    with torch.no_grad():
        plain = model.model(**inputs).logits
        nothing = torch.zeros_like(batch.mask())
        for far in (None, nothing):
            with attached(model.model, FromAfar(model.rotary, far, batch.mask())):
                got = model.model(**inputs).logits
            torch.testing.assert_close(got, plain, atol=1e-3, rtol=0.0)


class FirstLayer(FromAfar):
    """Keeps what the first layer's attention read."""

    def mixed(self, call: Call, segments: Sequence[Segment], result: Mixed) -> None:
        super().mixed(call, segments, result)
        if call.layer == 0:
            self.read = result.output


def test_all_that_is_far_stands_at_one_distance(model: LocalModel, passkeys: Passkeys) -> None:
    """The first layer's keys know nothing but their own word: swapping two that are far changes nothing there."""
    one = passkeys.row(random.Random(3), 300)
    batch = collate([one.row])
    tokens = torch.arange(batch.ids.shape[1])
    far = ((tokens[:, None] >= one.text_end) & (tokens < one.text_end))[None, None]
    swapped = batch.ids.clone()
    swapped[0, [10, 200]] = batch.ids[0, [200, 10]]
    assert not torch.equal(swapped, batch.ids)
    read = []
    for ids, hidden in ((batch.ids, far), (swapped, far), (batch.ids, None), (swapped, None)):
        causal = batch.mask()
        hook = FirstLayer(model.rotary, hidden, causal if hidden is None else causal & ~hidden)
        with torch.no_grad(), attached(model.model, hook):
            model.model(input_ids=ids, attention_mask=causal, use_cache=False)
        read.append(hook.read[:, :, one.text_end :])
    torch.testing.assert_close(read[0], read[1], atol=1e-4, rtol=0.0)
    assert (read[2] - read[3]).abs().max() > 1e-3


def test_a_second_key_is_read_with_the_first_one_afar_and_both_are_when_asked(
    model: LocalModel, passkeys: Passkeys
) -> None:
    """As a stream does it: in a third of the steps by two cuts, in another by a window."""
    both = ever = 0
    for step in range(60):
        rng = random.Random(step)
        rows = [passkeys.row(rng, 500) for _ in range(2)]
        batch = collate([one.row for one in rows])
        hook = finding.reading_at(step, model, batch, rows)
        seen = batch.mask()
        if hook.far is None:
            assert torch.equal(hook.near, seen)
            continue
        assert not (hook.far & ~seen).any()
        assert torch.equal(hook.far | hook.near, seen)
        ever += 1
        for far, one in zip(hook.far[:, 0], rows, strict=True):
            if len(one.needles) == 2:
                (first, _), (second, end) = one.needles
                both += bool(far[end - 1, first] and far[one.text_end, second])
    assert 30 <= ever < 60
    assert both >= 20


def test_the_loss_of_finding_falls_when_it_is_trained(passkeys: Passkeys) -> None:
    model = LocalModel.load(bundled_model())
    model.model.train().requires_grad_(True)
    rng = random.Random(4)
    rows = [passkeys.row(rng, 500) for _ in range(3)]
    batch = collate([one.row for one in rows])
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=3e-4)
    losses = []
    for _ in range(6):
        hook = FromAfar(model.rotary, None, batch.mask())
        with attached(model.model, hook):
            model.model(input_ids=batch.ids, attention_mask=batch.mask(), use_cache=False)
        loss = finding_loss(hook, model.rotary, batch, rows, random.Random(5))
        assert loss is not None
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert losses[-1] < losses[0]


def test_the_command_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "LENGTHS", (120,))
    monkeypatch.setattr(finding, "TOKENS", 240)
    monkeypatch.setattr(finding, "DIALOGUES", 2)
    monkeypatch.setattr(finding, "report", lambda model, packer: {})
    monkeypatch.setattr(finding, "rate_at", lambda step, steps: 0.1)
    settings = {"base": bundled_model(), "rate": 1e-3, "threads": 1, "utterances": None, "book": None}
    finding.train(out=tmp_path / "whole", steps=4, every=2, **settings)  # type: ignore[arg-type]  # by name
    finding.train(out=tmp_path / "parts", steps=2, every=2, **settings)  # type: ignore[arg-type]  # by name
    finding.train(out=tmp_path / "parts", steps=4, every=2, **settings)  # type: ignore[arg-type]  # by name
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert [line["step"] for line in logs[1]] == [2, 4]
    assert logs[0][-1]["text"] == pytest.approx(logs[1][-1]["text"], rel=0.02)
