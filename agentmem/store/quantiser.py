"""Product quantisation of keys and values: a vector becomes a few bytes, each the number of a learned centroid.

Memory3 (arXiv 2407.01178 appendix B) compresses its 80 dims from 160 bytes to 14 with faiss's
``OPQ20x80-Residual2x14-PQ8x10``. Here it is ``OPQ<m>,PQ<m>x8`` with m = head_dim / 4: an optimised rotation, then one
byte for every four dims (64 dims: 128 bytes in bf16 become 16). Keys and values of every layer have codebooks of their
own, shared by the layer's KV heads. faiss trains them; encoding and decoding takes a few lines of tensor arithmetic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from agentmem.errors import InvalidInput, PayloadDamaged

CENTROIDS = 256
"""Centroids per codebook: one byte."""
LEAST = 40 * CENTROIDS
"""Vectors that training needs, per codebook. With fewer, centroids come close to being the vectors themselves."""
MOST = 64 * CENTROIDS
"""Vectors that training uses."""
ROUNDS = 8
"""Rounds of fitting the rotation to the centroids and the centroids to it."""
_DIMS = 4
"""Dims that one byte stands for."""


@dataclass(frozen=True, eq=False)
class Quantiser:
    """``rotation`` (dim, dim) orthogonal, and ``centroids`` (bytes, 256, dim / bytes); float32."""

    rotation: Tensor
    centroids: Tensor

    def encode(self, vectors: Tensor) -> Tensor:
        """(..., dim) -> (..., bytes), uint8."""
        m, _, width = self.centroids.shape
        rows = (vectors.float() @ self.rotation.T).reshape(-1, m, width).transpose(0, 1)
        return torch.cdist(rows, self.centroids).argmin(-1).T.reshape(*vectors.shape[:-1], m).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """(..., bytes), uint8 -> (..., dim), float32."""
        m = self.centroids.shape[0]
        parts = self.centroids[torch.arange(m), codes.reshape(-1, m).long()]
        return (parts.flatten(1) @ self.rotation).reshape(*codes.shape[:-1], -1)


@dataclass(frozen=True, eq=False)
class Codebooks:
    """Quantisers of one model's KV: ``layers[number]`` is the pair for keys and for values."""

    layers: Mapping[int, tuple[Quantiser, Quantiser]]

    def to_bytes(self) -> bytes:
        """A safetensors buffer."""
        tensors = {
            f"{layer}.{name}.{part}": getattr(quantiser, part).contiguous()
            for layer, pair in self.layers.items()
            for name, quantiser in zip(("k", "v"), pair, strict=True)
            for part in ("rotation", "centroids")
        }
        return safetensors.torch.save(tensors)

    @cached_property
    def digest(self) -> str:
        """Identity: part of every payload that was packed with them."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:16]

    @classmethod
    def from_bytes(cls, data: bytes) -> Codebooks:
        """Read ``to_bytes`` back.

        Raises:
            PayloadDamaged: these bytes are no codebooks.
        """
        try:
            tensors = safetensors.torch.load(data)
            numbers = sorted({int(name.partition(".")[0]) for name in tensors})
            return cls(
                {
                    n: (
                        Quantiser(tensors[f"{n}.k.rotation"], tensors[f"{n}.k.centroids"]),
                        Quantiser(tensors[f"{n}.v.rotation"], tensors[f"{n}.v.centroids"]),
                    )
                    for n in numbers
                }
            )
        except (SafetensorError, KeyError, ValueError) as error:
            raise PayloadDamaged(f"these are no codebooks ({error}); compress anew") from error


def train_codebooks(sample: Mapping[int, tuple[Tensor, Tensor]], seed: int = 0) -> Codebooks:
    """Train on a sample of stored KV.

    Args:
        sample: per layer, keys (n, head_dim) and values (n, value_dim) of all KV heads; at least ``LEAST`` of each.
        seed: of the choice among more than ``MOST``.

    Raises:
        InvalidInput: too few vectors, numbers that are not finite, or faiss is not installed.
    """
    return Codebooks(
        {layer: (_train(keys, seed), _train(values, seed)) for layer, (keys, values) in sorted(sample.items())}
    )


def _train(vectors: Tensor, seed: int) -> Quantiser:
    faiss = _faiss()
    n, dim = vectors.shape
    if n < LEAST:
        raise InvalidInput(
            f"product quantisation is trained on at least {LEAST} vectors per layer, and there are {n}; store more "
            "memories first, or use the codec int8"
        )
    if not torch.isfinite(vectors).all():
        raise InvalidInput("KV holds NaN or infinity, which cannot be quantised")
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:MOST]
    x = vectors[chosen].float().contiguous().numpy()
    m = max(m for m in range(1, max(1, dim // _DIMS) + 1) if dim % m == 0)
    turn = faiss.OPQMatrix(dim, m)
    turn.niter, turn.niter_pq_0 = ROUNDS, ROUNDS
    turn.train(x)
    quantiser = faiss.ProductQuantizer(dim, m, 8)
    quantiser.train(turn.apply(x))
    rotation = torch.from_numpy(faiss.vector_to_array(turn.A).reshape(dim, dim).copy())
    centroids = torch.from_numpy(faiss.vector_to_array(quantiser.centroids).reshape(m, CENTROIDS, dim // m).copy())
    return Quantiser(rotation, centroids)


def _faiss() -> Any:
    try:
        import faiss  # late: an extra
    except ImportError as error:
        raise InvalidInput("product quantisation needs faiss: pip install 'agentmem-kv[pq]'") from error
    return faiss
