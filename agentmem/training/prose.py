"""Train a small language model on long texts: ``python -m agentmem.training.prose --text book.txt --out runs/prose``.

What MemLong is tuned from when no pretrained model can be had: a deep and narrow Llama with grouped-query attention.
Repeated random strings form induction heads first, without which a model has no use for memory. Seeds are fixed by
step, so a resumed run sees the same data.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agentmem.training.bundled import begin, save_checkpoint, steps_of, write_line
from agentmem.training.texts import read_documents
from agentmem.training.tokenizer import SPECIAL, train_bpe

VOCABULARY = 2048
LENGTH = 512
"""Tokens of a row, the first token of every text included."""
FARTHEST = 400
"""Most positions that are skipped between a string and its repetition."""
IGNORE = -100
RECITED = 0.2
"""Share of texts that repeat their beginning."""
DECAY = 0.4
"""Last part of the run over which the learning rate falls to zero."""
SEED = 20_261_122

CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
    bos_token_id=SPECIAL.index("<s>"),
    eos_token_id=SPECIAL.index("<|end|>"),
    pad_token_id=SPECIAL.index("<pad>"),
)


@dataclass(frozen=True)
class Batch:
    """Token ids, their positions, and labels, all (rows, tokens), int64."""

    ids: Tensor
    positions: Tensor
    labels: Tensor


def strings(rng: random.Random, rows: int) -> Batch:
    """Rows of one random string three times, with other tokens and skipped positions between.

    Length and distance vary, and only what can be known has a label. With fixed distances a model learns to copy from
    so many tokens ago, and with short ones it looks for what came after no further than these.
    """
    length, gaps = rng.randint(4, 16), rng.randint(0, 16)
    columns: list[list[list[int]]] = [[], [], []]
    for _ in range(rows):
        string = [rng.randrange(len(SPECIAL), VOCABULARY) for _ in range(length)]
        first, at = rng.randint(0, gaps), 1 + length
        row, positions, known = [SPECIAL.index("<s>"), *string], list(range(at)), [IGNORE] * at
        for gap in (first, gaps - first):
            at += rng.choice([0, rng.randint(0, FARTHEST)])
            row += [*(rng.randrange(len(SPECIAL), VOCABULARY) for _ in range(gap)), *string]
            positions += range(at, at + gap + length)
            known += [*[IGNORE] * (gap + 1), *string[1:]]
            at += gap + length
        for column, values in zip(columns, (row, positions, known), strict=True):
            column.append(values)
    return Batch(*map(torch.tensor, columns))


def texts_row(rng: random.Random, text: list[int], length: int) -> list[int]:
    """A slice of a text; now and then its end is its beginning over again, as when something is quoted."""
    start = rng.randrange(max(1, len(text) - length + 1))
    row = text[start : start + length]
    if rng.random() < RECITED:
        passage = row[: rng.randint(16, length // 3)]
        row = [*row[: length - len(passage)], *passage]
    return row + [SPECIAL.index("<pad>")] * (length - len(row))


def batches_at(step: int, texts: list[list[int]], rows: int, warm_up: int) -> list[Batch]:
    """Texts and strings, a pure function of the step; mostly strings during the warm-up."""
    rng = random.Random(SEED * 1_000_003 + step)
    many = step < warm_up
    chosen = [
        [SPECIAL.index("<s>"), *texts_row(rng, rng.choice(texts), LENGTH - 1)]
        for _ in range(max(1, rows // 4) if many else rows)
    ]
    ids = torch.tensor(chosen)
    positions = torch.arange(LENGTH).expand(len(ids), -1)
    labels = ids.masked_fill(ids == SPECIAL.index("<pad>"), IGNORE)
    return [Batch(ids, positions, labels), strings(rng, rows * (8 if many else 2))]


def rate_at(step: int, steps: int) -> float:
    """Warm-up, constant, linear decay to zero: a factor of the peak learning rate."""
    return min(1.0, (step + 1) / 60, (steps - step) / (steps * DECAY))


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean cross-entropy of the labels."""
    # The mask is given: transformers would take a jump in the positions for the beginning of another sequence.
    n = batch.ids.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch.ids, position_ids=batch.positions, attention_mask=causal, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch.labels[:, 1:].flatten())


def train(
    text: Annotated[list[Path], typer.Option(help="A text file (.txt, .md, .jsonl, .xz); give it several times.")],
    out: Annotated[Path, typer.Option(help="Folder for the model, its tokenizer and the checkpoint.")] = Path(
        "runs/prose"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Steps in all; raise it on resume to train longer.")] = 1700,
    rows: Annotated[int, typer.Option(min=1, help="Rows of 512 tokens a step.")] = 8,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    warm_up: Annotated[int, typer.Option(min=0, help="Steps of repeated random strings before the first text.")] = 140,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    every: Annotated[int, typer.Option(min=1, help="Steps between log lines and checkpoints.")] = 100,
) -> None:
    """Train, logging and checkpointing as it goes; run again to resume."""
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    console = Console()
    documents = read_documents(text)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").exists():
        train_bpe((line for document in documents for line in document.text.splitlines()), VOCABULARY, out)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    texts = [tokenizer.encode(document.text, add_special_tokens=False) for document in documents]
    model, optimizers, first = begin(out, lambda: LlamaForCausalLM(CONFIG), rate, rate)
    model.train()
    began, losses = time.monotonic(), list[list[float]]()
    for step in steps_of(first, steps, console):
        of_step = [loss_of(model, batch) for batch in batches_at(step, texts, rows, warm_up)]
        optimizers.descend(sum(of_step[1:], of_step[0]), rate_at(step, steps))
        losses.append([loss.item() for loss in of_step])
        if (step + 1) % every == 0 or step + 1 == steps:
            save_checkpoint(out, model, optimizers, step + 1)
            loss = [round(sum(column) / len(column), 4) for column in zip(*losses, strict=False)]
            line = {"step": step + 1, "loss": loss, "minutes": round((time.monotonic() - began) / 60, 1)}
            losses.clear()
            write_line(out, line, console)


if __name__ == "__main__":
    typer.run(train)
