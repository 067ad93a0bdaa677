"""Third stage of the bundled model: find a pass key in a text that is read from afar.

``python -m agentmem.training.finding --base runs/bundled --out runs/finding`` goes on from the model that
``agentmem.training.bundled`` made. Every third step also repeats a batch of its dialogues, so that nothing is
forgotten. Seeds are fixed by step; run again to resume.
"""

from __future__ import annotations

import lzma
import random
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agentmem.model.attention import attached
from agentmem.model.local import LocalModel
from agentmem.training.batches import Batch, Packer, collate
from agentmem.training.bundled import SEED, batch_at, begin, loss_of, report, save_checkpoint, steps_of, write_line
from agentmem.training.far import FromAfar, finding_loss
from agentmem.training.passkey import Hidden, Passkeys
from agentmem.training.smalltalk import load_utterances

LENGTHS = (250, 500, 700, 850, 960, 960)
"""Tokens of a text."""
TOKENS = 5000
"""Tokens of a batch."""
FAR = 0.75
"""Share of batches that are read from afar."""
WINDOWS = (64, 128, 256, 512)
"""Tokens of a window, behind which everything is afar."""
FINDING_WEIGHT = 0.1
DIALOGUES_EVERY, DIALOGUES = 3, 12
DIALOGUE_STEP = 10_000
"""Dialogues are drawn as in the late steps of the stage before, from here on."""


def texts_at(step: int, passkeys: Passkeys) -> tuple[Batch, list[Hidden]]:
    """The batch of a step, a pure function of the step."""
    rng = random.Random(SEED * 77 + step)
    n = rng.choice(LENGTHS)
    rows = [passkeys.row(rng, n) for _ in range(max(2, TOKENS // n))]
    return collate([one.row for one in rows]), rows


def reading_at(step: int, model: LocalModel, batch: Batch, rows: list[Hidden]) -> FromAfar:
    """How the step's texts are read: as they stand, or from afar for what is behind a cut or out of a window.

    A stream reads a second key with the first one afar, and is asked when both are: hence two cuts, or a window and
    a cut where the text ends.
    """
    rng, causal = random.Random(SEED * 79 + step), batch.mask()
    kind = rng.random()
    if kind >= FAR:
        return FromAfar(model.rotary, None, causal)
    tokens = torch.arange(batch.ids.shape[1])
    far = torch.zeros_like(causal)
    cuts = [one.text_end for one in rows]
    if kind < FAR / 3:
        cuts = [end if rng.random() < 0.5 else _between(rng, one, end) for one, end in zip(rows, cuts, strict=True)]
    elif kind < FAR * 2 / 3:
        earlier = torch.tensor([_between(rng, one, one.needles[-1][0]) for one in rows])[:, None, None, None]
        far = (tokens[:, None] >= earlier) & (tokens < earlier)
    else:
        far = (tokens[:, None] - tokens >= rng.choice(WINDOWS)).expand_as(causal)
    cut = torch.tensor(cuts)[:, None, None, None]
    far = causal & (far | ((tokens[:, None] >= cut) & (tokens < cut)))
    return FromAfar(model.rotary, far, causal & ~far)


def _between(rng: random.Random, one: Hidden, end: int) -> int:
    """A place behind the first needle, ``end`` at most."""
    return rng.randint(min(one.needles[0][1] + 8, end), end)


def text_loss(step: int, model: LocalModel, passkeys: Passkeys) -> torch.Tensor:
    """Loss of the answers, plus that of finding the blocks that hold them."""
    batch, rows = texts_at(step, passkeys)
    hook = reading_at(step, model, batch, rows)
    with attached(model.model, hook):
        loss = loss_of(model.model, batch)
    finding = finding_loss(hook, model.rotary, batch, rows, random.Random(SEED * 83 + step))
    return loss if finding is None else loss + FINDING_WEIGHT * finding


def rate_at(step: int, steps: int) -> float:
    """Warm-up, constant, then linear decay to zero: a factor of the peak learning rate."""
    return min(1.0, (step + 1) / 30, (steps - step) / (steps * 0.4))


def train(
    base: Annotated[Path, typer.Option(help="The model to begin with, as agentmem.training.bundled wrote it.")],
    out: Annotated[Path, typer.Option(help="Folder for the model, its tokenizer and the checkpoint.")] = Path(
        "runs/finding"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Steps in all.")] = 500,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    utterances: Annotated[Path | None, typer.Option(help="sgd_text.jsonl.gz: remarks, as in the stage before.")] = None,
    book: Annotated[list[Path] | None, typer.Option(help="Long text to hide keys in (.txt or .txt.xz).")] = None,
    every: Annotated[int, typer.Option(min=1, help="Steps between reports and checkpoints.")] = 60,
) -> None:
    """Train, reporting and checkpointing as it goes; run again to resume."""
    torch.set_num_threads(threads)
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    said = load_utterances(utterances) if utterances else []
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.save_pretrained(out)
    packer = Packer(tokenizer)
    passkeys = Passkeys(packer, [read_text(path) for path in book or ()], [remark for remark, _ in said])
    fresh = partial(LlamaForCausalLM.from_pretrained, base, dtype=torch.float32)
    model, optimizers, first = begin(out, fresh, rate, rate)
    local = LocalModel(model, tokenizer)
    model.train()
    began = time.monotonic()
    for step in steps_of(first, steps, console):
        losses = {"text": text_loss(step, local, passkeys)}
        optimizers.descend(losses["text"], rate_at(step, steps))
        if step % DIALOGUES_EVERY == 0:
            losses["dialogue"] = loss_of(model, batch_at(DIALOGUE_STEP + step, packer, said, DIALOGUES))
            optimizers.descend(losses["dialogue"], rate_at(step, steps))
        if (step + 1) % every == 0 or step + 1 == steps:
            save_checkpoint(out, model, optimizers, step + 1)
            line = {"step": step + 1} | {name: round(loss.item(), 4) for name, loss in losses.items()}
            line |= report(model, packer) | {"minutes": round((time.monotonic() - began) / 60, 1)}
            write_line(out, line, console)


def read_text(path: Path) -> str:
    """The text of a file, which may be packed (.xz)."""
    data = path.read_bytes()
    text = lzma.decompress(data) if path.suffix == ".xz" else data
    return text.decode("utf-8", errors="replace")


if __name__ == "__main__":
    typer.run(train)
