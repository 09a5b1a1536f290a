"""Exact prompt tokens, by the ``tokenizer.json`` of a model."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import replace
from statistics import median_low
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llmrouter.lengths.prompt_tokens import CountedPrompt, PromptTokens, TokenReportRefusal

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_TEXT_BYTES = 2 * 1024
"""Texts above are not counted: one of this size takes somewhat less than a millisecond (``bench/prompt_tokens.py``)."""

OVERHEAD_WINDOW = 64
"""Reports that the tokens of a model's chat template are the median of."""

_PROBE = "Hello, world! 你好 \U0001f642 \x00\n"
_MAX_WHY_CHARS = 200


class TokenCounter:
    """Counts tokens of texts as one tokenizer has them; for any thread, and without holding the interpreter's lock."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.special_tokens = int(tokenizer.num_special_tokens_to_add(is_pair=False))
        """That the tokenizer itself puts around a text."""

    def count(self, text: str) -> int | None:
        """Tokens of a text without any around it; ``None`` of one above ``MAX_TEXT_BYTES`` of UTF-8."""
        if len(text) > MAX_TEXT_BYTES:
            return None
        content = text.encode("utf-8", "replace")  # a lone surrogate is no text
        if len(content) > MAX_TEXT_BYTES:
            return None
        # ``encode`` would hold the lock meanwhile; this does not, and leaves out offsets.
        (encoding,) = self._tokenizer.encode_batch_fast([content.decode()], add_special_tokens=False)
        return len(encoding)


class TokenizedPrompts:
    """Prompt tokens by tokenizer; of models without one, of excerpts and of texts that are too long, by estimate.

    A ``PromptTokenCounter``. The chat template is what engines report beyond the text: the median of the last
    ``OVERHEAD_WINDOW`` reports of the model, and before the first one the tokenizer's own special tokens. The estimator
    learns from every report, so that it is as good as it can be where it has to answer. One thread counts and learns;
    ``use`` may be called from another.
    """

    def __init__(self, estimator: PromptTokens, counters: Mapping[str, TokenCounter] | None = None) -> None:
        self.failures = 0
        """Prompts at which a tokenizer failed; they were estimated."""
        self._estimator = estimator
        self._counters = dict(counters or {})
        self._overheads: dict[str, deque[int]] = {}

    def use(self, counters: Mapping[str, TokenCounter]) -> None:
        """Counts with these from now on; what is known of chat templates of other models is forgotten."""
        self._overheads = {model: seen for model, seen in self._overheads.items() if model in counters}
        self._counters = dict(counters)

    def count(self, prompt: str, model: str, *, share: float = 1.0) -> CountedPrompt:
        """``exact`` of the result says whether a tokenizer counted."""
        estimate = self._estimator.count(prompt, model, share=share)
        counter = self._counters.get(model) if share >= 1.0 else None
        if counter is None:
            return estimate
        try:
            text_tokens = counter.count(prompt)
        except BaseException as error:
            if not _of_tokenizer(error):
                raise
            self.failures += 1
            return estimate
        if text_tokens is None:
            return estimate
        seen = self._overheads.get(model)
        overhead = median_low(seen) if seen else counter.special_tokens
        return replace(estimate, tokens=max(1, text_tokens + overhead), text_tokens=text_tokens)

    def learn_from(self, counted: CountedPrompt, prompt_tokens: float) -> TokenReportRefusal | None:
        """Takes note of what an engine counted, if the estimator believes it."""
        refused = self._estimator.learn_from(counted, prompt_tokens)
        if refused is None and counted.text_tokens is not None and counted.model in self._counters:
            seen = self._overheads.setdefault(counted.model, deque(maxlen=OVERHEAD_WINDOW))
            seen.append(round(prompt_tokens) - counted.text_tokens)
        return refused


def load_tokenizers(folder: Path | None, paths: Mapping[str, str]) -> tuple[dict[str, TokenCounter], tuple[str, ...]]:
    """Counters by model, and a line for each model whose file cannot be used; reads files, so not on an event loop.

    Has the package count in the thread that asks, where the environment does not say otherwise: threads of its own, one
    for each core, gain nothing for one text.

    Args:
        folder: of tokenizers; ``None`` where none was given.
        paths: of ``tokenizer.json`` files below it, by model.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    by_path: dict[str, TokenCounter | str] = {}
    for path in paths.values():
        if path not in by_path:
            by_path[path] = "no folder of tokenizers was given" if folder is None else _load(folder, path)
    counters: dict[str, TokenCounter] = {}
    problems: list[str] = []
    for model, path in paths.items():
        loaded = by_path[path]
        if isinstance(loaded, TokenCounter):
            counters[model] = loaded
        else:
            problems.append(f"tokenizer {path} of {model}: {loaded}")
    return counters, tuple(problems)


def _load(folder: Path, path: str) -> TokenCounter | str:
    """The counter, or why there is none."""
    try:
        file = (folder / path).resolve(strict=True)
        if not file.is_relative_to(folder.resolve()):
            return "is a link that leads out of the folder"
        if not file.is_file():
            return "is no file"
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        return getattr(error, "strerror", None) or str(error)
    if len(content) > MAX_FILE_BYTES:
        return f"more than {MAX_FILE_BYTES} bytes"
    try:
        counter = TokenCounter(Tokenizer.from_buffer(content))
        counter.count(_PROBE)
    except BaseException as error:
        if not _of_tokenizer(error):
            raise
        return f"is no tokenizer: {error}"[:_MAX_WHY_CHARS]
    return counter


def _of_tokenizer(error: BaseException) -> bool:
    """The package raises plain Exception; where its Rust code panics, a BaseException of a type that it keeps."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
