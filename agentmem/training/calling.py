"""Fourth stage of the bundled model: call tools with arguments that are right, and say what they returned.

``python -m agentmem.training.calling --base runs/finding --out runs/calling`` goes on from the model that
``agentmem.training.finding`` made. Batches of the stages before are repeated all along, so that nothing is forgotten.
Seeds are fixed by step; run again to resume.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from agentmem.model.local import LocalModel
from agentmem.training.batches import Batch, Packer, collate
from agentmem.training.bundled import SEED, batch_at, begin, loss_of, report, save_checkpoint, steps_of, write_line
from agentmem.training.calls import Calls, Laid, Span
from agentmem.training.chat_template import CHAT_TEMPLATE
from agentmem.training.errands import draw_errand
from agentmem.training.finding import DIALOGUE_STEP, read_text, text_loss
from agentmem.training.passkey import Passkeys
from agentmem.training.pointing import Pointer, Pointing
from agentmem.training.smalltalk import load_utterances

TOKENS = 1000
"""A dialogue is no longer than this."""
PARTS = 8
"""Batches are drawn this many at once, and sorted by length: less padding."""
DIALOGUES_EVERY, DIALOGUES, TEXTS_EVERY = 3, 6, 10
SPREAD = 60
POINTING_WEIGHT = 0.3
AVERAGE, AVERAGED = "average", 60
"""Where the average of the weights is saved, and over about how many steps."""
TURNS = 56
"""Held-out dialogues of a report."""
DECAY = 0.35
"""Last part of the run over which the learning rate falls to zero."""


class Errands:
    """Batches of dialogues with tools: each a pure function of its step, made of rows of like length."""

    def __init__(self, calls: Calls, utterances: list[tuple[str, str]], tokens: int) -> None:
        self._calls, self._utterances, self._tokens = calls, utterances, tokens
        self._group, self._batches = -1, list[tuple[Batch, list[Pointer]]]()

    def at(self, step: int) -> tuple[Batch, list[Pointer]]:
        """The batch of a step, about ``tokens`` tokens, and its pointers."""
        group, part = divmod(step, PARTS)
        if group != self._group:
            self._group, self._batches = group, self._draw(random.Random(SEED * 89 + group))
        return self._batches[part]

    def _draw(self, rng: random.Random) -> list[tuple[Batch, list[Pointer]]]:
        rows: list[Laid] = []
        total = 0
        while total < PARTS * self._tokens:
            laid = self._calls.row(draw_errand(rng, self._utterances), rng, spread=SPREAD)
            if len(laid.row.columns) <= TOKENS:
                rows.append(laid)
                total += len(laid.row.columns)
        rows.sort(key=lambda laid: len(laid.row.columns))
        parts: list[list[Laid]] = [[]]
        for laid in rows:  # longer rows, fewer of them
            if (len(parts[-1]) + 1) * len(laid.row.columns) > self._tokens * 1.1 and parts[-1] and len(parts) < PARTS:
                parts.append([])
            parts[-1].append(laid)
        batches = [
            (
                collate([laid.row for laid in part]),
                [(row, *one) for row, laid in enumerate(part) for one in laid.pointers],
            )
            for part in parts
        ]
        rng.shuffle(batches)
        return (batches * PARTS)[:PARTS]


def rate_at(step: int, steps: int) -> float:
    """Warm-up, constant, then linear decay to zero: a factor of the peak learning rate."""
    return min(1.0, (step + 1) / 30, (steps - step) / (steps * DECAY))


class Average:
    """The moving average of a model's weights: as good as with a falling rate, at any step."""

    def __init__(self, model: LlamaForCausalLM, weights: Mapping[str, torch.Tensor]) -> None:
        self._of, self.model = model, deepcopy(model)
        for name, parameter in self.model.named_parameters():
            if name in weights:
                parameter.data.copy_(weights[name])

    @torch.no_grad()
    def take(self) -> None:
        """One more step."""
        for own, other in zip(self.model.parameters(), self._of.parameters(), strict=True):
            own.lerp_(other, 1 / AVERAGED)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """A folder that ``MemoryLLM`` opens."""
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@torch.no_grad()
def exact_turns(model: PreTrainedModel, calls: Calls, *, seed: int = 11) -> tuple[dict[str, float], list[str]]:
    """Share of held-out turns of each kind whose every token is the most likely one, and what was wrong elsewhere."""
    rng = random.Random(seed)
    right: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    for _ in range(0, TURNS, 8):
        errands = [draw_errand(rng, [], "heldout") for _ in range(8)]
        batch, spans = calls.batch(errands, rng, spread=0)
        logits = model(
            input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask(), use_cache=False
        ).logits
        best = logits.argmax(-1)
        for row, turns in enumerate(spans):
            for span in turns:
                said, meant = best[row, span.start - 1 : span.end - 1], batch.ids[row, span.start : span.end]
                seen[span.kind] += 1
                if torch.equal(said, meant):
                    right[span.kind] += 1
                else:
                    wrong.append(compared(calls, batch, row, span, said, meant))
    return {kind: round(right[kind] / seen[kind], 3) for kind in sorted(seen)} | {"n": sum(seen.values())}, wrong


