"""A tiny Llama, its byte-level tokenizer and short documents: what the tests of tuning share."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agentmem.model.local import LocalModel
from agentmem.training.histories import History, cut
from agentmem.training.texts import Document

SPECIAL = ["<pad>", "<s>", "</s>"]
LAYERS = 4


def save_model(folder: Path) -> Path:
    """A random model whose attention is far from uniform, as ``save_pretrained`` writes it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(SPECIAL) + 256,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.normal_(std=1.5 / weight.shape[1] ** 0.5)
    model.save_pretrained(folder)
    vocabulary = {token: n for n, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    ).save_pretrained(folder)
    return folder


def text(seed: int, sentences: int) -> str:
    """Sentences that are all different."""
    rng = random.Random(seed)
    words = ["lamp", "horse", "river", "stone", "letter", "garden", "winter", "doctor", "engine", "window"]
    return "\n".join(f"The {rng.choice(words)} of {seed} saw {rng.choice(words)} {n}." for n in range(sentences))


def histories(model: LocalModel, *sentences: int) -> list[History]:
    """One history per number of sentences."""
    return cut([Document(f"book {at}", text(at, n)) for at, n in enumerate(sentences)], model)
