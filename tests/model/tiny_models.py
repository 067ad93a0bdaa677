"""Tiny random decoders of many families, and a byte-level tokenizer for them. Nothing is downloaded."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from agentmem.model.local import LocalModel

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
VOCAB = len(SPECIAL) + 256
WINDOW = 16
CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_THREE_SLIDING = ["sliding_attention"] * 3 + ["full_attention"]


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


def _config(name: str) -> Any:
    t, c = transformers, _COMMON
    no_kv_heads = {key: value for key, value in c.items() if key != "num_key_value_heads"}
    short, long = [1.0 + 0.05 * i for i in range(8)], [2.0 + 0.5 * i for i in range(8)]
    build = {
        "llama": lambda: t.LlamaConfig(**c, head_dim=16),
        "llama_llama3": lambda: t.LlamaConfig(
            **c,
            head_dim=16,
            rope_parameters=_rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
        "llama_yarn": lambda: t.LlamaConfig(
            **c, head_dim=16, rope_parameters=_rope("yarn", factor=8.0, original_max_position_embeddings=64)
        ),
        "llama_dynamic": lambda: t.LlamaConfig(
            **{**c, "max_position_embeddings": 64}, head_dim=16, rope_parameters=_rope("dynamic", factor=4.0)
        ),
        "qwen2": lambda: t.Qwen2Config(**c),
        "qwen3": lambda: t.Qwen3Config(**c, head_dim=16),
        "mistral": lambda: t.MistralConfig(**c, head_dim=16, sliding_window=WINDOW),
        "gemma2": lambda: t.Gemma2Config(**c, head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=16),
        "gemma3": lambda: t.Gemma3TextConfig(
            **c, head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=16, layer_types=_THREE_SLIDING
        ),
        "phi3": lambda: t.Phi3Config(**c),
        "phi3_partial": lambda: t.Phi3Config(**c, rope_parameters=_rope("default", partial_rotary_factor=0.5)),
        "phi3_longrope": lambda: t.Phi3Config(
            **c,
            original_max_position_embeddings=64,
            rope_parameters=_rope(
                "longrope", factor=8.0, short_factor=short, long_factor=long, original_max_position_embeddings=64
            ),
        ),
        "gpt_neox": lambda: t.GPTNeoXConfig(
            **no_kv_heads, rope_parameters=_rope("default", partial_rotary_factor=0.25)
        ),
        "smollm3": lambda: t.SmolLM3Config(**c, no_rope_layers=[1, 1, 1, 0]),
        "olmo2": lambda: t.Olmo2Config(**c),
        "gpt_oss": lambda: t.GptOssConfig(
            **c,
            head_dim=16,
            sliding_window=WINDOW,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_parameters=_rope(
                "yarn",
                factor=8.0,
                beta_fast=32.0,
                beta_slow=1.0,
                truncate=False,
                original_max_position_embeddings=64,
            ),
        ),
        "glm": lambda: t.GlmConfig(**c, head_dim=16),
        "deepseek_v3": lambda: t.DeepseekV3Config(
            **{**c, "num_key_value_heads": 4},
            moe_intermediate_size=32,
            q_lora_rank=32,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=16,
            v_head_dim=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=4,
        ),
        "gpt2": lambda: t.GPT2Config(
            vocab_size=VOCAB, n_embd=64, n_layer=4, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2
        ),
        "opt": lambda: t.OPTConfig(**{**no_kv_heads, "intermediate_size": None}, ffn_dim=96, word_embed_proj_dim=64),
        "bloom": lambda: t.BloomConfig(vocab_size=VOCAB, hidden_size=64, n_layer=4, n_head=4),
        "falcon_h1": lambda: t.FalconH1Config(**c, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16),
        "qwen3_next": lambda: t.Qwen3NextConfig(
            **c,
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=32,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
        ),
    }
    return build[name]()


FAMILIES = (
    "llama",
    "llama_llama3",
    "llama_yarn",
    "llama_dynamic",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3_partial",
    "phi3_longrope",
    "gpt_neox",
    "smollm3",
    "olmo2",
    "gpt_oss",
    "glm",
    "deepseek_v3",
)
"""Every family that the fidelity tests run on."""


def build(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A fresh model whose attention is far from uniform, so that a wrong mask or position changes logits by O(1)."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_config(name), dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "sinks" in key:
                weight.copy_(torch.randn(weight.shape, generator=generator))
            elif weight.dim() >= 2 and "embed" not in key:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 1.5 / weight.shape[-1] ** 0.5)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval().requires_grad_(False)


def tokenizer(template: str | None = CHATML, bos: bool = True) -> PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    out = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )
    out.chat_template = template
    return out


@functools.cache
def local(name: str, dtype: torch.dtype = torch.float32) -> LocalModel:
    """A LocalModel of that family that never ends a turn, shared by all tests: they must leave it as it was."""
    model = LocalModel(build(name, dtype), tokenizer())
    model.chat.stop_ids = frozenset()
    return model


def some_ids(n: int, seed: int = 0) -> list[int]:
    """Token ids of ordinary bytes, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL), VOCAB, (n,), generator=generator).tolist()
