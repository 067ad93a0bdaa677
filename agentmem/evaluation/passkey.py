"""Pass keys at random depths of very long texts, read as a stream: accuracy, speed and memory by length.

The test of InfLLM (arXiv 2402.04617 section 4.5 and figure 3; two keys: appendix B), after Mohtashami and Jaggi (arXiv
2305.16300 section 4.2). Every sample is logged as it is done, and a run that was interrupted goes on behind them.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from agentmem.errors import InvalidInput
from agentmem.evaluation.figures import rate, spread
from agentmem.evaluation.progress import Advance, silent
from agentmem.evaluation.result import Plot, Result
from agentmem.llm import bundled_model
from agentmem.model.local import LocalModel
from agentmem.model.stream import Layout, Stream, check_plan
from agentmem.recipes import StreamRecipe
from agentmem.records import Scope
from agentmem.store import EvictionPolicy, Store, StoredStream
from agentmem.training.passkey import draw_key, needle, noise, question

LENGTHS = (4096, 16_384, 65_536, 262_144, 1_048_576)
SEED = 1_000_000
"""First seed of the samples; training drew from others, and from other keys."""
_ANSWER = 24
"""Most tokens of an answer."""
_RAM_BYTES = 64 * 2**20
"""Bound of the blocks that a sample keeps in RAM, in front of the store."""
_AT_ONCE = 8192
"""Tokens fed between two signs of progress."""


@dataclass(frozen=True)
class Sample:
    """One text and one question, and how it went. ``seconds`` are of reading the text; ``peak_mib`` of the process."""

    recipe: str
    tokens: int
    keys: int
    seed: int
    depth: float
    right: bool
    answer: str
    seconds: float
    peak_mib: float | None


def passkey(
    model: str | Path | None = None,
    *,
    recipes: Sequence[StreamRecipe],
    lengths: Sequence[int] = LENGTHS,
    samples: int = 50,
    keys: int = 1,
    seed: int = SEED,
    filler: Path | None = None,
    dtype: str | None = None,
    log: Path | None = None,
    advance: Advance = silent,
) -> Result:
    """Ask for pass keys hidden in texts of these lengths.

    Args:
        model: folder or id; None is the bundled model.
        recipes: each reads the same texts.
        lengths: tokens of a text.
        samples: texts for each recipe and length.
        keys: 1, or 2 worded the same: then the first or the second one is asked for.
        seed: of the first text; the others count on from it.
        filler: a text file to hide the keys in; None for a few sentences said over and over, as in the papers.
        dtype: what the model computes in, as torch names it.
        log: JSONL file of samples; those in it are not run again.
        advance: called with (recipe and length, samples done, samples).

    Raises:
        InvalidInput: a number out of range, a filler too short, or a recipe that the model cannot serve.
    """
    for name, value in (("samples", samples), *(("length", length) for length in lengths)):
        if value < 1:
            raise InvalidInput(f"{name} must be 1 or more, not {value}")
    if keys not in (1, 2) or not recipes or not lengths:
        raise InvalidInput(f"give at least one recipe and length, and 1 or 2 keys (not {keys})")
    kind = None if dtype is None else getattr(torch, dtype, None)
    local = LocalModel.load(bundled_model() if model in (None, "bundled") else str(model), dtype=kind)
    for recipe in recipes:
        recipe.check(local)
    texts = _Texts(local, filler)
    run = f"{local.fingerprint[:16]}/{local.dtype}/{_filler_name(filler)}"
    done = _logged(log, run)
    for recipe in recipes:
        layout = check_plan(local, recipe.plan(local))
        for length in lengths:
            for number in range(samples):
                advance(f"{recipe.name}, {length:,} tokens", number, samples)
                key = (recipe.identity, length, keys, seed + number)
                if key not in done:
                    done[key] = _ask(local, recipe, layout, texts, length, keys, seed + number)
                    if log is not None:
                        _write(log, run, recipe.identity, done[key])
            advance(f"{recipe.name}, {length:,} tokens", samples, samples)
    rows = [
        _row([done[recipe.identity, length, keys, seed + number] for number in range(samples)])
        for recipe in recipes
        for length in lengths
    ]
    settings = {
        "model": "bundled" if model is None else Path(str(model)).name,
        "recipes": [recipe.identity for recipe in recipes],
        "keys": keys,
        "seed": seed,
        "filler": _filler_name(filler),
        "dtype": str(local.dtype).removeprefix("torch."),
        "trained_positions": local.max_positions,
    }
    plot = Plot("tokens", "accuracy", series="recipe", log2=True, percent=True, title=f"Pass keys: {keys}")
    return Result("passkey", settings, rows, plot)


class _Texts:
    """Makes texts of token ids. Filler is cut and joined as tokens, so that a million of them cost nothing."""

    def __init__(self, model: LocalModel, filler: Path | None) -> None:
        self._model = model
        self._filler: list[int] | None = None
        if filler is not None:
            self._filler = model.chat.encode(filler.read_text(encoding="utf-8", errors="replace"))
            if len(self._filler) < 1000:
                raise InvalidInput(f"{filler.name} has {len(self._filler)} tokens; a filler needs at least 1,000")
        self._head, self._tail = model.chat.frame()

    def make(self, length: int, keys: int, seed: int) -> tuple[list[int], list[int], str, float]:
        """Text and question as ids, the key that is right, and its depth from 0 to 1."""
        rng = random.Random(seed)
        hidden = [draw_key(rng, "heldout") for _ in range(keys)]
        said = [self._model.chat.encode(needle(key)) for key in hidden]
        asked, _, right = question(rng, hidden)
        tail = [*self._model.chat.encode(f" {asked}"), *self._tail]
        room = max(0, length - len(self._head) - len(tail) - sum(map(len, said)))
        filler = self._fill(rng, room)
        cuts = sorted(rng.randint(0, room) for _ in hidden)
        text, at = list(self._head), 0
        for cut, one in zip(cuts, said, strict=True):
            text += filler[at:cut] + one
            at = cut
        text += filler[at:]
        return text, tail, right, cuts[hidden.index(right)] / max(1, room)

    def _fill(self, rng: random.Random, n: int) -> list[int]:
        if self._filler is None:
            cycle = self._model.chat.encode(noise(rng, 60) + " ")
            return (cycle * (n // len(cycle) + 1))[:n]
        start = rng.randrange(len(self._filler))
        times = (start + n) // len(self._filler) + 1
        return (self._filler * times)[start : start + n]


def _ask(
    model: LocalModel, recipe: StreamRecipe, layout: Layout, texts: _Texts, length: int, keys: int, seed: int
) -> Sample:
    text, asked, right, depth = texts.make(length, keys, seed)
    _reset_peak()
    unlimited = EvictionPolicy(space_kv_bytes=None, total_kv_bytes=None)
    with (
        tempfile.TemporaryDirectory(prefix="agentmem-passkey-") as folder,
        Store.open(Path(folder) / "p.db", eviction=unlimited) as store,
        _kept(store, model, recipe, layout) as kept,
    ):
        stream = Stream(model, recipe.plan(model), kept, layout=layout, ram_bytes=_RAM_BYTES)
        began = time.perf_counter()
        with stream.attached():
            for at in range(0, len(text), _AT_ONCE):
                stream.feed(text[at : at + _AT_ONCE])
        seconds = time.perf_counter() - began
        answer = stream.generate(asked, max_new_tokens=_ANSWER).text.strip()
    return Sample(
        recipe.name, length, keys, seed, round(depth, 4), right in answer, answer, round(seconds, 3), _peak_mib()
    )


def _kept(store: Store, model: LocalModel, recipe: StreamRecipe, layout: Layout) -> StoredStream:
    return store.scope(Scope(user="passkey")).open_stream(
        "text",
        fingerprint=model.kv_fingerprint(recipe.identity),
        record_bytes=max(1, layout.record_bytes),
        index_bytes=layout.index_bytes,
    )


def _row(samples: Sequence[Sample]) -> dict[str, str | int | float | None]:
    found = rate(sample.right for sample in samples)
    speed = spread([sample.tokens / sample.seconds for sample in samples])
    peaks = [sample.peak_mib for sample in samples if sample.peak_mib is not None]
    return {
        "recipe": samples[0].recipe,
        "tokens": samples[0].tokens,
        "samples": found["n"],
        "accuracy": found["rate"],
        "accuracy_low": found["low"],
        "accuracy_high": found["high"],
        "tokens_per_s": round(speed["median"], 1),
        "tokens_per_s_low": round(speed["q1"], 1),
        "tokens_per_s_high": round(speed["q3"], 1),
        "peak_mib": round(max(peaks), 1) if peaks else None,
    }


def _filler_name(filler: Path | None) -> str:
    return "noise" if filler is None else filler.name


def _logged(log: Path | None, run: str) -> dict[tuple[str, int, int, int], Sample]:
    """What the log holds of this run: the same weights, dtype and filler."""
    if log is None or not log.exists():
        return {}
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    found = [(line.pop("identity"), Sample(**line)) for line in lines if line.pop("run") == run]
    return {(identity, one.tokens, one.keys, one.seed): one for identity, one in found}


def _write(log: Path, run: str, identity: str, sample: Sample) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"run": run, "identity": identity, **asdict(sample)}) + "\n")


_CLEAR = Path("/proc/self/clear_refs")


def _reset_peak() -> None:
    """Let the kernel count this process's peak anew (Linux)."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def _peak_mib() -> float | None:
    """Peak resident memory since the reset, in MiB; None where the kernel does not say."""
    status = Path("/proc/self/status")
    if not _CLEAR.exists() or not status.exists():
        return None
    line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
    return None if line is None else int(line.split()[1]) / 1024
