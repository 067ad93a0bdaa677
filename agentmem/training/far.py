"""Training for streams: reading a text from afar, and making its blocks easy to find.

InfLLM needs no training (arXiv 2402.04617), because a large language model's attention finds what matters among
distractors that it has seen billions of. A model of a few million parameters has seen few, and is taught two things
here: to read tokens that all stand at the window's edge, and to give the block that holds the answer a higher score,
by the very formula that a stream retrieves with, than any other block.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from agentmem.model.attention import Call, Hook
from agentmem.model.rotary import Rotary
from agentmem.model.softmax import Mixed, Segment
from agentmem.training.batches import Batch
from agentmem.training.passkey import Hidden

SINKS, BLOCK, EDGE, REPRESENTATIVES = 64, 128, 511, 4
"""Sizes of the ``infllm`` recipe on a model of 1,024 positions: sinks, a block, the window's last distance."""
MARGIN = 3.0
"""What other blocks' scores are raised by: a row has a handful of them, and a long stream thousands."""


class FromAfar(Hook):
    """Queries see some keys un-rotated, at distance ``EDGE``: where ``far`` (B, 1, T, T) is True; None: no keys.

    Keeps the queries and keys of every layer, with their gradients.
    """

    def __init__(self, rotary: Rotary, far: Tensor | None, near: Tensor) -> None:
        self._rotary, self.far, self.near = rotary, far, near
        self.queries: dict[int, Tensor] = {}
        self.keys: dict[int, Tensor] = {}

    def context(self, call: Call, context: Segment) -> Segment:
        """What is near."""
        return Segment(context.keys, context.values, mask=self.near)

    def segments(self, call: Call) -> Sequence[Segment]:
        """What is far."""
        if self.far is None:
            return ()
        keys = unrotated(self._rotary, call.layer, call.keys)
        query = at_edge(self._rotary, call.layer, unrotated(self._rotary, call.layer, call.query))
        return (Segment(keys, call.values, mask=self.far, query=query),)

    def mixed(self, call: Call, segments: Sequence[Segment], result: Mixed) -> None:
        """Keep what the layer computed."""
        self.queries[call.layer], self.keys[call.layer] = call.query.float(), call.keys.float()


def unrotated(rotary: Rotary, layer: int, states: Tensor) -> Tensor:
    """(B, heads, T, dim) at positions 0 .. T - 1 -> without position."""
    still = rotary.unrotate(layer, states.flatten(0, 1), torch.arange(states.shape[2]))
    return still.view_as(states)


def at_edge(rotary: Rotary, layer: int, states: Tensor) -> Tensor:
    """Un-rotated queries (..., T, dim), turned to the window's last distance."""
    flat = states.flatten(0, -3)
    return rotary.rotate(layer, flat, torch.tensor([EDGE])).view_as(states)


def finding_loss(
    hook: FromAfar, rotary: Rotary, batch: Batch, rows: Sequence[Hidden], rng: random.Random
) -> Tensor | None:
    """Cross-entropy of finding a needle's block among the blocks of all rows; None where there are too few.

    Queries are those of the answer's tokens, one by one, and the mean of the question's; with two keys, also the mean
    of 128 tokens that hold some of the second one, which have to find the first. Scores are those of a stream: the
    product of the query at the window's edge, summed over a KV head's group, with the mean key of the block's four
    tokens that received most attention. The others' are raised by ``MARGIN``.
    """
    tokens = batch.ids.shape[1]
    n = (tokens - SINKS) // BLOCK
    if n < 2:
        return None
    starts = SINKS + BLOCK * torch.arange(n)
    whole = torch.tensor([[int(start) + BLOCK <= one.text_end for start in starts] for one in rows])
    holds = torch.stack([_overlaps(one, starts) for one in rows])  # rows, 2 needles, blocks
    others = (whole & ~holds.any(1)).flatten()
    answers = [((batch.weights[i] == 1.0).nonzero()[:, 0] - 1).tolist() for i in range(len(rows))]
    asking = [(i, t) for i, answer in enumerate(answers) for t in answer[:-2]]
    later = [i for i, one in enumerate(rows) if len(one.needles) == 2 and holds[i, 0].any() and _apart(one)]
    steps = [_step_at(rng, rows[i], tokens) for i in later]
    which, when = torch.tensor([i for i, _ in asking]), torch.tensor([t for _, t in asking])
    every, behind = torch.arange(len(rows)), torch.tensor(later)

    def right(of: Tensor, number: int) -> Tensor:
        """For queries of the rows ``of``: where needle ``number`` of their row is, among the blocks of all rows."""
        found = torch.zeros(len(of), len(rows), n, dtype=torch.bool)
        found[torch.arange(len(of)), of] = holds[of, number]
        return found.flatten(1)

    total = torch.zeros(())
    for layer, queries in hook.queries.items():
        keys = representatives(hook, rotary, layer, n)
        still = unrotated(rotary, layer, queries)
        questions = torch.stack([still[i, :, one.text_end : answers[i][0]].mean(1) for i, one in enumerate(rows)])
        for queries_of, of in ((still[which, :, when], which), (questions, every)):
            scores = _scores(rotary, layer, queries_of[:, :, None], keys)
            for number in (0, 1):
                total = total + (0.2 if layer == 0 else 0.7) * _found(scores, right(of, number), others)
        if later and layer:
            spans = torch.stack([still[i, :, at : at + BLOCK] for i, at in zip(later, steps, strict=True)])
            total = total + 0.5 * _found(_scores(rotary, layer, spans, keys), right(behind, 0), others)
    return total


