"""What a text model sees of a request: hashed words, word pairs and character 4-grams, and request fields.

Written once for training and serving. No tokenizer: bytes of UTF-8 are hashed (``windows.py``). Work is bounded: of a
prompt of any size, the first ``HEAD_BYTES`` and the last ``TAIL_BYTES`` bytes are looked at.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.asked import all_asked_tokens
from llmrouter.lengths.windows import (
    BEYOND,
    CODE,
    CONTROL,
    DIGIT,
    IN_WORD,
    MAX_WINDOW_BYTES,
    NEWLINE,
    PUNCTUATION,
    SPACE,
    UPPER,
    Windows,
)
from llmrouter.quick import quick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.predictor import LengthRequest
    from llmrouter.lengths.windows import Hashes

    Values = NDArray[np.float64]

TEXT_FEATURE_VERSION = 2
"""Part of a text model's manifest. Version 1 is prompt length and application alone."""

HEAD_BYTES, TAIL_BYTES = MAX_WINDOW_BYTES, 1_024
MAX_LABEL_CHARS = 256
HASH_BITS = 15
HASH_BUCKETS = 1 << HASH_BITS
"""Ids are within 1 and ``HASH_BUCKETS`` − 1; 0 fills what a prompt leaves empty."""

FIELD_WIDTHS = {
    "labels": 3,  # application; model; both
    "words_head": 96,
    "words_tail": 32,
    "pairs_head": 96,
    "pairs_tail": 32,
    "grams_head": 160,
    "grams_tail": 64,
}
"""Columns of each field of ids, in order. Head fields read forward from the start, tail fields the last so many.

Words share their rows of an embedding over head and tail; so do pairs, and so do 4-grams.
"""

IDS = sum(FIELD_WIDTHS.values())

DENSE_NAMES = (
    "has_prompt",
    "prompt_tokens_known",
    "log_prompt_tokens",  # ln(1 + tokens); 0 where not known, as every value whose flag is 0
    "log_chars",
    "beyond_windows",  # 1 where the prompt is longer than head and tail
    "log_words",  # of the head, as all below
    "mean_word_bytes",  # ÷ 10
    "share_upper",
    "share_digit",
    "share_space",
    "share_newline",
    "share_code_sign",  # {}()[]<>=;_\
    "share_punctuation",  # the other printable ASCII signs
    "share_control",  # neither printable nor white space: binary
    "share_beyond_ascii",
    "log_newlines",
    "log_question_marks",
    "log_code_signs",
    "code_fence",
    "ends_with_question",
    "ends_with_colon",
    "asks_for_length",  # "in 500 words", "three paragraphs"
    "log_asked_tokens",
    "application_known",
    "max_output_tokens_known",
    "log_max_output_tokens",
    "temperature_known",
    "temperature",  # at most 2
    "tools_known",
    "log_tools",
    "stop_known",
    "log_stop",
    "turn_known",
    "log_turn",
    "thinking_known",
    "thinking",
)
DENSE = len(DENSE_NAMES)

TEXT_FEATURE_NAMES = (*(f"ids/{name}/{width}" for name, width in FIELD_WIDTHS.items()), *DENSE_NAMES)
"""For a manifest: a name for each field of ids with its width, then each dense feature."""


def _fields() -> dict[str, slice]:
    slices, start = {}, 0
    for name, width in FIELD_WIDTHS.items():
        slices[name] = slice(start, start + width)
        start += width
    return slices


FIELDS = _fields()
"""Columns of each field in ``ids``."""


@quick
@dataclass(frozen=True, slots=True, eq=False)
class TextFeatures:
    """``ids`` int32 (N, IDS) within 0 and HASH_BUCKETS − 1; ``dense`` float32 (N, DENSE), finite."""

    ids: NDArray[np.int32]
    dense: NDArray[np.float32]


_TEXT_VALUES = DENSE_NAMES.index("application_known") - DENSE_NAMES.index("log_chars")
_LOGS_L = np.array([place for place, name in enumerate(DENSE_NAMES) if name.startswith("log_")])
_MAX_LOGGED = 1e9
_BLOCK = 64
"""Requests worked on at once, which bounds memory."""


def text_features(requests: Sequence[LengthRequest]) -> TextFeatures:
    """Features of N requests: a batch gives what its requests give alone."""
    ids_NK = np.empty((len(requests), IDS), dtype=np.int32)
    dense_ND = np.empty((len(requests), DENSE), dtype=np.float32)
    for start in range(0, len(requests), _BLOCK):
        rows = slice(start, start + _BLOCK)
        ids_NK[rows], dense_ND[rows] = _features(requests[rows])
    return TextFeatures(ids_NK, dense_ND)


