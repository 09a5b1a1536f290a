"""Notices that lengths changed: answers fall where the laws that were served said they would not.

Each answer lies below the 10 % quantile, between it and the median, on the median, between it and the 90 % quantile, or
above. Over the last 8, 16, 32, 64 and 128 answers of a group, five shares are held against what a true law would give:
below and above the 80 % interval (10 % each), outside it (20 %), below and above the median (50 % each). Only an excess
counts, so that laws with ties (answers of one length, answers cut at a limit) raise no alarm.

A count raises an alarm where a true law reaches it with a probability of ``TAIL`` at most. All tests and windows
together then raise 0.07 false alarms in 100,000 answers of a group, and fewer where answers lie near quantiles. An
alarm lasts for 64 answers at least, and until no count of the last 64 has a probability below ``END_TAIL``; the group
then begins anew. How seldom, how fast and how long alarms come is held by tests/laws/test_length_drift.py.

A law that does not follow is found out after 64 answers twice as long, or 17 four times as long (medians; log-normal of
spread 0.8). Where laws follow, a doubling may be learned before it is certain, and then raises no alarm.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.distribution import LEVELS, MEDIAN
from llmrouter.lengths.predictor import label, refusal

if TYPE_CHECKING:
    from llmrouter.lengths.distribution import LengthDistribution
    from llmrouter.lengths.predictor import LengthRequest

MIN_RANK_CORRELATION = 0.2
"""Below it, ordering by predicted length does more harm than good."""

MAX_APPLICATIONS = 256
WINDOWS = (8, 16, 32, 64, 128)
TAIL = 3e-7
END_WINDOW, END_TAIL = 64, 0.05
NEAR = 1.08
"""An answer within 8 % of a quantile is on it: so wide are the bins of learned laws, whatever stands in them."""

WARM_UP_ANSWERS = 64
"""Of a group, which are passed over: what has not been learned yet has not changed."""

SILENT_ANSWERS = 4_096
"""An application without an answer among this many has no alarm any more."""

RANKED_ANSWERS = 256
MIN_RANKED_ANSWERS = 64
_LOW, _HIGH = LEVELS.index(0.1), LEVELS.index(0.9)
_RING = WINDOWS[-1]


@dataclass(frozen=True, slots=True)
class Drift:
    """A change that lasts. ``reason`` is AnswersLonger, AnswersShorter or AnswersLessCertain.

    ``application`` is ``None`` where all requests changed; ``answers`` is for how many answers this has been seen.
    """

    reason: str
    message: str
    application: str | None
    answers: int


@dataclass(frozen=True, slots=True)
class _Test:
    """What is counted: codes of answers, and how often a true law has one of them."""

    codes: tuple[int, ...]
    expected: float
    reason: str
    words: str


_BELOW_ALL, _BELOW, _ON, _ABOVE, _ABOVE_ALL = range(5)
_TESTS = (
    _Test((_ABOVE_ALL,), 0.1, "AnswersLonger", "above the 90 % quantile"),
    _Test((_BELOW_ALL,), 0.1, "AnswersShorter", "below the 10 % quantile"),
    _Test((_ABOVE, _ABOVE_ALL), 0.5, "AnswersLonger", "above the median"),
    _Test((_BELOW_ALL, _BELOW), 0.5, "AnswersShorter", "below the median"),
    _Test((_BELOW_ALL, _ABOVE_ALL), 0.2, "AnswersLessCertain", "outside the 80 % interval"),
)
_WORDS = {
    "AnswersLonger": "are longer than foretold",
    "AnswersShorter": "are shorter than foretold",
    "AnswersLessCertain": "are less certain than foretold",
}


@dataclass(frozen=True, slots=True)
class _Alarm:
    test: _Test
    window: int
    count: int
    answers: int  # of the group when it was raised


class DriftWatch:
    """Watches all requests and at most ``max_applications`` applications; the one longest silent gives way."""

    def __init__(self, *, max_applications: int = MAX_APPLICATIONS) -> None:
        self._max_applications = max_applications
        self._overall = _Group()
        self._groups: OrderedDict[str, _Group] = OrderedDict()
        self._alarmed: dict[str, _Group] = {}
        self._ranks = _Ranks(RANKED_ANSWERS)

    def note(self, request: LengthRequest, law: LengthDistribution, output_tokens: float) -> None:
        """Takes note of a finished request and the law that was served; passes over what cannot be believed."""
        if refusal(request, output_tokens) is not None:
            return
        code = _code(law, output_tokens)
        self._overall.note(code, self._overall.answers)
        name = label(request.application)
        group = self._groups.pop(name, None) or _Group()
        self._groups[name] = group
        group.note(code, self._overall.answers)
        if group.alarm is not None:
            self._alarmed[name] = group
        elif self._alarmed:
            self._alarmed.pop(name, None)
        if len(self._groups) > self._max_applications:
            gone, _ = self._groups.popitem(last=False)
            self._alarmed.pop(gone, None)
        self._ranks.note(law.rank, output_tokens)

    @property
    def drift(self) -> Drift | None:
        """What changed and has not been learned yet; that of all requests where several applications changed."""
        since = self._overall.answers - SILENT_ANSWERS
        names = [name for name, group in self._alarmed.items() if group.last_at > since]
        if self._overall.alarm is not None and len(names) != 1:
            return _drift(self._overall, None)
        return _drift(self._alarmed[names[0]], names[0]) if names else None

    @property
    def rank_correlation(self) -> float | None:
        """Somers' D of predicted rank and length over the last 256 answers; ``None`` before 64, or if all are equal.

        (pairs in the predicted order − pairs in the other) ÷ pairs of different length: an equal rank is a coin flip.
        """
        return self._ranks.correlation

    @property
    def applications(self) -> int:
        """How many applications are told apart now."""
        return len(self._groups)


class _Group:
    """Counts of the codes of its last answers, in each window."""

    __slots__ = ("_codes", "_counts", "_seen", "alarm", "answers", "last_at")

    def __init__(self) -> None:
        self.answers = 0
        self.last_at = 0
        self.alarm: _Alarm | None = None
        self._begin()

    def _begin(self) -> None:
        self._seen = 0
        self._codes = bytearray(_RING)
        self._counts = [[0] * 5 for _ in WINDOWS]

    def note(self, code: int, at: int) -> None:
        self.answers += 1
        self.last_at = at
        if self.answers <= WARM_UP_ANSWERS:
            return
        seen = self._seen
        for window, counts in zip(WINDOWS, self._counts, strict=True):
            counts[code] += 1
            if seen >= window:
                counts[self._codes[(seen - window) % _RING]] -= 1
        self._codes[seen % _RING] = code
        self._seen = seen + 1
        if self.alarm is None:
            self.alarm = self._raised()
        elif self.answers >= self.alarm.answers + END_WINDOW and self._is_over():
            self.alarm = None
            self._begin()

    def _raised(self) -> _Alarm | None:
        for window, counts in zip(WINDOWS, self._counts, strict=True):
            if self._seen < window:
                return None
            for test, bound in zip(_TESTS, _bounds(window, TAIL), strict=True):
                count = _count(counts, test)
                if count >= bound:
                    return self._alarm(test, window, counts)
        return None

    def _alarm(self, test: _Test, window: int, counts: list[int]) -> _Alarm:
        """Answers outside the interval are longer or shorter where nearly all lie on one side of it."""
        if test is _TESTS[-1]:
            above, below = counts[_ABOVE_ALL], counts[_BELOW_ALL]
            test = _TESTS[0] if above > 3 * below else _TESTS[1] if below > 3 * above else test
        return _Alarm(test, window, _count(counts, test), self.answers)

    def _is_over(self) -> bool:
        counts = self._counts[WINDOWS.index(END_WINDOW)]
        bounds = _bounds(END_WINDOW, END_TAIL)
        return all(_count(counts, test) < bound for test, bound in zip(_TESTS, bounds, strict=True))


class _Ranks:
    """Concordance of ranks and lengths among the last answers: each new one is compared with the others once."""

    def __init__(self, size: int) -> None:
        self._rank_N = np.zeros(size)
        self._tokens_N = np.zeros(size)
        self._answers = 0
        self._in_order = 0
        self._pairs = 0

    def note(self, rank: float, tokens: float) -> None:
        size = len(self._rank_N)
        slot = self._answers % size
        if self._answers >= size:
            self._add(float(self._rank_N[slot]), float(self._tokens_N[slot]), -1)
        self._rank_N[slot], self._tokens_N[slot] = rank, tokens
        self._answers += 1
        self._add(rank, tokens, 1)

    @property
    def correlation(self) -> float | None:
        if self._answers < MIN_RANKED_ANSWERS or self._pairs == 0:
            return None
        return self._in_order / self._pairs

    def _add(self, rank: float, tokens: float, sign: int) -> None:
        """Adds or takes away the pairs of one answer with all others; with itself it makes none."""
        kept = slice(min(self._answers, len(self._rank_N)))
        longer_N = np.sign(tokens - self._tokens_N[kept])
        self._in_order += sign * int(np.dot(np.sign(rank - self._rank_N[kept]), longer_N))
        self._pairs += sign * int(np.count_nonzero(longer_N))


def _code(law: LengthDistribution, tokens: float) -> int:
    quantiles = law.quantiles
    if tokens > quantiles[MEDIAN] * NEAR:
        return _ABOVE_ALL if tokens > quantiles[_HIGH] * NEAR else _ABOVE
    if tokens * NEAR < quantiles[MEDIAN]:
        return _BELOW_ALL if tokens * NEAR < quantiles[_LOW] else _BELOW
    return _ON


def _count(counts: list[int], test: _Test) -> int:
    codes = test.codes
    return counts[codes[0]] if len(codes) == 1 else counts[codes[0]] + counts[codes[1]]


@lru_cache(maxsize=16)
def _bounds(window: int, tail: float) -> tuple[int, ...]:
    """For each test the least count that a true law reaches with a probability of ``tail`` at most."""
    return tuple(_bound(window, test.expected, tail) for test in _TESTS)


def _bound(window: int, share: float, tail: float) -> int:
    """The least k with P(X ≥ k) ≤ tail, X binomial; beyond the window where there is none."""
    above = 0.0
    for count in range(window, -1, -1):
        above += math.comb(window, count) * share**count * (1.0 - share) ** (window - count)
        if above > tail:
            return count + 1
    return 0


def _drift(group: _Group, name: str | None) -> Drift | None:
    alarm = group.alarm
    if alarm is None:
        return None
    answers = group.answers - alarm.answers + alarm.window
    who = "all requests" if name is None else f"application {name!r}" if name else "requests without an application"
    share = 100.0 * alarm.count / alarm.window
    message = (
        f"answers of {who} {_WORDS[alarm.test.reason]}: of {alarm.window} in a row, {share:.0f} % were "
        f"{alarm.test.words}, {100.0 * alarm.test.expected:.0f} % expected; for {_about(answers)} answers or more"
    )
    return Drift(alarm.test.reason, message, name, answers)


def _about(answers: int) -> int:
    """The power of two below it, so that a message changes seldom."""
    return 1 << (max(answers, 1).bit_length() - 1)
