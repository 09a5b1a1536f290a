"""What a text model sees of a request: hashed words, word pairs and character 4-grams, and request fields.

Written once for training and serving. No tokenizer: bytes of UTF-8, ASCII letters lower-cased, are hashed by a
polynomial modulo 2^64, the same on every machine. Work is bounded: of a prompt of any size, the first ``HEAD_BYTES``
and the last ``TAIL_BYTES`` bytes are looked at. A word is a run of letters, digits and bytes beyond ASCII.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.predictor import LengthRequest

    Hashes = NDArray[np.uint64]
    Bytes = NDArray[np.uint8]

TEXT_FEATURE_VERSION = 2
"""Part of a text model's manifest. Version 1 is prompt length and application alone."""

HEAD_BYTES, TAIL_BYTES = 4_096, 1_024
ASKED_CHARS = 2_048
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


@dataclass(frozen=True, slots=True, eq=False)
class TextFeatures:
    """``ids`` int32 (N, IDS) within 0 and HASH_BUCKETS − 1; ``dense`` float32 (N, DENSE), finite."""

    ids: NDArray[np.int32]
    dense: NDArray[np.float32]


def text_features(requests: Sequence[LengthRequest]) -> TextFeatures:
    """Features of N requests: a batch gives what its requests give alone."""
    hashes_NK = np.zeros((len(requests), IDS), dtype=np.uint64)
    dense_ND = np.zeros((len(requests), DENSE), dtype=np.float32)
    for row, request in enumerate(requests):
        dense_ND[row] = _fill(hashes_NK[row], request)
    return TextFeatures(_ids(hashes_NK), dense_ND)


_CLASSES = ("word", "upper", "digit", "space", "newline", "code_sign", "punctuation", "control", "beyond_ascii")
_WORD, _UPPER, _DIGIT, _SPACE, _NEWLINE, _CODE, _PUNCTUATION, _CONTROL, _BEYOND = range(len(_CLASSES))


def _class_of_byte(byte: int) -> int:  # noqa: PLR0911 - one line a class
    sign = chr(byte)
    if byte >= 0x80:  # noqa: PLR2004 - end of ASCII
        return _BEYOND
    if sign.isupper():
        return _UPPER
    if sign.islower():
        return _WORD
    if sign.isdigit():
        return _DIGIT
    if sign == "\n":
        return _NEWLINE
    if sign in " \t\r":
        return _SPACE
    if sign in "{}()[]<>=;_\\":
        return _CODE
    return _PUNCTUATION if sign.isprintable() else _CONTROL


_CLASS_OF_BYTE = np.array([_class_of_byte(byte) for byte in range(256)], dtype=np.uint8)
_IN_WORD = np.isin(_CLASS_OF_BYTE, (_WORD, _UPPER, _DIGIT, _BEYOND))
_LOWER_PLUS_1 = np.array([byte + (33 if 65 <= byte <= 90 else 1) for byte in range(256)], dtype=np.uint64)  # noqa: PLR2004

_MODULUS = 1 << 64
_PRIME = 0x100000001B3
_INVERSE = pow(_PRIME, -1, _MODULUS)
_GRAM = 4


def _powers(base: int) -> Hashes:
    powers = np.ones(HEAD_BYTES, dtype=np.uint64)
    powers[1:] = np.multiply.accumulate(np.full(HEAD_BYTES - 1, base, dtype=np.uint64))
    return powers


_POWERS = _powers(_PRIME)
_INVERSE_POWERS = _powers(_INVERSE)
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


def _word_edges(bytes_B: Bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where words start and where they end, in order."""
    in_word_B = np.zeros(len(bytes_B) + 2, dtype=np.int8)
    in_word_B[1:-1] = _IN_WORD[bytes_B]
    edges = np.flatnonzero(in_word_B[1:] != in_word_B[:-1])
    return edges[0::2], edges[1::2]


def _words(wide_B: Hashes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Hashes:
    """Hash of each word: prefix sums of byte · prime^place, moved to the word's own start."""
    if len(starts) == 0:
        return np.zeros(0, dtype=np.uint64)
    upto = int(ends[-1])
    sums = np.zeros(upto + 1, dtype=np.uint64)
    np.cumsum(wide_B[:upto] * _POWERS[:upto], out=sums[1:])
    return (sums[ends] - sums[starts]) * _INVERSE_POWERS[starts]


def _grams(wide_B: Hashes) -> Hashes:
    count = max(0, len(wide_B) - _GRAM + 1)
    hashes: Hashes = wide_B[:count] * _POWERS[0]
    for place in range(1, _GRAM):
        hashes += wide_B[place : place + count] * _POWERS[place]
    return hashes


def _put(hashes_K: Hashes, field: str, hashes: Hashes, *, last: bool) -> None:
    width = FIELD_WIDTHS[field]
    chosen = hashes[-width:] if last else hashes[:width]
    start = FIELDS[field].start
    hashes_K[start : start + len(chosen)] = chosen


def _put_text(hashes_K: Hashes, bytes_B: Bytes, *, where: str) -> int:
    """Fills the fields of a window; returns how many words it has."""
    last = where == "tail"
    wide_B = _LOWER_PLUS_1[bytes_B]
    starts, ends = _word_edges(bytes_B)
    spare = FIELD_WIDTHS[f"words_{where}"] + 1
    chosen = slice(-spare, None) if last else slice(spare)
    words = _words(wide_B, starts[chosen], ends[chosen])
    _put(hashes_K, f"words_{where}", words, last=last)
    _put(hashes_K, f"pairs_{where}", words[:-1] * _MIX_B + words[1:], last=last)
    spare = FIELD_WIDTHS[f"grams_{where}"] + _GRAM - 1
    _put(hashes_K, f"grams_{where}", _grams(wide_B[-spare:] if last else wide_B[:spare]), last=last)
    return len(starts)


def _label(text: str) -> int:
    raw = text.encode("utf-8", "surrogatepass")
    return (zlib.crc32(raw) | zlib.adler32(raw) << 32) or 1


def _put_labels(hashes_K: Hashes, request: LengthRequest) -> None:
    application, model = request.application[:MAX_LABEL_CHARS], request.model[:MAX_LABEL_CHARS]
    start = FIELDS["labels"].start
    if application:
        hashes_K[start] = _label(f"application={application}")
    if model:
        hashes_K[start + 1] = _label(f"model={model}")
    if application and model:
        hashes_K[start + 2] = _label(f"application={application}\x1fmodel={model}")


def _window(text: str) -> Bytes:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)


