"""Small tokenizers, made here: nothing is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

if TYPE_CHECKING:
    from pathlib import Path

CORPUS = (
    "The quick brown fox jumps over the lazy dog.",
    "Call me tomorrow, or the day after.",
    "def fox(dog): return 42",
)


def write_tokenizer(path: Path, *, truncates: bool = False) -> Path:
    """A byte-level BPE of 300 tokens that puts ``<s>`` before a text; ``truncates`` has it cut texts to 4 tokens."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=alphabet, special_tokens=["<s>"]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    if truncates:
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=100)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path
