"""Train the bundled model from scratch: ``python -m agentmem.training.bundled --out runs/bundled``.

Two stages, after Memory3's finding that training with memory from the start teaches a model to ignore it
(arXiv 2407.01178 section 4, figure 11): a short warm-up without memory that forms induction heads, then continual
training in which dialogues read chunks that were encoded alone, through the positions and the one softmax that the
``parallel`` recipe uses at inference. Seeds are fixed by step, so a resumed run sees the same data.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agentmem.training.batches import Batch, Packer, repeated_strings
from agentmem.training.dialogues import Mix, draw
from agentmem.training.evaluate import QUESTIONS, exact
from agentmem.training.smalltalk import load_utterances
from agentmem.training.tokenizer import SPECIAL, VOCABULARY, train_tokenizer

CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
    bos_token_id=SPECIAL.index("<s>"),
    eos_token_id=SPECIAL.index("<|end|>"),
    pad_token_id=SPECIAL.index("<pad>"),
)
WARM_UP = 120
"""Steps of repeated random strings before the first memory."""
FIRST_MEMORIES, FIRST_NOISE = 900, 1200
"""Steps at which the first stages of the curriculum end."""
FIRST_QUIZ = 1400
"""From here on, part of the batches are quizzes: known or not, in quick succession."""
QUIZ = Mix(min_facts=1, max_facts=4, corrected=0.1, unknown=0.5, noise=0, told_in_context=0.05, repeated_question=0.05,
           alike=0.3, novel=0.1, max_questions=10)  # fmt: skip
LATE_RATE = 2 / 3
"""The learning rate is lowered by this factor when the quizzes begin."""
DECAY = 0.3
"""Last part of the run over which the learning rate falls to zero."""
SEED = 20_261_121


def mix_at(step: int) -> Mix:
    """The curriculum: several memories from the first dialogue on, then noise, corrections and unknowns, then more."""
    if step < FIRST_MEMORIES:
        return Mix(min_facts=3, max_facts=4, corrected=0, unknown=0, noise=0, told_in_context=0, repeated_question=0)
    if step < FIRST_NOISE:
        return Mix(
            min_facts=2,
            max_facts=4,
            corrected=0.2,
            unknown=0.15,
            noise=0.15,
            told_in_context=0.15,
            alike=0.2,
            novel=0.1,
        )
    return Mix(min_facts=0, max_facts=6, unknown=0.3, alike=0.4, novel=0.12, joined=0.12)


def batch_at(step: int, packer: Packer, utterances: list[tuple[str, str]], rows: int) -> Batch:
    """The batch of a step, a pure function of the step."""
    rng = random.Random(SEED * 1_000_003 + step)
    if step < WARM_UP or rng.random() < 0.06:
        return repeated_strings(rng, range(len(SPECIAL), VOCABULARY), rows * 5)
    mix = QUIZ if step >= FIRST_QUIZ and rng.random() < 0.4 else mix_at(step)
    drawn = sorted((draw(rng, mix, utterances) for _ in range(rows * 2)), key=lambda d: len(d.chunks) + len(d.turns))
    chosen = drawn[:rows] if rng.random() < 0.5 else drawn[rows:]  # rows of like length: less padding
    return packer.batch(chosen, rng, spread=0 if step < FIRST_MEMORIES else 120)


def rate_at(step: int, steps: int) -> float:
    """Warm-up, constant, lower from the quizzes on, then linear decay to zero: a factor of the peak learning rate."""
    return min(1.0, (step + 1) / 80, (steps - step) / (steps * DECAY)) * (LATE_RATE if step >= FIRST_QUIZ else 1.0)


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Weighted mean cross-entropy of the batch's labels."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(
            input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask(), use_cache=False
        ).logits
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights[:, 1:].flatten()
    return (each * weights).sum() / weights.sum()


class Optimizers:
    """Muon for the matrices of the layers, AdamW for embeddings and norms; saved without pickle."""

    def __init__(self, model: LlamaForCausalLM, matrix_rate: float, other_rate: float):
        named = dict(model.named_parameters())
        self.parameters = list(named.values())
        self.matrices = [p for n, p in named.items() if p.dim() == 2 and "embed" not in n]
        others = [p for n, p in named.items() if not (p.dim() == 2 and "embed" not in n)]
        self.rates = (matrix_rate, other_rate)
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(self.matrices, lr=matrix_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        )

    def descend(self, loss: torch.Tensor, factor: float) -> None:
        """One step of both down the loss, at ``factor`` times their peak rates, with gradients of norm 1 at most."""
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part, rate in zip(self.parts, self.rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * factor
            part.step()
            part.zero_grad()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state as named tensors."""
        return {
            f"{i}.{parameter}.{name}": value.contiguous()
            for i, part in enumerate(self.parts)
            for parameter, state in part.state_dict()["state"].items()
            for name, value in state.items()
        }

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take the state back."""
        for i, part in enumerate(self.parts):
            whole = part.state_dict()
            for key, value in tensors.items():
                number, parameter, name = key.split(".")
                if int(number) == i:
                    whole["state"].setdefault(int(parameter), {})[name] = value
            part.load_state_dict(whole)


def save_checkpoint(folder: Path, model: LlamaForCausalLM, optimizers: Optimizers, step: int) -> None:
    """Write weights, optimizer state and step; the step last, so that a torn checkpoint is an older one."""
    model.save_pretrained(folder)
    save_file(optimizers.tensors(), folder / "optimizer.safetensors")
    (folder / "progress.json").write_text(json.dumps({"step": step}))


def begin(
    folder: Path, fresh: Callable[[], LlamaForCausalLM], matrix_rate: float, other_rate: float
) -> tuple[LlamaForCausalLM, Optimizers, int]:
    """Model, optimizers and first step of a training: those of the folder's checkpoint, or fresh ones and 0."""
    progress, first = folder / "progress.json", 0
    if progress.exists():
        first = json.loads(progress.read_text())["step"]
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        model = fresh()
    model.set_attn_implementation("sdpa")
    optimizers = Optimizers(model, matrix_rate, other_rate)
    if first:
        optimizers.restore(load_file(folder / "optimizer.safetensors"))
    return model, optimizers, first


