"""Draw who attends to what in each recipe, for ``docs/recipes.md``.

``python docs/build_pictures.py`` draws them, ``python docs/build_pictures.py --check`` fails when they are stale.
Rows are tokens that ask, columns are tokens that are asked: a coloured cell is attended to. The same code gives the
same files, so that a change of the pictures is a change of this script.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

FOLDER = Path(__file__).parent / "pictures"
NOTHING, WRITTEN, SINK, READ, NEAR, WAITING = range(6)
COLOURS = ("#FFFFFF", "#BDBDBD", "#E69F00", "#0072B2", "#009E73", "#CC79A7")
NAMES = {
    WRITTEN: "seen while it was written",
    SINK: "sink: the start that is always seen",
    READ: "memory that is read",
    NEAR: "context",
    WAITING: "left the window, in no block yet",
}


@dataclass
class Picture:
    """Who sees whom among runs of tokens; ``columns`` (name, tokens), ``positions`` under them."""

    title: str
    columns: list[tuple[str, int]]
    positions: list[str]
    cells: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        n = sum(length for _, length in self.columns)
        self.cells = np.zeros((n, n), dtype=int)

    def run(self, name: str) -> range:
        """Places of a run's tokens."""
        start = 0
        for other, length in self.columns:
            if other == name:
                return range(start, start + length)
            start += length
        raise KeyError(name)

    def causal(self, name: str, kind: int) -> None:
        """The run's tokens see themselves and those before them."""
        for row in self.run(name):
            self.cells[row, self.run(name).start : row + 1] = kind

    def see(self, rows: range, columns: range | list[int], kind: int) -> None:
        """Every row sees every column."""
        for row in rows:
            self.cells[row, list(columns)] = kind


def draw(picture: Picture, axes: Axes) -> None:
    """Cells, runs and positions."""
    cells = picture.cells
    height, width = cells.shape
    palette = ListedColormap(COLOURS)
    axes.imshow(cells, palette, vmin=0, vmax=len(COLOURS) - 1, interpolation="none", extent=(0, width, height, 0))
    axes.hlines(range(height + 1), 0, width, colors="#E6E6E6", linewidth=0.4)
    axes.vlines(range(width + 1), 0, height, colors="#E6E6E6", linewidth=0.4)
    start = 0
    middles: list[tuple[float, str]] = []
    for name, length in picture.columns:
        middles.append((start + length / 2, name))
        start += length
        axes.axvline(start, color="black", linewidth=0.8)
        axes.axhline(start, color="black", linewidth=0.8)
    axes.set_xticks(
        [at for at, _ in middles],
        [f"{name}\n{where}" for (_, name), where in zip(middles, picture.positions, strict=True)],
    )
    axes.set_yticks([at for at, _ in middles], [name for _, name in middles])
    axes.tick_params(length=0)
    axes.set_title(picture.title, loc="left", fontsize=10)


def save(folder: Path, name: str, pictures: list[Picture], **names: str) -> None:
    """One file, with the pictures side by side and a legend, in which ``near`` may have another name."""
    tall = 0.17 * max(len(p.cells) for p in pictures) + 1.2
    shown = NAMES | ({NEAR: names["near"]} if "near" in names else {})
    wide = 0.17 * sum(len(p.cells) for p in pictures) + 1.3 * len(pictures)
    with matplotlib.rc_context({"svg.hashsalt": "agentmem", "font.size": 8.5, "svg.fonttype": "none"}):
        figure = Figure(figsize=(max(wide, 7.0), tall), layout="constrained")
        for axes, picture in zip(np.atleast_1d(figure.subplots(1, len(pictures))), pictures, strict=True):
            draw(picture, axes)
        used = sorted({int(kind) for p in pictures for kind in np.unique(p.cells)} - {NOTHING})
        figure.legend(
            handles=[Patch(facecolor=COLOURS[kind], label=shown[kind]) for kind in used],
            loc="outside lower center",
            ncols=len(used),
            frameon=False,
        )
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def parallel(folder: Path) -> None:
    """Every chunk alone behind the prefix; the context reads all of them at the same places."""
    picture = Picture(
        "every layer",
        [("prefix", 1), ("memory 1", 6), ("memory 2", 5), ("memory 3", 6), ("context", 9)],
        ["-7", "-6 … -1", "-6 … -2", "-6 … -1", "0 … 8"],
    )
    prefix, context = picture.run("prefix"), picture.run("context")
    for name in ("memory 1", "memory 2", "memory 3"):
        picture.see(picture.run(name), prefix, WRITTEN)
        picture.causal(name, WRITTEN)
        picture.see(context, picture.run(name), READ)
    picture.causal("prefix", WRITTEN)
    picture.causal("context", NEAR)
    save(folder, "parallel", [picture])


