"""What decoding several answers together gains: ``python -m benchmarks.batch_decode``.

In one process, without store or server: answers that read eight memories each, begun at once.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from agentmem.evaluation.machine import describe
from agentmem.llm import bundled_model
from agentmem.model.local import LocalModel
from benchmarks.machine import console

HEAD = ["answers at once", "tokens/s", "of one", "ms per token of an answer"]
PROMPT, MEMORIES, CHUNK = 48, 8, 64


def measure(model: LocalModel, at_once: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens per second of so many answers, prompts included: median and quartiles over the repeats."""
    generator = torch.Generator().manual_seed(at_once)

    def ids(n: int) -> list[int]:
        return torch.randint(10, model.config.vocab_size, (n,), generator=generator).tolist()

    rates = []
    for _ in range(repeats + 1):
        placed = [
            model.place(model.encode_batch([ids(CHUNK) for _ in range(MEMORIES)]), [-CHUNK] * MEMORIES)
            for _ in range(at_once)
        ]
        prompts, began = [ids(PROMPT) for _ in range(at_once)], time.perf_counter()
        running = [
            model.generate(prompt, placed=memory, max_new_tokens=tokens)
            for prompt, memory in zip(prompts, placed, strict=True)
        ]
        for generation in running:
            _ = generation.text  # waits for its end
        made = sum(len(generation.token_ids) for generation in running)
        rates.append(made / (time.perf_counter() - began))
    quartiles = statistics.quantiles(rates[1:], n=4, method="inclusive")  # the first round warms up
    return {"at_once": at_once, "q1": quartiles[0], "median": quartiles[1], "q3": quartiles[2]}


def cells(row: dict[str, Any], one: dict[str, Any]) -> list[str]:
    """A row of the table."""
    rate = row["median"]
    return [
        str(row["at_once"]),
        f"{rate:.0f} ({row['q1']:.0f}-{row['q3']:.0f})",
        f"{rate / one['median']:.1f}",
        f"{1000 * row['at_once'] / rate:.1f}",
    ]


def main(
    at_once: Annotated[str, typer.Option(help="Answers at once, separated by commas.")] = "1,2,4,8,16,32",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    repeats: Annotated[int, typer.Option(min=2, help="Timed rounds.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    out: Annotated[Path, typer.Option(help="JSON report to write.")] = Path("batch_decode.json"),
) -> None:
    """Measure decoding of several answers at once."""
    torch.set_num_threads(threads)
    model = LocalModel.load(bundled_model())
    model.chat.stop_ids = frozenset()  # every answer has all its tokens
    rows = [measure(model, int(number), tokens, repeats) for number in at_once.split(",")]
    options = f"--at-once {at_once} --tokens {tokens} --repeats {repeats} --threads {threads}"
    result = {
        "benchmark": "batch_decode",
        "command": f"python -m benchmarks.batch_decode {options}",
        "machine": describe(threads),
        "model": "bundled",
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    screen = console()
    for row in rows:
        screen.print(" | ".join(f"{head}: {cell}" for head, cell in zip(HEAD, cells(row, rows[0]), strict=True)))


if __name__ == "__main__":
    typer.run(main)
