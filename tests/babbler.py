"""A model for tests of stopping: it never stops by itself."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from agentmem.llm import bundled_model


def make_babbler(folder: Path) -> Path:
    """A random model that says the same word for a very long time: its last layer answers with one token only."""
    config = AutoConfig.from_pretrained(bundled_model())
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 32, 64, 1
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 2, 1, 16
    config.max_position_embeddings, config.tie_word_embeddings = 65536, False
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    word = tokenizer(" the", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():  # one large number in every hidden state, which only this word's row looks at
        model.model.embed_tokens.weight[:, 0] = 10.0
        model.model.norm.weight.zero_()
        model.model.norm.weight[0] = 1.0
        model.lm_head.weight.zero_()
        model.lm_head.weight[word] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
