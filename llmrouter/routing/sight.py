"""What a learned network is told of the instances and of the line: the contract of training and serving.

A network for any number of instances (feature version ``LEARNED_FEATURE_VERSION``) has this signature, all float32:

| tensor | shape | what |
|---|---|---|
| input ``instances`` | (I, 16) | a row for each eligible instance: ``LEARNED_INSTANCE_NAMES``, in SI units, unscaled |
| input ``line`` | (6,) | ``LEARNED_LINE_NAMES`` |
| output ``scores`` | (I + 1,) | one for each row, then hold's; the highest wins |

The rows are those of the cost models (``routing.features``) with one number more: whether the instance has room. What
the network makes of them, scales and all, is inside the graph: a network that sees otherwise is served by the same
router. An instance without room is among the rows, because it is part of the picture, and is never chosen.

Hold is an option that lasts ``HOLD_S``; ``may_hold`` says when it is allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.feature_set import LEARNED_FEATURE_VERSION, LEARNED_INSTANCE_NAMES, LEARNED_LINE_NAMES

if TYPE_CHECKING:
    from llmrouter.domain import Preferences

__all__ = [
    "HOLD_S",
    "LEARNED_FEATURE_VERSION",
    "LEARNED_INSTANCE_NAMES",
    "LEARNED_LINE_NAMES",
    "LONGEST_HOLD_S",
    "line_of",
    "may_hold",
]

HOLD_S = 0.1
"""How long the answer *hold* stands unless something happens first."""

LONGEST_HOLD_S = 5.0
"""Age of a head from which it is not held while an instance has room."""


def may_hold(idle: float, head_age_s: float) -> bool:
    """Whether the network may hold, ``idle`` eligible instances being idle: never while one is, nor for ever."""
    return idle <= 0 and head_age_s < LONGEST_HOLD_S


def line_of(held: float, head_age_s: float, preferences: Preferences) -> tuple[float, ...]:
    """The input ``line``, in the order of ``LEARNED_LINE_NAMES``: requests held, the head included, and its age."""
    return (held, head_age_s, *preferences.shares)
