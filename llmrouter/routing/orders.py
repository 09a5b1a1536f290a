"""The order of held requests: which of them tries next for a place.

The highest ``standing`` goes first whatever the order: a higher priority, and every request before the batch class.
``fairness.py`` says whose turn it is among tenants. Within that the request with the least ``order_key`` goes first,
and of equal ones the one that came first; in the batch class ``batch.py`` has a say before that.

Every formula is written once, over numbers: the router calls it as it stands, the simulator compiles it.

In the formulas a request arrived at a, its size is w and its answer is due at t; now is n and the aging time τ.

| order | key | aging |
|---|---|---|
| FirstComeFirstServed | ``a`` | it is nothing but age |
| ShortestPredicted | ``log w + a/τ`` | τ seconds of waiting are worth a factor e of work |
| PredictedRank | ``log w + a/τ``, w the predicted rank | the same, of rank |
| HighestResponseRatio | ``−(n − a)/w`` | the ratio grows with the wait; τ is not used |
| LeastSlack | ``s = max(a, t − w)``, the latest start | slack shrinks with the wait; τ dates what has no deadline |
| EarliestDeadline | ``t`` | a deadline comes nearer by itself; τ as for LeastSlack |
| ModifiedDueDate | ``t`` before s, ``n + w·exp(−(n − s)/τ)`` after | of late ones τ seconds are worth a factor e |

``log w + a/τ`` orders as ``log w − (n − a)/τ`` does, whatever n is. So the order of two requests never changes, but for
two orders: HighestResponseRatio, where a short request overtakes a long one as both wait, and ModifiedDueDate, where
one overtakes another at the moment when it can no longer be in time.

Who may pass whom: under ShortestPredicted and PredictedRank a later j passes i only if it came less than
``τ·log(w_i / w_j)`` after it, at most ``τ·log(MOST_SIZE / LEAST_SIZE)``. Under EarliestDeadline and LeastSlack nobody
passes who comes after t or s. Under ModifiedDueDate nobody passes a late i who becomes late more than
``τ·log(w_i / w_j)`` after it. HighestResponseRatio gives no such bound. What bounds a wait there, and everywhere, is
the longest hold.
"""

from __future__ import annotations

from enum import IntEnum
from math import exp, log
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_FIRST_COME = 0
_SHORTEST = 1
_RANK = 2
_RATIO = 3
_SLACK = 4
_DEADLINE = 5
_DUE_DATE = 6


class Order(IntEnum):
    """The orders by number, as the compiled simulator knows them."""

    FIRST_COME_FIRST_SERVED = _FIRST_COME
    SHORTEST_PREDICTED = _SHORTEST
    PREDICTED_RANK = _RANK
    HIGHEST_RESPONSE_RATIO = _RATIO
    LEAST_SLACK = _SLACK
    EARLIEST_DEADLINE = _DEADLINE
    MODIFIED_DUE_DATE = _DUE_DATE


ORDERS: Mapping[str, Order] = MappingProxyType(
    {order.name.title().replace("_", ""): order for order in Order},
)
"""The orders by the name that a RoutingPolicy gives them."""

LEAST_SIZE = 1e-6
MOST_SIZE = 1e6
"""Bounds of a size: of seconds of work, or of a predicted rank."""

BATCH_BELOW = 1_000
"""How far the batch class stands below: no priority reaches across."""

HEAD_START_S = 0.5
"""How much earlier a request must have come elsewhere for a router to leave a place to it; see ``yields_to``."""

DEFAULT_AGING_S = 10.0
SHORTEST_AGING_S = 0.1
LONGEST_AGING_S = 3600.0


def bounded_size(size: float) -> float:
    """A size within its bounds; one that is no number counts as the largest, so that it passes nobody."""
    if size <= LEAST_SIZE:
        return LEAST_SIZE
    return size if size < MOST_SIZE else MOST_SIZE  # noqa: FURB136 - of what is no number ``min`` makes this or that


def due_at_s(deadline_at_s: float, arrived_at_s: float, size: float, aging_s: float) -> float:
    """When an answer is due: at its deadline, but not before it was asked for.

    Without one (infinite, or no number) it is due one aging time after it could have been there.
    """
    if deadline_at_s <= arrived_at_s:
        return arrived_at_s
    if deadline_at_s < 1e300:  # noqa: PLR2004 - what is no number is not below it either
        return deadline_at_s
    return arrived_at_s + size + aging_s


def latest_start_s(arrived_at_s: float, size: float, due_s: float) -> float:
    """When a request must begin to be in time; its arrival where it never could be."""
    return max(arrived_at_s, due_s - size)


def aged_size(size: float, since_s: float, aging_s: float) -> float:
    """``log w + since/τ``: sizes in the order of ``log w − (now − since)/τ``, at every instant."""
    return log(size) + since_s / aging_s


def order_key(  # noqa: PLR0917 - machine code has no keywords
    order: int, now_s: float, arrived_at_s: float, size: float, due_s: float, aging_s: float
) -> float:
    """The key of one held request: the least goes first. See the table above.

    Args:
        order: a number of ``Order``.
        now_s: only read where the order of two requests changes with time, see ``is_timeless``.
        arrived_at_s: when it reached the router.
        size: seconds that it would take alone on the fastest instance; under PredictedRank its rank.
        due_s: see ``due_at_s``.
        aging_s: τ, above 0.
    """
    if order == _FIRST_COME:
        return arrived_at_s
    if order == _RATIO:
        return response_key(now_s, arrived_at_s, size)
    if order == _SLACK:
        return latest_start_s(arrived_at_s, size, due_s)
    if order == _DEADLINE:
        return due_s
    if order == _DUE_DATE:
        start_s = latest_start_s(arrived_at_s, size, due_s)
        return due_s if now_s < start_s else now_s + size * exp((start_s - now_s) / aging_s)
    return aged_size(size, arrived_at_s, aging_s)


def response_key(now_s: float, arrived_at_s: float, size: float) -> float:
    """Minus the response ratio without its one, ``(n − a)/w``; Magnus and HRRN serve the highest ratio next."""
    return (arrived_at_s - now_s) / size


def is_timeless(order: int) -> bool:
    """Whether the order of two requests is the same at every instant, so that keys stand once made."""
    return order != _RATIO and order != _DUE_DATE  # noqa: PLR1714 - machine code compares numbers


def standing(priority: int, batch: int) -> int:
    """What goes before every order: the priority, and all who are waited for before the batch class."""
    return priority - BATCH_BELOW * batch


def patient_key(  # noqa: PLR0917 - machine code has no keywords
    order: int, now_s: float, arrived_at_s: float, size: float, due_s: float, aging_s: float
) -> float:
    """The key that a request would have if it had come ``HEAD_START_S`` earlier; arguments as of ``order_key``."""
    return order_key(order, now_s, arrived_at_s - HEAD_START_S, size, due_s - HEAD_START_S, aging_s)


def yields_to(own_standing: float, own_patient_key: float, standing_there: float, key_there: float) -> bool:
    """Whether whoever goes first at one router leaves a place to whoever goes first at another.

    To a higher standing always; to its own only where that one goes first by more than ``HEAD_START_S`` of waiting. So
    places are not left empty while routers tell each other which of two that came together goes first.
    """
    if standing_there != own_standing:
        return standing_there > own_standing
    return key_there < own_patient_key