def representatives(hook: FromAfar, rotary: Rotary, layer: int, n: int) -> Tensor:
    """(B, kv_heads, blocks, dim): the mean un-rotated key of each block's tokens that received most attention."""
    queries, keys = hook.queries[layer], hook.keys[layer]
    kv_heads, tokens = keys.shape[1:3]
    with torch.no_grad():
        logits = queries.view(len(keys), kv_heads, -1, *queries.shape[2:]) @ keys[:, :, None].transpose(-1, -2)
        hidden = ~torch.ones(tokens, tokens, dtype=torch.bool).tril()
        logits = logits * keys.shape[-1] ** -0.5
        mass = logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(-1).sum((2, 3))
        blocks = mass[:, :, SINKS : SINKS + n * BLOCK].reshape(len(keys), kv_heads, n, BLOCK)
        top = blocks.topk(REPRESENTATIVES, -1).indices
    still = unrotated(rotary, layer, keys)[:, :, SINKS : SINKS + n * BLOCK].reshape(*blocks.shape, -1)
    chosen: Tensor = still.gather(3, top[..., None].expand(*top.shape, still.shape[-1]))
    return chosen.mean(3)


def _scores(rotary: Rotary, layer: int, still: Tensor, keys: Tensor) -> Tensor:
    """Un-rotated queries (N, heads, tokens, dim) against every block of every row: (N, kv_heads, B * blocks)."""
    asking = at_edge(rotary, layer, still).mean(2)
    asking = asking.view(len(asking), keys.shape[1], -1, asking.shape[-1]).sum(2)
    scores: Tensor = torch.einsum("nkd,bkjd->nkbj", asking, keys).flatten(2)
    scaled: Tensor = scores * keys.shape[-1] ** -0.5
    return scaled


def _found(scores: Tensor, right: Tensor, others: Tensor) -> Tensor:
    """Mean cross-entropy of the right blocks (any of them) against the others, over queries that have one."""
    some = right.any(1)
    if not some.any():
        return torch.zeros(())
    floor = torch.finfo(scores.dtype).min
    wanted = scores.masked_fill(~right[:, None], floor).logsumexp(-1)
    everything = (scores + MARGIN * others).masked_fill(~(right | others)[:, None], floor).logsumexp(-1)
    return (everything - wanted)[some].mean()


def _overlaps(one: Hidden, starts: Tensor) -> Tensor:
    """(2, blocks): which blocks hold at least ten tokens of each needle."""
    out = torch.zeros(2, len(starts), dtype=torch.bool)
    for number, (first, end) in enumerate(one.needles):
        shared = torch.minimum(torch.tensor(end), starts + BLOCK) - torch.maximum(torch.tensor(first), starts)
        out[number] = shared >= 10
    return out


def _step_at(rng: random.Random, one: Hidden, tokens: int) -> int:
    """Where 128 tokens begin that hold ten or more of the second needle, and none of the first."""
    first, end = one.needles[1]
    return min(rng.randint(max(one.needles[0][1], first + 10 - BLOCK), end - 10), tokens - BLOCK)


def _apart(one: Hidden) -> bool:
    """Whether 128 tokens that hold the second needle fit behind the first one."""
    return one.needles[1][1] - BLOCK > one.needles[0][1]