def compared(calls: Calls, batch: Batch, row: int, span: Span, said: torch.Tensor, meant: torch.Tensor) -> str:
    """What was asked, and a turn up to, at and behind the first token that is not the most likely one."""
    at = int((said != meant).nonzero()[0])
    decode = calls.decode
    asked = decode(batch.ids[row, : span.start].tolist()).rpartition("<|user|>")[2]
    right, wrong, rest = (decode(ids.tolist()) for ids in (meant[at : at + 1], said[at : at + 1], meant[at + 1 :]))
    return f"{span.kind}: {asked!r} -> {decode(meant[:at].tolist())!r} [{right!r} not {wrong!r}] {rest!r}"


def train(
    base: Annotated[Path, typer.Option(help="The model to begin with, as agentmem.training.finding wrote it.")],
    out: Annotated[Path, typer.Option(help="Folder for the model, its tokenizer and the checkpoint.")] = Path(
        "runs/calling"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Steps in all.")] = 4900,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of dialogues with tools a step.")] = 3500,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1.2e-3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    utterances: Annotated[Path | None, typer.Option(help="sgd_text.jsonl.gz: remarks, as before.")] = None,
    book: Annotated[list[Path] | None, typer.Option(help="Long text to hide keys in (.txt or .txt.xz).")] = None,
    every: Annotated[int, typer.Option(min=1, help="Steps between reports and checkpoints.")] = 60,
) -> None:
    """Train, reporting and checkpointing as it goes; run again to resume."""
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    said = load_utterances(utterances) if utterances else []
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(out)
    packer = Packer(tokenizer)
    calls = Calls(packer)
    passkeys = Passkeys(packer, [read_text(path) for path in book or []], [remark for remark, _ in said])
    fresh = partial(LlamaForCausalLM.from_pretrained, base, dtype=torch.float32)
    model, optimizers, first = begin(out, fresh, rate, rate)
    local = LocalModel(model, tokenizer)
    model.train()
    errands = Errands(calls, said, tokens)
    began, seen = time.monotonic(), 0
    average = Average(model, load_file(out / AVERAGE / "model.safetensors") if (out / AVERAGE).exists() else {})
    for step in steps_of(first, steps, console):
        batch, pointers = errands.at(step)
        seen += int((batch.segments >= 0).sum())
        with Pointing(model) as pointing:
            losses = {"calls": loss_of(model, batch)}
        losses["pointing"] = pointing.loss(batch, pointers) if pointers else torch.zeros(())
        optimizers.descend(losses["calls"] + POINTING_WEIGHT * losses["pointing"], rate_at(step, steps))
        if step % DIALOGUES_EVERY == 0:
            losses["dialogue"] = loss_of(model, batch_at(DIALOGUE_STEP + step, packer, said, DIALOGUES))
            optimizers.descend(losses["dialogue"], rate_at(step, steps))
        if step % TEXTS_EVERY == 0:
            losses["text"] = text_loss(step, local, passkeys)
            optimizers.descend(losses["text"], rate_at(step, steps))
        average.take()
        if (step + 1) % every == 0 or step + 1 == steps:
            average.save(out / AVERAGE, tokenizer)
            save_checkpoint(out, model, optimizers, step + 1)
            line = {"step": step + 1} | {name: round(loss.item(), 4) for name, loss in losses.items()}
            average.model.eval()
            with torch.autocast("cpu", torch.bfloat16):
                turns, wrong = exact_turns(average.model, calls)
            line |= turns | report(average.model, packer)
            line |= {"minutes": round((time.monotonic() - began) / 60, 1), "tokens": seen}
            (out / "wrong.txt").write_text("\n".join(wrong) + "\n", encoding="utf-8")
            write_line(out, line, console)


if __name__ == "__main__":
    typer.run(train)
