"""How many tokens a prompt has, without a tokenizer: from its characters, calibrated online by what engines report."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from operator import mul
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.characters import counts_of
from llmrouter.lengths.predictor import label
from llmrouter.quick import quick

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CLASSES = ("prompt", "word", "letter", "capital", "digit", "punctuation", "space", "cjk", "other")
"""What is counted: the prompt itself, runs of ASCII letters, their letters, capitals, digits, other printable ASCII,
white space beyond one between words, Chinese, Japanese and Korean characters, all other characters."""

PRIOR_TOKENS = np.array([1.0, 0.8, 0.07, 0.22, 1.15, 0.65, 0.3, 1.3, 0.45])
"""Tokens that one of each class is worth before anything is known of a model's tokenizer: between those of Llama 2
and ``cl100k_base``."""

PRIOR_SPREAD = np.array([3.0, *0.5 * PRIOR_TOKENS[1:]])
"""Their standard deviations; chat templates differ most."""

WINDOW_CHARS = 8_192
WINDOWS = 4
MODELS = 64
FORGETTING = 0.999
MAX_TOKENS_PER_CHAR = 4.0
MAX_OVERHEAD_TOKENS = 8_192.0
MIN_TOKENS_PER_CHAR = 1.0 / 64.0
NOISE = 0.01
"""Variance of the relative error that no weights explain."""

_PRIOR = PRIOR_TOKENS, np.diag(PRIOR_SPREAD**2)

MAX_TRACE = 1_000.0
"""Of the covariance of the weights: forgetting alone would let it grow without bound."""

_HIGHEST = np.array([MAX_OVERHEAD_TOKENS, *[MAX_TOKENS_PER_CHAR] * (len(CLASSES) - 1)])
_MAX_SURPRISE = 1.0


class TokenReportRefusal(StrEnum):
    """Why a report of prompt tokens is not believed."""

    NOT_A_NUMBER = "NotANumber"
    NOT_POSITIVE = "NotPositive"
    TOO_SMALL = "TooSmall"  # fewer than a token per 64 characters
    TOO_LARGE = "TooLarge"  # more than four a character and a long chat template


@quick
@dataclass(frozen=True, slots=True, eq=False)
class CountedPrompt:
    """How many tokens a prompt has, and what a report is learned from: nothing of its text.

    Attributes:
        tokens: of the prompt with its chat template, at least 1.
        model: whose tokens they are.
        character_counts: of ``CLASSES``.
        text_tokens: what a tokenizer counted, without the chat template; ``None`` where ``tokens`` is an estimate.
    """

    tokens: int
    model: str
    character_counts: tuple[float, ...]
    text_tokens: int | None = None

    @property
    def exact(self) -> bool:
        """Whether a tokenizer counted it."""
        return self.text_tokens is not None


class PromptTokens:
    """Estimates prompt tokens of each model as a weighted count of character classes.

    The weights are learned by recursive least squares on relative errors, forgetting by ``FORGETTING`` an answer,
    starting at ``PRIOR_TOKENS``. Each stays within 0 and 4 tokens (that of the prompt itself, which is its chat
    template, within 8,192), and one report moves them as an error of 100 % at most. At most ``MODELS`` models; the one
    longest silent gives way. Of a prompt of any size four windows of 8,192 characters are looked at, and scaled up.
    """

    def __init__(self, *, models: int = MODELS) -> None:
        self.refused: Counter[TokenReportRefusal] = Counter()
        self._capacity = models
        self._models: OrderedDict[str, tuple[Floats, Floats]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._models)

    def estimate(self, prompt: str, model: str = "") -> int:
        """Tokens of a prompt for a model, at least 1."""
        return self.count(prompt, model).tokens

    def count(self, prompt: str, model: str = "", *, share: float = 1.0) -> CountedPrompt:
        """The estimate, with what a report is learned from; of an excerpt, which is ``share`` of the prompt, too."""
        counts = _character_counts(prompt)
        if share != 1.0:
            counts = (counts[0], *[count / share for count in counts[1:]])
        tokens = sum(map(mul, counts, self._weights(label(model))[0].tolist()))
        return CountedPrompt(max(1, round(tokens)), model, counts)

    def learn(self, prompt: str, prompt_tokens: float, model: str = "") -> TokenReportRefusal | None:
        """Takes note of what an engine counted; ``None`` where it was believed, else why not."""
        return self.learn_counts(character_counts(prompt), prompt_tokens, model)

    def learn_from(self, counted: CountedPrompt, prompt_tokens: float) -> TokenReportRefusal | None:
        """As ``learn``, of a prompt that was counted before."""
        return self.learn_counts(np.array(counted.character_counts), prompt_tokens, counted.model)

    def learn_counts(self, counts_C: Floats, prompt_tokens: float, model: str = "") -> TokenReportRefusal | None:
        """As ``learn``, of a prompt of which ``character_counts``, shape (classes), alone are known."""
        reason = _refusal(counts_C, prompt_tokens)
        if reason is not None:
            self.refused[reason] += 1
            return reason
        key = label(model)
        weights_C, spread_CC = self._weights(key)
        scaled_C = counts_C / prompt_tokens
        surprise = min(max(1.0 - float(scaled_C @ weights_C), -_MAX_SURPRISE), _MAX_SURPRISE)
        reach_C = spread_CC @ scaled_C
        gain_C = reach_C / (NOISE + float(scaled_C @ reach_C))
        weights_C = np.clip(weights_C + gain_C * surprise, 0.0, _HIGHEST)
        spread_CC = (spread_CC - np.outer(gain_C, reach_C)) / FORGETTING
        spread_CC = 0.5 * (spread_CC + spread_CC.T)
        excess = float(np.trace(spread_CC)) / MAX_TRACE
        self._keep(key, weights_C, spread_CC / max(1.0, excess))
        return None

    def weights(self, model: str = "") -> Floats:
        """Tokens that one of each of ``CLASSES`` is worth for a model."""
        return self._weights(label(model))[0].copy()

    def _weights(self, key: str) -> tuple[Floats, Floats]:
        known = self._models.get(key)
        return _PRIOR if known is None else known

    def _keep(self, key: str, weights_C: Floats, spread_CC: Floats) -> None:
        self._models[key] = (weights_C, spread_CC)
        self._models.move_to_end(key)
        if len(self._models) > self._capacity:
            self._models.popitem(last=False)


def character_counts(prompt: str) -> Floats:
    """Counts (classes) of ``CLASSES`` in a prompt; of a long one estimated from windows spread over it."""
    return np.array(_character_counts(prompt), dtype=np.float64)


def _character_counts(prompt: str) -> tuple[float, ...]:
    size = len(prompt)
    if size <= WINDOWS * WINDOW_CHARS:
        return counts_of(prompt, 0, size)
    starts = np.linspace(0, size - WINDOW_CHARS, WINDOWS).astype(int).tolist()
    seen = [counts_of(prompt, start, start + WINDOW_CHARS) for start in starts]
    scale = size / (WINDOWS * WINDOW_CHARS)
    return (1.0, *[scale * sum(counts) for counts in list(zip(*seen, strict=True))[1:]])


def _refusal(counts_C: Floats, prompt_tokens: float) -> TokenReportRefusal | None:
    """Bounds are those of the prompt's characters, of which a space after a word may be one more or not."""
    _, words, letters, _, *others = counts_C.tolist()
    fewest = letters + sum(others)
    most = fewest + words
    if prompt_tokens != prompt_tokens:  # noqa: PLR0124 - NaN is what differs from itself
        return TokenReportRefusal.NOT_A_NUMBER
    if prompt_tokens < 1.0:
        return TokenReportRefusal.NOT_POSITIVE
    if prompt_tokens > MAX_TOKENS_PER_CHAR * most + MAX_OVERHEAD_TOKENS:
        return TokenReportRefusal.TOO_LARGE
    if prompt_tokens < MIN_TOKENS_PER_CHAR * fewest:
        return TokenReportRefusal.TOO_SMALL
    return None
