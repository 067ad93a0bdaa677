"""Two-stage training of explicit memory: ``agentmem train memory3`` (Memory3, arXiv 2407.01178 sections 3.7 and 4).

Stage 1 is memory-less: what is asked about stands in the context. Stage 2 continues with references that are encoded on
the fly, sparsified and read as the ``memory3`` recipe does. ``from_scratch`` leaves the first stage out, the paper's
control (figure 11). Every step's data is a pure function of its number, so a resumed run sees the same.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from agentmem.errors import InvalidInput
from agentmem.llm import bundled_model
from agentmem.model.attention import attached
from agentmem.model.rotary import Rotary
from agentmem.training.batches import repeated_strings
from agentmem.training.bundled import Optimizers, save_checkpoint
from agentmem.training.explicit import ReferenceReader, encode_references
from agentmem.training.memory3_batches import ContextBatch, Writer, collate
from agentmem.training.tokenizer import SPECIAL

SEED = 20_261_122
DECAY = 0.4
"""Last part of the run over which the learning rate falls to zero."""
FULL, FEWER = 0.25, 0.4
"""Parts of the second stage after which tokens are left out, and after which only ``keep`` are left."""
CHOICE = 0.3
"""Weight of the loss that teaches which tokens to keep."""
RISE = 20
"""Steps over which it rises."""
SETTINGS = "training.json"


@dataclass(frozen=True)
class Settings:
    """What a run is: ``steps`` in all, of which ``warm_up`` are memory-less, after ``strings`` of repeated strings."""

    steps: int
    warm_up: int
    strings: int = 0
    sets: int = 2
    """Sets of references a step."""
    rows: int = 4
    """Contexts that share a set."""
    length: int = 4
    """Steps of 64 tokens per context; a set has four references more than that."""
    keep: int = 8
    """Tokens kept per KV head at the end."""
    rate: float = 2e-3
    """Peak learning rate."""

    def __post_init__(self) -> None:
        if min(self.steps, self.sets, self.rows, self.keep) < 1 or min(self.warm_up, self.strings) < 0:
            raise InvalidInput(f"steps, sets, rows and keep start at 1, warm_up and strings at 0; got {self}")
        if self.length < 3:
            raise InvalidInput(f"length is {self.length}; a context of the first stage needs 3 steps of 64 tokens")


def keep_at(step: int, settings: Settings) -> int | None:
    """Tokens kept per KV head: all (None) until the choice has been learned, then all in every third step only."""
    done = (step - settings.warm_up) / max(1, settings.steps - settings.warm_up)
    if done < FULL or step % 3 == 0:
        return None
    return max(settings.keep, 16) if done < FEWER else settings.keep


def rate_at(step: int, settings: Settings) -> float:
    """Factor of the peak learning rate: up, constant, down to zero."""
    return min(1.0, (step + 1) / RISE, (settings.steps - step) / (settings.steps * DECAY))


def deepen(model: LlamaForCausalLM, layers: int) -> LlamaForCausalLM:
    """The same function with more layers: the new ones, at the end, add nothing until they have learned something."""
    config = LlamaConfig.from_dict({**model.config.to_dict(), "num_hidden_layers": layers})
    deeper = LlamaForCausalLM(config)
    deeper.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for layer in deeper.model.layers[model.config.num_hidden_layers :]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    deeper.generation_config = model.generation_config
    return deeper


class Trainer:
    """A model, its writer of samples, and the loss of a step."""

    def __init__(self, model: LlamaForCausalLM, writer: Writer, settings: Settings):
        self.model, self.writer, self.settings = model, writer, settings
        self.rotary = Rotary(model)
        self.layers = tuple(range(model.config.num_hidden_layers // 2))

    def read(self, batch: ContextBatch, keep: int | None) -> tuple[Tensor, Tensor | None]:
        """Logits (rows, n, vocab) of contexts that read their references, if they have any; with all tokens, and where
        gradients are wanted, the loss of choosing among them too."""
        if not batch.references:
            return self.model(input_ids=batch.ids, use_cache=False).logits, None
        memory = encode_references(self.model, self.rotary, self.writer.prefix, batch.references, self.layers, keep)
        teaching = keep is None and torch.is_grad_enabled()
        reader = ReferenceReader(memory, batch.visible, batch.asking if teaching else None)
        with attached(self.model, reader):
            logits = self.model(input_ids=batch.ids, use_cache=False).logits
        return logits, reader.choice_loss() if teaching else None

    def batch(self, rng: random.Random, *, inline: bool) -> ContextBatch:
        """A batch of the first (inline) or second stage."""
        sets, rows, length = self.settings.sets, self.settings.rows, self.settings.length
        if inline:
            return collate([([], [self.writer.inline(rng, length) for _ in range(sets * rows)])])
        return collate([self.writer.group(rng, length, rows) for _ in range(sets)])

    def loss(self, step: int) -> Tensor:
        """Weighted mean cross-entropy of a step's batch, and of the choice of tokens."""
        choice = None
        rng = random.Random(SEED * 1_000_003 + step)
        with torch.autocast("cpu", torch.bfloat16):
            if step < self.settings.strings:
                strings = repeated_strings(
                    rng, range(len(SPECIAL), self.model.config.vocab_size), self.settings.sets * 24
                )
                logits = self.model(input_ids=strings.ids, position_ids=strings.positions, use_cache=False).logits
                ids, weights = strings.ids, strings.weights
            else:
                batch = self.batch(rng, inline=step < self.settings.warm_up)
                logits, choice = self.read(batch, keep_at(step, self.settings))
                ids, weights = batch.ids, batch.weights
        each = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        flat = weights[:, 1:].flatten()
        loss = (each * flat).sum() / flat.sum()
        return loss if choice is None else loss + CHOICE * choice

    @torch.no_grad()
    def held_out(
        self, keep: int | None, *, unknown: float = 0.0, memory: bool = True, n: int = 6, seed: int = 7
    ) -> tuple[float, float]:
        """Held-out answers: the share whose every token is the most likely one, and their mean loss (nats)."""
        rng = random.Random(seed)
        batch = collate(
            [self.writer.group(rng, self.settings.length, 2, unknown=unknown, split="heldout") for _ in range(n)]
        )
        if not memory:
            batch = ContextBatch(batch.ids, batch.weights, [], batch.visible)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.read(batch, keep)[0][:, :-1].float()
        inside = batch.weights[:, 1:] == 1.0
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:], reduction="none")
        hit = logits.argmax(-1) == batch.ids[:, 1:]
        right = total = 0
        for row, answer in zip(hit.tolist(), inside.tolist(), strict=True):
            for i, asked in enumerate(answer):
                if asked and not answer[i - 1]:
                    end = i + answer[i:].index(False) if False in answer[i:] else len(answer)
                    total += 1
                    right += all(row[i:end])
        return right / total, float(each[inside].mean())


