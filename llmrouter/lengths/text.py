"""What a text model sees of a request: hashed words, word pairs and character 4-grams, and request fields.

Written once for training and serving. No tokenizer: bytes of UTF-8 are hashed (``scan.pyx``). Work is bounded: of a
prompt of any size, the first ``HEAD_BYTES`` and the last ``TAIL_BYTES`` bytes are looked at.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.asked import ASKED_CHARS, KINDS, asked_tokens
from llmrouter.lengths.scan import MAX_WINDOW_BYTES, scan
from llmrouter.quick import quick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.predictor import LengthRequest

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


_NO_TEXT = [0.0] * (DENSE_NAMES.index("application_known") - DENSE_NAMES.index("log_chars"))
_LOGS_L = np.array([place for place, name in enumerate(DENSE_NAMES) if name.startswith("log_")])
_MAX_LOGGED = 1e9
_MASK = (1 << 64) - 1
_MIX_A, _MIX_B = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F


def _salt(kind: str) -> int:
    return zlib.crc32(kind.encode()) << 20


_LABELS = FIELDS["labels"].stop
_SCANNED = tuple(FIELD_WIDTHS.values())[1:]
_SALTS = (_salt("words"), _salt("pairs"), _salt("grams"))


def text_features(requests: Sequence[LengthRequest]) -> TextFeatures:
    """Features of N requests: a batch gives what its requests give alone."""
    ids_NK = np.zeros((len(requests), IDS), dtype=np.int32)
    dense_ND = np.array([_row(one, ids_K) for one, ids_K in zip(requests, ids_NK, strict=True)], dtype=np.float64)
    dense_ND = dense_ND.reshape(-1, DENSE)
    dense_ND[:, _LOGS_L] = np.log1p(dense_ND[:, _LOGS_L])
    return TextFeatures(ids_NK, dense_ND.astype(np.float32))


def _row(request: LengthRequest, ids_K: NDArray[np.int32]) -> list[float]:
    """Fills a request's ids, and says its dense features before logarithms."""
    ids_K[:_LABELS] = _labels(request.application[:MAX_LABEL_CHARS], request.model[:MAX_LABEL_CHARS])
    prompt = request.prompt
    return _values(request, _NO_TEXT if prompt is None else _text_values(prompt, ids_K[_LABELS:]))


def _label(text: str) -> int:
    raw = text.encode("utf-8", "surrogatepass")
    return (zlib.crc32(raw) | zlib.adler32(raw) << 32) or 1


def _id(value: int) -> int:
    """The id of a label's hash, mixed as those of words are."""
    mixed = ((value ^ _salt("labels")) * _MIX_A) & _MASK
    mixed = ((mixed ^ (mixed >> 31)) * _MIX_B) & _MASK
    return max(mixed >> (64 - HASH_BITS), 1)


@lru_cache(maxsize=4_096)
def _labels(application: str, model: str) -> tuple[int, int, int]:
    """Ids of application, model and both; 0 where there is none."""
    return (
        _id(_label(f"application={application}")) if application else 0,
        _id(_label(f"model={model}")) if model else 0,
        _id(_label(f"application={application}\x1fmodel={model}")) if application and model else 0,
    )


def _head(prompt: str) -> bytes:
    return prompt[:HEAD_BYTES].encode("utf-8", "surrogatepass")[:HEAD_BYTES]


def _tail(prompt: str) -> bytes:
    return prompt[-TAIL_BYTES:].encode("utf-8", "surrogatepass")[-TAIL_BYTES:]


def _text_values(prompt: str, ids_K: NDArray[np.int32]) -> list[float]:
    """Fills the ids of a prompt's text, and says its dense features before logarithms."""
    words, may_ask, counts = scan(_head(prompt), _tail(prompt), ids_K, _SCANNED, _SALTS, KINDS, ASKED_CHARS)
    read = prompt[:ASKED_CHARS]
    asked = asked_tokens(read) if may_ask or not read.isascii() else None
    head, ending = prompt[:HEAD_BYTES], prompt[-64:].rstrip()[-1:]
    space, newline, code, punctuation, control, lower, upper, digit, beyond = counts
    size = max(1, sum(counts))
    return [
        _count(len(prompt)),
        len(prompt) > HEAD_BYTES + TAIL_BYTES,
        words,
        (lower + upper + digit + beyond) / max(1, words) / 10.0,
        upper / size,
        digit / size,
        space / size,
        newline / size,
        code / size,
        punctuation / size,
        control / size,
        beyond / size,
        newline,
        head.count("?"),
        code,
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
