"""Text -> vectors for the dense leg of recall."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agentmem.errors import InvalidInput
from agentmem.model.local import LocalModel


class Embedder(Protocol):
    """Anything with a name, a width and ``embed``. The name is stored with the index: another name, another index."""

    @property
    def name(self) -> str:
        """Identifies the embedder and its version; vectors of different names are never compared."""

    @property
    def dim(self) -> int:
        """Width of a vector."""

    @property
    def noise(self) -> float:
        """Standard deviation of the cosines of unrelated texts: smaller differences do not stand out in a search."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 (len(texts), dim), each row of length 1."""


class ModelEmbedder:
    """The local language model's own mean-pooled hidden states: no extra model, no download."""

    def __init__(self, model: LocalModel):
        self._model = model
        self.name = f"hidden-states:{model.fingerprint[:16]}"
        self.dim = model.hidden_size
        self.noise = 0.14  # measured on the bundled model: 100 unrelated sentences, mean cosine 0.54

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 (len(texts), dim), each row of length 1."""
        return self._model.embed(texts)


class SentenceTransformerEmbedder:
    """A sentence-transformers model by hub id or folder (extra ``embed``): finds paraphrases that hidden states miss.

    Raises:
        InvalidInput: the extra is not installed, or there is no such model.
    """

    def __init__(self, model: str, device: str | None = None):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise InvalidInput(
                "an embedder by name needs sentence-transformers: pip install 'agentmem-kv[embed]'"
            ) from error
        try:
            self._model = SentenceTransformer(model, device=device, local_files_only=Path(model).exists())
        except (OSError, ValueError) as error:
            raise InvalidInput(f"no sentence-transformers model could be loaded from {model!r}: {error}") from error
        self.name = f"sentence-transformers:{model}"
        self.noise = 0.05
        self.dim = len(self._model.encode("width", show_progress_bar=False))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 (len(texts), dim), each row of length 1."""
        vectors = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)


def get_embedder(embedder: str | Embedder | None, model: LocalModel) -> Embedder:
    """The embedder itself, a sentence-transformers model by name or path, or (None) the model's hidden states."""
    if embedder is None:
        return ModelEmbedder(model)
    return SentenceTransformerEmbedder(embedder) if isinstance(embedder, str) else embedder
