"""How much slower each instance is than the others of its class, as its own step times show.

An instance that shows nothing, because it gets no traffic, is slowly taken for one like the others again: what was slow
once is tried again, and measured when it is.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_INSTANCES = 256
LARGEST_SLOWNESS = 4.0

RATE, FIRST_WEIGHT = 0.05, 16
"""Share of its error that an observation moves an instance by; the first ones move it by 1/16, 1/17 …"""

LARGEST_MOVE = 0.3
"""An error counts as this at most, as a logarithm: a lie moves an instance by 1.5 %."""

HALF_LIFE_S = 120.0
"""An instance that shows nothing for so long is half as far from the others."""

LONGEST_REST_S = 5.0
"""A pause that is said to be longer counts as this: a clock may have jumped."""

_BOUND = math.log(LARGEST_SLOWNESS)
_DRIFT = 0.5
_RAREST = 1e9


class Slowness:
    """Of at most ``MAX_INSTANCES``, against the median one, of an even number the faster of the two in the middle.

    Kept are logarithms, all against a common one that they may drift with.
    """

    def __init__(self) -> None:
        self._logs: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._median = 0.0
        self._heard: set[str] = set()

    def of(self, instance_id: str) -> float:
        """1 where nothing is known of it; ``LARGEST_SLOWNESS`` at most, and its inverse at least."""
        known = self._logs.get(instance_id)
        return 1.0 if known is None else math.exp(min(max(known[0] - self._median, -_BOUND), _BOUND))

    def all(self) -> dict[str, float]:
        """Of every instance that is known."""
        return {instance_id: self.of(instance_id) for instance_id in self._logs}

    def note(self, instance_id: str, log_error: float) -> None:
        """Takes note of ln(observed ÷ foretold); old errors fade, and an outlier counts as ``LARGEST_MOVE``."""
        log, seen = self._logs.pop(instance_id, (self._median, 0))
        move = min(max(log_error, -LARGEST_MOVE), LARGEST_MOVE)
        log += max(1.0 / (seen + FIRST_WEIGHT), RATE) * move
        self._logs[instance_id] = (min(max(log, self._median - _BOUND), self._median + _BOUND), seen + 1)
        self._heard.add(instance_id)
        if len(self._logs) > MAX_INSTANCES:
            self._logs.popitem(last=False)
        self._centre()

    def rest(self, seconds: float) -> None:
        """So many seconds passed since the last call: what showed nothing meanwhile comes nearer to the others."""
        passed_s = min(max(0.0, seconds), LONGEST_REST_S)
        keep = 0.5 ** (passed_s / HALF_LIFE_S)
        for instance_id, (log, seen) in self._logs.items():
            if instance_id not in self._heard:
                self._logs[instance_id] = (self._median + keep * (log - self._median), seen)
        self._heard.clear()

    def copy(self) -> Slowness:
        """What is known now, apart from what will be."""
        made = Slowness()
        made._logs, made._median, made._heard = self._logs.copy(), self._median, self._heard.copy()
        return made

    def state(self) -> dict[str, list[float]]:
        """What a restart must not lose, as JSON takes it: of each instance its logarithm and its observations."""
        return {instance_id: [log - self._median, seen] for instance_id, (log, seen) in self._logs.items()}

    def restore(self, state: object) -> None:
        """Takes up what ``state`` gave; ``None`` is nothing.

        Raises:
            InvalidInputError: it is no such state.
        """
        logs = OrderedDict(_entry(*item) for item in _object(state).items())
        self._logs, self._heard = logs, set()
        self._centre()

    def _centre(self) -> None:
        ordered = sorted(log for log, _ in self._logs.values())
        self._median = ordered[(len(ordered) - 1) // 2] if ordered else 0.0
        if abs(self._median) > _DRIFT:
            self._logs = OrderedDict((name, (log - self._median, seen)) for name, (log, seen) in self._logs.items())
            self._median = 0.0


def _object(state: object) -> Mapping[object, object]:
    if state is None:
        return {}
    if not isinstance(state, dict) or len(state) > MAX_INSTANCES:
        raise InvalidInputError(f"calibration state: slowness must be an object of at most {MAX_INSTANCES} instances")
    return state


def _entry(name: object, value: object) -> tuple[str, tuple[float, int]]:
    try:
        log, seen = (float(number) for number in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        log = seen = math.nan
    if not (isinstance(name, str) and abs(log) <= 4.0 * _BOUND and 0.0 <= seen <= _RAREST):
        raise InvalidInputError("calibration state: slowness must give each instance a logarithm and a count")
    return name, (log, int(seen))