def _features(requests: Sequence[LengthRequest]) -> tuple[NDArray[np.int32], Values]:
    hashes_NK = np.zeros((len(requests), IDS), dtype=np.uint64)
    hashes_NK[:, FIELDS["labels"]] = [
        _labels(one.application[:MAX_LABEL_CHARS], one.model[:MAX_LABEL_CHARS]) for one in requests
    ]
    text = [[0.0] * _TEXT_VALUES] * len(requests)
    prompts = {row: one.prompt for row, one in enumerate(requests) if one.prompt is not None}
    if prompts:
        windows = Windows([_head(one) for one in prompts.values()], [_tail(one) for one in prompts.values()])
        rows = list(prompts)
        hashes_NK[rows if len(rows) < len(requests) else slice(None), FIELDS["labels"].stop :] = _text_hashes(windows)
        for row, values in zip(rows, _text_values(list(prompts.values()), windows), strict=True):
            text[row] = values
    dense_ND = np.array([_values(one, of_text) for one, of_text in zip(requests, text, strict=True)], dtype=np.float64)
    dense_ND[:, _LOGS_L] = np.log1p(dense_ND[:, _LOGS_L])
    return _ids(hashes_NK), dense_ND


_MIX_A, _MIX_B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_SALT_K = np.concatenate(
    [
        np.full(width, zlib.crc32(name.split("_")[0].encode()) << 20, dtype=np.uint64)
        for name, width in FIELD_WIDTHS.items()
    ]
)


def _ids(hashes_NK: Hashes) -> NDArray[np.int32]:
    mixed_NK = (hashes_NK ^ _SALT_K) * _MIX_A
    mixed_NK ^= mixed_NK >> np.uint64(31)
    mixed_NK *= _MIX_B
    mixed_NK >>= np.uint64(64 - HASH_BITS)
    ids_NK = np.maximum(mixed_NK.astype(np.int32), np.int32(1))
    return np.where(hashes_NK == 0, np.int32(0), ids_NK)


def _label(text: str) -> int:
    raw = text.encode("utf-8", "surrogatepass")
    return (zlib.crc32(raw) | zlib.adler32(raw) << 32) or 1


@lru_cache(maxsize=4_096)
def _labels(application: str, model: str) -> tuple[int, int, int]:
    """Hashes of application, model and both; 0 where there is none."""
    return (
        _label(f"application={application}") if application else 0,
        _label(f"model={model}") if model else 0,
        _label(f"application={application}\x1fmodel={model}") if application and model else 0,
    )


def _head(prompt: str) -> bytes:
    return prompt[:HEAD_BYTES].encode("utf-8", "surrogatepass")[:HEAD_BYTES]


def _tail(prompt: str) -> bytes:
    return prompt[-TAIL_BYTES:].encode("utf-8", "surrogatepass")[-TAIL_BYTES:]


def _text_hashes(windows: Windows) -> Hashes:
    """The fields of text (prompts, IDS without labels)."""
    fields = windows.words_and_pairs(FIELD_WIDTHS["words_head"], FIELD_WIDTHS["words_tail"])
    return np.concatenate([*fields, *windows.grams(FIELD_WIDTHS["grams_head"], FIELD_WIDTHS["grams_tail"])], axis=1)


def _text_values(prompts: Sequence[str], windows: Windows) -> list[list[float]]:
    """The dense features of each prompt, before logarithms."""
    asked = all_asked_tokens(prompts, windows)
    counts, words = windows.class_counts().tolist(), windows.words_W.tolist()
    return [
        _values_of(prompt, counts, words=words, asked=asked)
        for prompt, counts, words, asked in zip(prompts, counts, words, asked, strict=False)
    ]


def _values_of(prompt: str, counts: list[int], *, words: int, asked: float | None) -> list[float]:
    head, ending = prompt[:HEAD_BYTES], prompt[-64:].rstrip()[-1:]
    size = max(1, sum(counts))
    return [
        _count(len(prompt)),
        len(prompt) > HEAD_BYTES + TAIL_BYTES,
        words,
        sum(counts[IN_WORD]) / max(1, words) / 10.0,
        counts[UPPER] / size,
        counts[DIGIT] / size,
        counts[SPACE] / size,
        counts[NEWLINE] / size,
        counts[CODE] / size,
        counts[PUNCTUATION] / size,
        counts[CONTROL] / size,
        counts[BEYOND] / size,
        counts[NEWLINE],
        head.count("?"),
        counts[CODE],
        "```" in head,
        ending == "?",
        ending == ":",
        asked is not None,
        _count(asked),
    ]


def _values(request: LengthRequest, of_text: list[float]) -> list[float]:
    """The dense features of a request, before logarithms."""
    temperature = request.temperature
    usable = temperature is not None and temperature >= 0.0
    return [
        request.prompt is not None,
        request.prompt_tokens is not None,
        _count(request.prompt_tokens),
        *of_text,
        bool(request.application),
        request.max_output_tokens is not None,
        _count(request.max_output_tokens),
        usable,
        min(temperature, 2.0) if usable and temperature is not None else 0.0,
        request.tools is not None,
        _count(request.tools),
        request.stop is not None,
        _count(request.stop),
        request.turn is not None,
        _count(request.turn),
        request.thinking is not None,
        bool(request.thinking),
    ]


def _count(count: float | None) -> float:
    return 0.0 if count is None or not count > 0.0 else min(count, _MAX_LOGGED)