def write_line(folder: Path, line: dict[str, Any], console: Console) -> None:
    """Add a line to the folder's log, and show it."""
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    console.print(json.dumps(line), soft_wrap=True)


def report(model: LlamaForCausalLM, packer: Packer) -> dict[str, float]:
    """Held-out exactness of every kind of question."""
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        result = {f"{kind}@{n}": exact(model, packer, kind, n) for kind in QUESTIONS for n in (3, 6)}
    model.train()
    return result


def steps_of(first: int, last: int, console: Console) -> Iterator[int]:
    """The step numbers, with a progress bar."""
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield from progress.track(range(first, last), total=last, completed=first)


def train(
    out: Annotated[Path, typer.Option(help="Folder for the model, its tokenizer and the checkpoint.")] = Path(
        "runs/bundled"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Steps in all; raise it on resume to train longer.")] = 2200,
    rows: Annotated[int, typer.Option(min=1, help="Dialogues a step.")] = 18,
    matrix_rate: Annotated[float, typer.Option(help="Peak learning rate of Muon (layer matrices).")] = 3e-3,
    other_rate: Annotated[float, typer.Option(help="Peak learning rate of AdamW (embeddings, norms).")] = 3e-3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    utterances: Annotated[Path | None, typer.Option(help="sgd_text.jsonl.gz, to widen the English.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Steps between reports and checkpoints.")] = 100,
) -> None:
    """Train, reporting and checkpointing as it goes; run again to resume."""
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    said = load_utterances(utterances) if utterances else []
    if not (out / "tokenizer.json").exists():
        train_tokenizer(said, out)
    packer = Packer(PreTrainedTokenizerFast.from_pretrained(out))
    model, optimizers, first = begin(out, lambda: LlamaForCausalLM(CONFIG), matrix_rate, other_rate)
    model.train()
    began, tokens = time.monotonic(), 0
    for step in steps_of(first, steps, console):
        batch = batch_at(step, packer, said, rows)
        loss = loss_of(model, batch)
        optimizers.descend(loss, rate_at(step, steps))
        tokens += int((batch.segments >= 0).sum())
        if math.isnan(loss.item()):
            raise typer.Exit(1)
        if (step + 1) % every == 0 or step + 1 == steps:
            save_checkpoint(out, model, optimizers, step + 1)
            line = {"step": step + 1, "loss": round(loss.item(), 4), **report(model, packer)}
            line |= {"minutes": round((time.monotonic() - began) / 60, 1), "tokens": tokens}
            write_line(out, line, console)


if __name__ == "__main__":
    typer.run(train)
