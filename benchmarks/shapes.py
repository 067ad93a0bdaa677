"""The models that turn latency is measured with. All but the bundled one have random weights: time does not care."""

from __future__ import annotations

import random
from enum import StrEnum
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agentmem.records import Role
from agentmem.training.chat_template import CHAT_TEMPLATE
from agentmem.training.tokenizer import BOS, END, PAD

UNKNOWN = "<unk>"
SPECIAL = [PAD, BOS, END, UNKNOWN, *(f"<|{role}|>" for role in Role)]


class Shape(StrEnum):
    """Which model."""

    BUNDLED = "bundled"
    TINY = "tiny"
    SMOLLM_135M = "smollm-135m"
    LLAMA_1B = "llama-1b"


_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True}
CONFIGS: dict[Shape, LlamaConfig] = {
    Shape.TINY: LlamaConfig(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16384,
        **_TOKENS,
    ),
    # HuggingFaceTB/SmolLM2-135M, config.json
    Shape.SMOLLM_135M: LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        **_TOKENS,
    ),
    # meta-llama/Llama-3.2-1B, config.json
    Shape.LLAMA_1B: LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        **_TOKENS,
    ),
}


def build(shape: Shape, folder: Path) -> None:
    """Save a model of random weights (bfloat16, seed 0) and its tokenizer, in which every word is one token."""
    config = CONFIGS[shape]
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    vocabulary |= {word(number): number for number in range(len(SPECIAL), config.vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=SPECIAL[len((PAD, BOS, END, UNKNOWN)) :],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def word(number: int) -> str:
    """The word that is token ``number`` of a random shape."""
    return f"w{number}"


def random_words(rng: random.Random, n: int, shape: Shape) -> str:
    """A text of n tokens of a random shape."""
    return " ".join(word(rng.randrange(len(SPECIAL), CONFIGS[shape].vocab_size)) for _ in range(n))
