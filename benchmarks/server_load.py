"""Many users at one server: ``python -m benchmarks.server_load``. What they must not see, and how long they wait.

Real processes on this machine's loopback: the users tell, ask, stream, hang up, search; then the server is told to
stop among them, and is killed among them. Any error, any word of another user and any lost turn fails the run.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from agentmem.evaluation.machine import describe
from agentmem.records import Scope
from agentmem.store import Store
from benchmarks.load_users import Crowd, Figures
from benchmarks.machine import console
from benchmarks.serving import Served, serving

HEAD = ["answers at once", "replies/s", "tokens/s", "first token p50", "p95", "reply p50", "p95", "search p50", "p95"]


class LoadFailed(AssertionError):
    """What must not happen under load happened."""


def crowd(
    served: Served, users: int, seconds: float, seed: int, then: Callable[[Crowd], Awaitable[None]] | None = None
) -> tuple[Figures, float]:
    """Users at a server for some seconds. Returns what they saw, and how long it took until all were answered.

    Raises:
        LoadFailed: an error, or something of another user.
    """
    figures = Figures()

    async def live() -> float:
        all_of_them = Crowd(served.url, users, seed, figures)
        return await all_of_them.live(seconds, None if then is None else lambda: then(all_of_them))

    took = asyncio.run(live())
    if figures.leaks or figures.errors:
        raise LoadFailed(
            f"{len(figures.leaks)} leaks {figures.leaks[:3]}, {len(figures.errors)} errors {figures.errors[:3]}"
        )
    return figures, took


def row(at_once: int, figures: Figures, seconds: float) -> dict[str, Any]:
    """The figures of one load."""
    return {
        "at_once": at_once,
        "seconds": round(seconds, 1),
        "replies": len(figures.reply),
        "cancelled": figures.cancelled,
        "asked": figures.asked,
        "right": figures.right,
        "replies_per_second": len(figures.reply) / seconds,
        "tokens_per_second": figures.tokens / seconds,
        "first_token": spread(figures.first_token),
        "reply": spread(figures.reply),
        "search": spread(figures.search),
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    if len(seconds) < 2:
        return dict.fromkeys(("p50", "p95"), seconds[0] if seconds else 0.0)
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {"p50": statistics.median(seconds), "p95": cuts[18]}


def all_kept(store: Path, told: Sequence[tuple[str, str]]) -> int:
    """Check that every message that was answered is in the store, and the store whole. Returns how many there are.

    Raises:
        LoadFailed: one is not.
    """
    with Store.open(store) as opened:
        for user in sorted({user for user, _ in told}):
            handle = opened.scope(Scope(user=user))
            kept = {memory.text for memory in handle.list(limit=handle.count())}
            if lost := {text for one, text in told if one == user} - kept:
                raise LoadFailed(f"{user} was answered, and the store has not: {sorted(lost)[:3]}")
        if not opened.verify().ok:
            raise LoadFailed("the store is damaged")
    return len(told)


def stopped(store: Path, users: int, seconds: float, at_once: int, seed: int, threads: int) -> dict[str, Any]:
    """Load on a server that writes so many answers at once; then, still under load, it is told to stop.

    Raises:
        LoadFailed: as ``crowd``; or it did not end well, cut an answer short, or lost a message.
    """
    ended: list[int] = []
    with serving(store, "--rate", "none", "--at-once", str(at_once), threads=threads) as served:
        figures, took = crowd(served, users, seconds, seed)

        async def stop(all_of_them: Crowd) -> None:
            all_of_them.ending = True
            ended.append(await asyncio.to_thread(served.stop))

        draining, _ = crowd(served, users, min(3.0, seconds), seed, stop)
    if ended != [0]:
        raise LoadFailed(f"told to stop, the server ended with exit code {ended}")
    return {**row(at_once, figures, took), "kept": all_kept(store, [*figures.told, *draining.told])}


def killed(store: Path, users: int, seconds: float, at_once: int, seed: int, threads: int) -> dict[str, Any]:
    """Load on a server; then, still under load, it is killed, and started again.

    Raises:
        LoadFailed: as ``crowd``; or a message was lost, or the server does not start again.
    """
    with serving(store, "--rate", "none", "--at-once", str(at_once), threads=threads) as served:
        figures, took = crowd(served, users, seconds, seed)

        async def kill(all_of_them: Crowd) -> None:
            all_of_them.ending = True
            await asyncio.to_thread(served.kill)

        dying = Figures()

        async def live() -> None:
            all_of_them = Crowd(served.url, users, seed, dying)
            await all_of_them.live(min(5.0, seconds), lambda: kill(all_of_them))

        asyncio.run(live())  # what it was writing ends with an error, which is no failure here
    if dying.leaks:
        raise LoadFailed(f"leaks: {dying.leaks[:3]}")
    with serving(store, "--rate", "none", threads=threads) as again:
        crowd(again, min(users, 4), 1.0, seed)
        if again.stop():
            raise LoadFailed("the server that was started again did not end well")
    return {**row(at_once, figures, took), "kept": all_kept(store, [*figures.told, *dying.told])}


def cells(figures: dict[str, Any]) -> list[str]:
    """A row of the table."""
    seconds = [f"{figures[name][cut]:.2f} s" for name in ("first_token", "reply", "search") for cut in ("p50", "p95")]
    return [
        str(figures["at_once"]),
        f"{figures['replies_per_second']:.1f}",
        f"{figures['tokens_per_second']:.0f}",
        *seconds,
    ]


def summary(result: dict[str, Any]) -> str:
    """The figures besides the table, in words."""
    many, one = result["rows"]
    times = many["replies_per_second"] / one["replies_per_second"]
    return (
        f"{result['users']} users for {many['seconds']:.0f} s: {many['replies']} replies, {many['cancelled']} hung up "
        f"in mid-stream, no error, nothing of another user. {times:.1f}"
        f" times the replies per second of one answer at a time ({one['seconds']:.0f} s). The secret was in "
        f"{many['right']} of {many['asked']} answers to the question for it. Told to stop under load, the server "
        f"finished what it had begun and ended with exit code 0; killed under load, it had all {one['kept']} messages "
        "that it had answered."
    )


def main(
    users: Annotated[int, typer.Option(min=1, help="Users at once.")] = 64,
    minutes: Annotated[float, typer.Option(min=0.01, max=30, help="Time of the load.")] = 3.0,
    at_once: Annotated[int, typer.Option(min=2, max=32, help="Answers written at the same time.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of secrets and actions.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the server.")] = 1,
    out: Annotated[Path, typer.Option(help="JSON report to write.")] = Path("server_load.json"),
) -> None:
    """Load a server, against one that answers one request at a time; stop it, and kill it."""
    screen, seconds = console(), 60 * minutes
    with tempfile.TemporaryDirectory(prefix="agentmem-load-") as name:
        folder = Path(name)
        rows = [
            stopped(folder / "many.db", users, seconds, at_once, seed, threads),
            killed(folder / "one.db", users, seconds / 3, 1, seed, threads),
        ]
    options = f"--users {users} --minutes {minutes:g} --at-once {at_once} --seed {seed} --threads {threads}"
    result = {
        "benchmark": "server_load",
        "command": f"python -m benchmarks.server_load {options}",
        "machine": describe(threads),
        "model": "bundled",
        "users": users,
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for figures in rows:
        screen.print(" | ".join(f"{head}: {cell}" for head, cell in zip(HEAD, cells(figures), strict=True)))
    screen.print(summary(result))


if __name__ == "__main__":
    typer.run(main)
