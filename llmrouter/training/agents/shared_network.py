"""The network of ``evolution`` that all instances share, as plain functions over arrays: what it sees and answers.

Its inputs are those of ``llmrouter.routing.sight``, as the product's are, so that a router serves it alike; it looks at
no preference. Of each instance it sees 20 numbers, and hold 9 of its own: see ``see_shared``. ``shared_graph`` has the
same as a graph, and export compares the two.
"""

from __future__ import annotations

import math
from typing import Any

from llmrouter.training.agents.product_network import RESERVE, ROW, TERMS

PER_INSTANCE, HOLD = 20, 9
HIDDEN, HOLD_HIDDEN = 16, 8
ROOM_SCALE, MOST_ROOM = 50.0, 3.0
"""Room is what the gate leaves of KV, in fiftieths of it, within ±3: ``50·(1 − (C + p + r·(R + d))/K)``."""


def see_shared(raw: Any, terms: Any, instances: int, seen: Any) -> None:  # noqa: ANN401 - arrays
    """Writes what the network sees: a row for each instance, then what hold sees.

    With ``own`` the first five of ``product_network.write_terms``, ``imposed`` the next two, and ``cost`` = own +
    imposed + 2·coalesce, an instance is: n/slots, C/K, g1·Q, R/K, room, 10·(b + g3·n + g2·C), R/n/500, own/20,
    imposed/20, coalesce, whether a prompt is queued, how far own, imposed and cost are above the least of those that
    have room (fifths of a second, at most 5), 5·g1·p, d/500, and the first four of hold's. Hold sees ln(1 + held)/5,
    the age of the head, the share of instances that have room, and of those that have a prompt queued besides, the
    least coalesce, mean and largest room, mean n/slots, d/500.
    """
    line = ROW * instances
    hold = PER_INSTANCE * instances
    least_own, least_imposed, least_cost, least_coalesce = 1e300, 1e300, 1e300, 1e300
    open_, prefilling = 0.0, 0.0
    for e in range(instances):
        if raw[ROW * e + 15] > 0.0:
            own, imposed, coalesce = own_of(terms, e), imposed_of(terms, e), terms[TERMS * e + 7]
            least_own, least_imposed = min(least_own, own), min(least_imposed, imposed)
            least_cost = min(least_cost, own + imposed + 2.0 * coalesce)
            least_coalesce = min(least_coalesce, coalesce)
            open_ += 1.0 / instances
            if raw[ROW * e + 2] > 0.0:
                prefilling += 1.0 / instances
    seen[hold] = math.log(1.0 + raw[line]) / 5.0
    seen[hold + 1] = min(raw[line + 1], 5.0)
    seen[hold + 2] = open_
    seen[hold + 3] = prefilling
    seen[hold + 4] = least_coalesce
    seen[hold + 5] = 0.0
    seen[hold + 6] = -MOST_ROOM
    seen[hold + 7] = 0.0
    seen[hold + 8] = raw[5] / 500.0
    for e in range(instances):
        see_instance(raw, terms, e, instances, seen)
        own, imposed, coalesce = own_of(terms, e), imposed_of(terms, e), terms[TERMS * e + 7]
        at = PER_INSTANCE * e
        seen[at + 11] = min((own - least_own) / 5.0, 5.0)
        seen[at + 12] = min((imposed - least_imposed) / 5.0, 5.0)
        seen[at + 13] = min((own + imposed + 2.0 * coalesce - least_cost) / 5.0, 5.0)


def own_of(terms: Any, e: int) -> float:  # noqa: ANN401
    """Seconds of the request itself: overflow, queue, prefill and decode."""
    at = TERMS * e
    return float(terms[at] + terms[at + 1] + terms[at + 2] + terms[at + 3] + terms[at + 4])


def imposed_of(terms: Any, e: int) -> float:  # noqa: ANN401
    """Seconds that the others lose."""
    return float(terms[TERMS * e + 5] + terms[TERMS * e + 6])


def see_instance(raw: Any, terms: Any, e: int, instances: int, seen: Any) -> None:  # noqa: ANN401
    """Writes what is seen of one instance alone; adds to what hold sees."""
    row, at, hold = ROW * e, PER_INSTANCE * e, PER_INSTANCE * instances
    n, context, queued, left = raw[row], raw[row + 1], raw[row + 2], raw[row + 3]
    p, d, kv, slots = raw[row + 4], raw[row + 5], raw[row + 6], raw[row + 7]
    room = ROOM_SCALE * (1.0 - (context + p + RESERVE * (left + d)) / kv)
    room = max(-MOST_ROOM, min(room, MOST_ROOM))
    seen[at] = n / slots
    seen[at + 1] = context / kv
    seen[at + 2] = raw[row + 9] * queued
    seen[at + 3] = left / kv
    seen[at + 4] = room
    seen[at + 5] = 10.0 * (raw[row + 8] + raw[row + 12] * n + raw[row + 11] * context)
    seen[at + 6] = left / max(n, 1.0) / 500.0
    seen[at + 7] = own_of(terms, e) / 20.0
    seen[at + 8] = imposed_of(terms, e) / 20.0
    seen[at + 9] = terms[TERMS * e + 7]
    seen[at + 10] = 1.0 if queued > 0.0 else 0.0
    seen[at + 14] = raw[row + 9] * p * 5.0
    seen[at + 15] = d / 500.0
    for k in range(4):
        seen[at + 16 + k] = seen[hold + k]
    seen[hold + 5] += room / instances
    if raw[row + 15] > 0.0:
        seen[hold + 6] = max(seen[hold + 6], room)
    seen[hold + 7] += n / slots / instances


def score_shared(weights: Any, seen: Any, first: Any, second: Any, scores: Any, instances: int) -> None:  # noqa: ANN401, PLR0917
    """The same 20-16-1 network for every instance, and 9-8-1 for hold; tanh."""
    at, width = 0, PER_INSTANCE
    for e in range(instances):
        at = layer(weights, 0, seen, width * e, width, first, HIDDEN)
        for k in range(HIDDEN):
            first[k] = math.tanh(first[k])
        at = layer(weights, at, first, 0, HIDDEN, second, 1)
        scores[e] = second[0]
    at = layer(weights, at, seen, width * instances, HOLD, first, HOLD_HIDDEN)
    for k in range(HOLD_HIDDEN):
        first[k] = math.tanh(first[k])
    layer(weights, at, first, 0, HOLD_HIDDEN, second, 1)
    scores[instances] = second[0]


def layer(  # noqa: PLR0917 - compiled code passes by position
    weights: Any,  # noqa: ANN401 - arrays
    at: int,
    inputs: Any,  # noqa: ANN401
    first: int,
    width: int,
    outputs: Any,  # noqa: ANN401
    count: int,
) -> int:
    """Writes a layer's sums over ``inputs[first:first + width]``; returns where the next layer's weights begin."""
    bias = at + width * count
    for o in range(count):
        outputs[o] = weights[bias + o]
    for i in range(width):
        value = inputs[first + i]
        if value != 0.0:
            for o in range(count):
                outputs[o] += value * weights[at + i * count + o]
    return bias + count
