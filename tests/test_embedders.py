"""The dense leg's vectors: the model's own hidden states, and a real sentence-transformers model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast

from agentmem import InvalidInput, MemoryLLM
from agentmem.retrieval import SentenceTransformerEmbedder

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "my",
    "dog",
    "cat",
    "boat",
    "is",
    "called",
    "biscuit",
    "rex",
    "what",
    ".",
    "?",
]


@pytest.fixture(scope="session")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT as a sentence-transformers folder."""
    folder = tmp_path_factory.mktemp("sentence-model")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    BertModel(config).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").save(str(folder / "st"))
    return folder / "st"


def test_a_sentence_transformers_model_embeds(sentence_model: Path) -> None:
    embedder = SentenceTransformerEmbedder(str(sentence_model), device="cpu")
    vectors = embedder.embed(["my dog is called biscuit.", "what is my cat called?"])
    assert vectors.shape == (2, embedder.dim) == (2, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embedder.embed(["what is my cat called?"])[0], vectors[1], atol=1e-5)


def test_an_embedder_that_cannot_be_loaded_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no-such-model"):
        SentenceTransformerEmbedder(str(tmp_path / "no-such-model"))


def test_a_changed_embedder_embeds_again_and_never_mixes(tmp_path: Path, sentence_model: Path) -> None:
    path = tmp_path / "memory.db"
    with MemoryLLM(store=path) as llm:
        llm.conversation(user="ada").chat("My dog is called Biscuit.")
    with MemoryLLM(store=path, embedder=str(sentence_model)) as llm:
        ada = llm.conversation(user="ada")
        assert llm.store.pending_embeddings() == []
        hits = ada.memories.search("What is my dog called?", explain=True)
        assert all(hit.explain is not None and hit.explain.dense is not None for hit in hits)
        assert ada.chat("What is my dog called?").text == "Your dog is called Biscuit."
    with MemoryLLM(store=path) as llm:  # back again: only what was said meanwhile is embedded anew
        assert llm.store.pending_embeddings() == []
        assert llm.conversation(user="ada").chat("What is my dog called?").text == "Your dog is called Biscuit."