def memory3(folder: Path) -> None:
    """Two tokens of each reference, one interval, and other references for every stretch of the text."""
    panels = []
    for title in ("lower half of the layers", "upper half"):
        picture = Picture(
            title,
            [("prefix", 2), ("memory 1", 7), ("memory 2", 7), ("memory 3", 7), ("stretch 1", 5), ("stretch 2", 5)],
            ["before", "-128 …", "-128 …", "-128 …", "0 … 63", "64 …"],
        )
        stretches = (picture.run("stretch 1"), picture.run("stretch 2"))
        context = range(stretches[0].start, stretches[1].stop)
        for name in ("memory 1", "memory 2", "memory 3"):
            picture.see(picture.run(name), picture.run("prefix"), WRITTEN)
            picture.causal(name, WRITTEN)
        picture.causal("prefix", WRITTEN)
        picture.see(context, picture.run("prefix"), SINK)
        for row in context:
            picture.cells[row, context.start : row + 1] = NEAR
        if not panels:
            kept = {"memory 1": (1, 4), "memory 2": (2, 3), "memory 3": (0, 5)}
            for rows, names in zip(stretches, (("memory 1", "memory 2"), ("memory 2", "memory 3")), strict=True):
                for name in names:
                    picture.see(rows, [picture.run(name)[at] for at in kept[name]], READ)
        else:  # references do not run as far as this
            for name in ("memory 1", "memory 2", "memory 3"):
                picture.cells[list(picture.run(name))] = NOTHING
        panels.append(picture)
    save(folder, "memory3", panels)


def memlong(folder: Path) -> None:
    """One layer's KV, read by some layers above it, all at one distance."""
    panels = []
    for title in ("lower layers (frozen)", "reading layers"):
        picture = Picture(
            title,
            [("prefix", 1), ("chunk 1", 6), ("chunk 2", 6), ("chunk 3", 6), ("context", 9)],
            ["", "-1", "-1", "-1", "0 … 8"],
        )
        for name in ("chunk 1", "chunk 2", "chunk 3"):
            if panels:
                picture.see(picture.run("context"), picture.run(name), READ)
            else:
                picture.see(picture.run(name), picture.run("prefix"), WRITTEN)
                picture.causal(name, WRITTEN)
        picture.causal("prefix", NOTHING if panels else WRITTEN)
        picture.causal("context", NEAR)
        panels.append(picture)
    save(folder, "memlong", panels)


def infllm(folder: Path) -> None:
    """One stream: sinks, a window, and two of the blocks behind it, others at every step."""
    size, sinks, window, blocks = 4, 2, 10, 9
    names = [f"{number}" for number in range(1, blocks + 1)]
    picture = Picture(
        "every layer and KV head: each chooses two blocks for itself, anew at every step",
        [("sinks", sinks), *((name, size) for name in names)],
        ["far", *["far"] * 6, *["near"] * 3],
    )
    chosen = {5: (1,), 6: (1, 2), 7: (1, 3), 8: (2, 4), 9: (1, 5)}
    for row in range(len(picture.cells)):
        step = (row - sinks) // size + 1 if row >= sinks else 0
        first = sinks + (step - 1) * size if step else 0
        complete = max(0, (first - window - sinks) // size)
        for column in range(row + 1):
            block = (column - sinks) // size + 1 if column >= sinks else 0
            near = row - column < window
            far = SINK if not block else WAITING if block > complete else READ if block in chosen[step] else NOTHING
            picture.cells[row, column] = NEAR if near else far
    save(folder, "infllm", [picture], near="window")


def main() -> int:
    """0 when the pictures are drawn, or (with ``--check``) already right."""
    if sys.argv[1:] != ["--check"]:
        FOLDER.mkdir(exist_ok=True)
        for recipe in RECIPES:
            recipe(FOLDER)
        return 0
    with tempfile.TemporaryDirectory() as name:
        for recipe in RECIPES:
            recipe(Path(name))
        fresh = {path.name: path.read_bytes() for path in Path(name).iterdir()}
    if fresh == {path.name: path.read_bytes() for path in FOLDER.iterdir()}:
        return 0
    print(f"{FOLDER.name} is stale: run `make docs`", file=sys.stderr)
    return 1


RECIPES = (parallel, memory3, memlong, infllm)

if __name__ == "__main__":
    sys.exit(main())
