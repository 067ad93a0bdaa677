"""Finding the memories that matter now: the vectors of the dense leg."""

from agentmem.retrieval.embedders import Embedder, ModelEmbedder, SentenceTransformerEmbedder, get_embedder

__all__ = ["Embedder", "ModelEmbedder", "SentenceTransformerEmbedder", "get_embedder"]