def report(trainer: Trainer) -> dict[str, float]:
    """Held-out exactness: sparse, full, without memory, and of what no reference tells.

    ``gain`` is how much less loss (nats per token of an answer) there is with memory than without: what the paper's
    figure 11 compares.
    """
    trainer.model.eval()
    keep = trainer.settings.keep
    sparse, loss = trainer.held_out(keep)
    none, loss_without = trainer.held_out(None, memory=False)
    result = {
        "sparse": sparse,
        "full": trainer.held_out(None)[0],
        "none": none,
        "unknown": trainer.held_out(keep, unknown=1.0)[0],
        "loss_with": loss,
        "gain": loss_without - loss,
    }
    trainer.model.train()
    return {name: round(value, 4) for name, value in result.items()}


def new_model(tokenizer: PreTrainedTokenizerBase, hidden: int, layers: int) -> LlamaForCausalLM:
    """A small model that has learned nothing: heads of 64 dims, two KV heads."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=max(2, hidden // 64),
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(
    out: Path,
    settings: Settings,
    *,
    base: str | Path | None,
    hidden: int = 128,
    layers: int | None = None,
    every: int = 50,
    advance: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Train from the model ``base`` (deepened to ``layers``), or go on in ``out``; log and checkpoint as it goes.

    Without a ``base``, from a new model of ``hidden`` and ``layers`` (4) with the bundled tokenizer. Every ``every``
    steps the folder holds a model that ``MemoryLLM(out, recipe="memory3")`` opens, and the state to go on from.
    ``advance`` hears of every step.

    Raises:
        InvalidInput: the folder holds a run with other settings, or the loss is no number.
    """
    torch.manual_seed(SEED)
    out.mkdir(parents=True, exist_ok=True)
    first = 0
    wanted = asdict(settings)
    tokenizer = AutoTokenizer.from_pretrained(bundled_model() if base is None else base)
    if (out / "progress.json").exists():
        first = json.loads((out / "progress.json").read_text())["step"]
        model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
        known = json.loads((out / SETTINGS).read_text())
        changed = [f.name for f in fields(settings) if f.name != "steps" and known[f.name] != wanted[f.name]]
        if changed:
            raise InvalidInput(f"{out} holds a run with other settings ({', '.join(changed)}); use another folder")
    elif base is None:
        model = new_model(tokenizer, hidden, layers or 4)
    else:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if layers is not None and layers != model.config.num_hidden_layers:
            model = deepen(model, layers)
    tokenizer.save_pretrained(out)
    (out / SETTINGS).write_text(json.dumps(wanted))
    trainer = Trainer(model, Writer(tokenizer), settings)
    model.train()
    optimizers = Optimizers(model, settings.rate, settings.rate)
    if first:
        optimizers.restore(load_file(out / "optimizer.safetensors"))
    began = time.monotonic()
    for step in range(first, settings.steps):
        loss = trainer.loss(step)
        optimizers.descend(loss, rate_at(step, settings))
        if math.isnan(loss.item()):
            raise InvalidInput(f"the loss is not a number at step {step}; lower the learning rate")
        line = {"step": step + 1, "loss": round(loss.item(), 4), "keep": keep_at(step, settings)}
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            save_checkpoint(out, model, optimizers, step + 1)
            line |= report(trainer)
        line["minutes"] = round((time.monotonic() - began) / 60, 2)
        with (out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        advance("training", step + 1, settings.steps)