def _fill(hashes_K: Hashes, request: LengthRequest) -> list[float]:
    _put_labels(hashes_K, request)
    prompt = request.prompt
    text: list[float] = [0.0] * _TEXT_VALUES
    if prompt is not None:
        head = prompt[:HEAD_BYTES]
        head_B = _window(head)[:HEAD_BYTES]
        words = _put_text(hashes_K, head_B, where="head")
        _put_text(hashes_K, _window(prompt[-TAIL_BYTES:])[-TAIL_BYTES:], where="tail")
        text = _text_values(prompt, head, head_B, words=words)
    tokens = request.prompt_tokens
    known = [float(prompt is not None), float(tokens is not None), _log(tokens)]
    return known + text + _request_values(request)


def _text_values(prompt: str, head: str, head_B: Bytes, *, words: int) -> list[float]:
    counts = np.bincount(_CLASS_OF_BYTE[head_B], minlength=len(_CLASSES)).tolist()
    size = max(1, len(head_B))
    word_bytes = sum(counts[index] for index in (_WORD, _UPPER, _DIGIT, _BEYOND))
    ending = prompt[-64:].rstrip()[-1:]
    asked = asked_tokens(head[:ASKED_CHARS])
    return [
        _log(len(prompt)),
        float(len(prompt) > HEAD_BYTES + TAIL_BYTES),
        _log(words),
        word_bytes / max(1, words) / 10.0,
        counts[_UPPER] / size,
        counts[_DIGIT] / size,
        counts[_SPACE] / size,
        counts[_NEWLINE] / size,
        counts[_CODE] / size,
        counts[_PUNCTUATION] / size,
        counts[_CONTROL] / size,
        counts[_BEYOND] / size,
        _log(counts[_NEWLINE]),
        _log(head.count("?")),
        _log(counts[_CODE]),
        float("```" in head),
        float(ending == "?"),
        float(ending == ":"),
        float(asked is not None),
        _log(asked),
    ]


_TEXT_VALUES = 20


def _request_values(request: LengthRequest) -> list[float]:
    temperature = request.temperature
    usable = temperature is not None and temperature >= 0.0
    return [
        float(bool(request.application)),
        float(request.max_output_tokens is not None),
        _log(request.max_output_tokens),
        float(usable),
        min(temperature, 2.0) if usable and temperature is not None else 0.0,
        float(request.tools is not None),
        _log(request.tools),
        float(request.stop is not None),
        _log(request.stop),
        float(request.turn is not None),
        _log(request.turn),
        float(request.thinking is not None),
        float(bool(request.thinking)),
    ]


def _log(count: float | None) -> float:
    return 0.0 if count is None or not count > 0.0 else float(np.log1p(min(count, 1e9)))


_COUNTED = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBER_WORDS = {word: number for number, word in enumerate(_COUNTED, start=1)}
_NUMBER_WORDS |= {"fifteen": 15, "twenty": 20, "fifty": 50, "hundred": 100}

TOKENS_PER_UNIT = {
    "token": 1.0,
    "character": 0.25,
    "word": 1.35,
    "line": 14.0,
    "sentence": 25.0,
    "verse": 25.0,
    "stanza": 45.0,
    "paragraph": 110.0,
    "page": 600.0,
    "chapter": 600.0,
    "bullet": 25.0,
    "item": 25.0,
    "point": 40.0,
    "step": 40.0,
    "example": 40.0,
    "reason": 40.0,
    "tip": 40.0,
    "idea": 40.0,
    "way": 40.0,
    "question": 25.0,
}
"""About how many tokens one of a kind has; only the order of magnitude matters."""

_ASKED = re.compile(
    rf"\b(\d{{1,6}}|{'|'.join(_NUMBER_WORDS)})[\s-]{{1,2}}(?:[a-z]{{1,14}}[\s-]{{1,2}})?"
    rf"({'|'.join(TOKENS_PER_UNIT)})s?\b"
)


def asked_tokens(text: str) -> float | None:
    """The length that a text asks for in words, sentences, points and the like: the largest; ``None`` where none is."""
    lowered = text.lower()
    asked = [
        float(_NUMBER_WORDS.get(number, 0) or number) * TOKENS_PER_UNIT[unit]
        for number, unit in _ASKED.findall(lowered)
    ]
    return min(max(asked), 1e6) if asked else None
