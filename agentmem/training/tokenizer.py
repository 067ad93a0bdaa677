"""The bundled model's tokenizer: byte-level BPE trained on its own dialogues, with a chat template."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from agentmem.records import Role
from agentmem.training.chat_template import CHAT_TEMPLATE
from agentmem.training.dialogues import Mix, draw

VOCABULARY = 1024
PAD, BOS, END = "<pad>", "<s>", "<|end|>"
SPECIAL = [PAD, BOS, END, *(f"<|{role}|>" for role in Role)]


def _corpus(utterances: list[tuple[str, str]], n: int) -> Iterator[str]:
    rng = random.Random(1)
    for _ in range(n):
        dialogue = draw(rng, Mix(), utterances)
        yield from (f"[{chunk.role} {chunk.day}] {chunk.text}\n" for chunk in dialogue.chunks)
        yield from (f" {text}" for _, text in dialogue.turns)


def train_tokenizer(utterances: list[tuple[str, str]], folder: Path, dialogues: int = 6000) -> PreTrainedTokenizerFast:
    """Train the tokenizer and save it (tokenizer.json, chat template) in the folder."""
    return train_bpe(_corpus(utterances, dialogues), VOCABULARY, folder)


def train_bpe(corpus: Iterable[str], vocabulary: int, folder: Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with the special tokens and the chat template above, and save it in the folder."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer
